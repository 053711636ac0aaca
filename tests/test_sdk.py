"""`import inferless` is ours: decorators change nothing and are remembered, calls really call."""

from __future__ import annotations

import dataclasses
import http.server
import importlib.util
import json
import os
import threading
import unittest
from typing import Any
from unittest import mock

from inferless_shim import calls, sdk
from tests.support import ServerProcess, TestCase, app_folder, ask, eventually

APP = """
    import inferless

    app = inferless.Cls(gpu="T4")

    class InferlessPythonModel:
        @app.load
        def initialize(self):
            self.text = "loaded"

        @inferless.method(gpu="T4")
        def infer(self, inputs):
            return {"OUT": self.text, "from": inferless.__name__}
"""
CALLING_APP = """
    import inferless

    class InferlessPythonModel:
        def infer(self, inputs):
            return {"OUT": inferless.call(inputs["TEXT"], data={"a": 1})["sent"]["inputs"][0]["name"]}
"""


class EchoHandler(http.server.BaseHTTPRequestHandler):
    """Answers a POST with what it was sent and the key that came along, or with what its path says."""

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, kind, body = self.server.answers.get(self.path, (200, "application/json", ""))  # type: ignore[attr-defined]
        content = (body or json.dumps({"sent": sent, "key": self.headers["Authorization"]})).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


class Array:
    """Has what numpy and torch arrays are known by."""

    def __init__(self, values: Any, dtype: str) -> None:
        self.values = values
        self.dtype = dtype

    def tolist(self) -> Any:
        return self.values


class Marks(unittest.TestCase):
    def setUp(self) -> None:
        for patch in (
            mock.patch.object(sdk, "marked", {role: [] for role in sdk.ROLES}),
            mock.patch.dict(os.environ),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def test_decorators_leave_what_they_decorate(self) -> None:
        """Every decorator, with arguments or without, returns the very function or class."""
        app = sdk.Cls(gpu="A100")
        for decorate in (
            sdk.request, sdk.response, sdk.config, sdk.method, sdk.local_entry_point,
            app.load, app.infer, app.finalize, sdk.Cls.load, sdk.Cls().infer,
        ):  # fmt: skip
            self.assertIs(decorate(EchoHandler), EchoHandler)
            self.assertIs(decorate(gpu="T4")(EchoHandler), EchoHandler)
            self.assertIs(decorate("T4")(EchoHandler), EchoHandler)
            self.assertIs(decorate()(EchoHandler), EchoHandler)

    def test_decorators_remember(self) -> None:
        """What is decorated is found by its role, in order, and a method in its class."""
        app = sdk.Cls("T4", any_option=1)

        @sdk.request
        class First:
            pass

        @sdk.request()
        class Second(First):
            pass

        class Model:
            @app.load
            def start(self) -> None:
                pass

            @sdk.method(gpu="T4")
            @app.infer
            def go(self) -> None:
                pass

            @app.infer
            @staticmethod
            def static() -> None:
                pass

            @sdk.method
            def other(self) -> None:
                pass

            def plain(self) -> None:
                pass

        self.assertEqual(sdk.of("request"), [First, Second])
        self.assertEqual(sdk.of("load"), [Model.start])
        self.assertEqual(len(sdk.of("infer")), 2)
        self.assertEqual((sdk.of("response"), sdk.of("unknown")), ([], []))
        roles = [sdk.role_of(vars(Model)[name]) for name in ("start", "go", "static", "other", "plain")]
        self.assertEqual(roles, ["load", "infer", "infer", "method", None])
        self.assertEqual([sdk.role_of(Model().start), sdk.role_of(Model.static)], ["load", "infer"])
        self.assertEqual([sdk.role_of(First), sdk.role_of(Model), sdk.role_of(5)], ["request", None, None])

    def test_other_attributes_of_cls(self) -> None:
        """Any attribute of Cls is a decorator, and remembered by its name."""
        app = sdk.Cls()
        app.warm_up(len)
        self.assertEqual(sdk.of("warm_up"), [len])
        self.assertEqual(sdk.role_of(len), "warm_up")
        with self.assertRaises(AttributeError):
            app._private  # noqa: B018

    def test_config(self) -> None:
        """A config class may be plain, a dataclass or pydantic's; its fields become environment variables."""

        class Base:
            batch_size = 4

        @sdk.config
        class Plain(Base):
            is_streaming_output = True
            other = "x"

            def method(self) -> None:
                pass

        self.assertEqual(sdk.config_of(Plain), {"is_streaming_output": True, "batch_size": 4})
        values = {name: os.environ.get(name) for name in ("IS_STREAMING_OUTPUT", "BATCH_SIZE", "OTHER", "METHOD")}
        self.assertEqual(values, {"IS_STREAMING_OUTPUT": "True", "BATCH_SIZE": "4", "OTHER": "x", "METHOD": None})

        @dataclasses.dataclass
        class Data:
            needed: int
            batch_window: int = 50000

        self.assertEqual(sdk.config_of(Data), {"batch_window": 50000})
        self.assertEqual(sdk.config_of(type("Empty", (), {})), {})

    @unittest.skipUnless(importlib.util.find_spec("pydantic"), "pydantic is not installed")
    def test_config_of_pydantic(self) -> None:
        """A pydantic class's defaults count, even where another field has none."""
        import pydantic

        made = pydantic.create_model("Config", is_batched_input=(bool, True), batch_size=(int, 2), model=(str, "m"))
        self.assertIs(sdk.config()(made), made)
        self.assertEqual(sdk.config_of(made), {"is_batched_input": True, "batch_size": 2})
        self.assertEqual((os.environ["IS_BATCHED_INPUT"], os.environ["MODEL"]), ("True", "m"))
        made = pydantic.create_model("Config", batch_size=(int, 2), needed=(str, ...))
        self.assertEqual(sdk.config_of(made), {"batch_size": 2})

    def test_names(self) -> None:
        """The names are the package's; another one is told with those there are."""
        names: dict[str, Any] = {}
        exec("from inferless_shim.sdk import *", names)
        self.assertLessEqual(
            {"request", "response", "config", "Cls", "method", "local_entry_point", "call", "call_async"}, set(names)
        )
        self.assertEqual(sdk.__version__, "0.2.15")
        with self.assertRaisesRegex(AttributeError, "'inferless' has no attribute 'foo'; it has Cls, call, .*response"):
            sdk.foo  # noqa: B018


class Calls(TestCase):
    def setUp(self) -> None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), EchoHandler)
        self.answers: dict[str, tuple[int, str, str]] = {}
        server.answers = self.answers  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.url = f"http://127.0.0.1:{server.server_port}/"
        patch = mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:9"})
        patch.start()
        self.addCleanup(patch.stop)
        os.environ.pop(calls.KEY_VARIABLE, None)

    def answer(self, status: int, kind: str, body: str) -> str:
        """Have the server answer so; return the URL that it does it at."""
        path = f"/{len(self.answers)}"
        self.answers[path] = status, kind, body
        return self.url.rstrip("/") + path

    def test_call_returns_the_answer(self) -> None:
        """`call` posts data as tensors, or inputs as they are, with the key, and returns the JSON answer."""
        tensor = {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["a"]}
        answer = sdk.call(self.url, workspace_api_key="secret", data={"TEXT": "a"})
        self.assertEqual(answer, {"sent": {"inputs": [tensor]}, "key": "Bearer secret"})
        self.assertEqual(sdk.call(self.url, inputs={"TEXT": "a"}), {"sent": {"TEXT": "a"}, "key": None})
        self.assertEqual(sdk.call(self.url), {"sent": {}, "key": None})

    def test_call_key(self) -> None:
        """Without a key INFERLESS_API_KEY is sent; an empty one sends none."""
        os.environ[calls.KEY_VARIABLE] = "from environment"
        self.assertEqual(sdk.call(self.url)["key"], "Bearer from environment")
        self.assertEqual(sdk.call(self.url, "own")["key"], "Bearer own")
        self.assertIsNone(sdk.call(self.url, "")["key"])

    def test_call_tensors(self) -> None:
        """Data becomes tensors by the types of its values; arrays keep their own."""
        table: list[tuple[Any, str, list[int], Any]] = [
            ("a", "BYTES", [1], ["a"]),
            (True, "BOOL", [1], [True]),
            (5, "INT64", [1], [5]),
            (0.5, "FP64", [1], [0.5]),
            (["a", "b"], "BYTES", [2], ["a", "b"]),
            ([True, False], "BOOL", [2], [True, False]),
            ([[1, 2, 3], [4, 5, 6]], "INT64", [2, 3], [[1, 2, 3], [4, 5, 6]]),
            ([1, 0.5], "FP64", [2], [1, 0.5]),
            ((1, 2), "INT64", [2], [1, 2]),
            ([], "FP64", [0], []),
            (Array([[1.0], [2.0]], "float32"), "FP32", [2, 1], [[1.0], [2.0]]),
            (Array([1], "uint8"), "UINT8", [1], [1]),
            (Array(0.5, "torch.bfloat16"), "BF16", [1], [0.5]),
            (Array(["a"], "<U1"), "BYTES", [1], ["a"]),
            (Array([True], "bool"), "BOOL", [1], [True]),
        ]
        values = {f"x{n}": value for n, (value, *_) in enumerate(table)}
        sent = sdk.call(self.url, data=values)["sent"]
        self.assertEqual(list(sent), ["inputs"])
        batch = sdk.call(self.url, data=values, is_batch=True)["sent"]["inputs"]
        self.assertEqual([len(sent["inputs"]), len(batch)], [len(table)] * 2)
        for one, batched, name, (value, datatype, shape, data) in zip(
            sent["inputs"], batch, values, table, strict=True
        ):
            with self.subTest(value=value):
                expected = {"name": name, "datatype": datatype, "shape": shape, "data": data}
                self.assertEqual(one, expected)
                self.assertEqual(batched, expected | {"shape": [1, *shape]})
        for value, words in (({"a": 1}, "json.dumps"), (None, "json.dumps"), ([1, "a"], "x "), ([[1], [2, 3]], "rows")):
            with self.subTest(value=value), self.assertRaisesRegex(ValueError, words):
                sdk.call(self.url, data={"x": value})

    def test_call_refusals(self) -> None:
        """Data beside inputs is an error, and so are any status but 200 and what is no URL of a server."""
        with self.assertRaisesRegex(ValueError, "both data and inputs"):
            sdk.call(self.url, data={}, inputs={})
        with self.assertRaisesRegex(ValueError, "http://"):
            sdk.call("file:///etc/hostname")
        for status in (202, 404, 500):
            url = self.answer(status, "application/json", '{"error": "é"}')
            with self.assertRaises(Exception) as caught:
                sdk.call(url, data={})
            self.assertEqual(
                str(caught.exception), f'Failed to call {url} with status code {status} and response {{"error": "é"}}'
            )

    def test_call_tells_the_callback(self) -> None:
        """A callback gets the answer, or the error, which then is not raised."""
        told: list[tuple[Any, Any]] = []
        answer = sdk.call(self.url, inputs={"a": 1}, callback=lambda *both: told.append(both))
        self.assertEqual(told, [(None, {"sent": {"a": 1}, "key": None})])
        self.assertEqual(answer, told[0][1])
        self.assertIsNone(sdk.call(self.url, data={}, inputs={}, callback=lambda *both: told.append(both)))
        self.assertIsInstance(told[1][0], ValueError)
        self.assertIsNone(told[1][1])

    def test_call_streams(self) -> None:
        """A stream's events are a list of their data, in either dialect; an error event is an exception."""
        table: list[tuple[str, Any]] = [
            (': ka\nid: s-1\ndata: {"a":"\u2028"}\n\nevent: done\ndata: {}\n\n', [{"a": "\u2028"}]),
            ('data: {"a":1}\r\n\r\ndata: {"a":\r\ndata: 2}', [{"a": 1}, {"a": 2}]),
            ('event: queued\ndata: {}\n\ndata: {"error":"e"}\n\nevent: done\ndata: {}\n\n', [{"error": "e"}]),
            ("data: {}\n\ndata: [DONE]\n\n", [{}]),
            ("", []),
            ('data: {"a":1}\n\nevent: error\ndata: {"error":"boom","code":"app_error"}\n\n', "boom"),
            ('data: {"a":1}\n\ndata: {"error":"boom"}\n\n', "boom"),
        ]  # fmt: skip
        for text, result in table:
            with self.subTest(text=text):
                url = self.answer(200, "text/event-stream; charset=utf-8", text or "\n")
                if isinstance(result, list):
                    self.assertEqual(sdk.call(url, data={}), result)
                else:
                    with self.assertRaisesRegex(RuntimeError, result):
                        sdk.call(url, data={})

    def test_call_async_tells_the_callback(self) -> None:
        """`call_async` gives the callback the answer, or the error of a server that is not there."""
        told: list[tuple[Any, Any]] = []
        thread = sdk.call_async(self.url, inputs={"A": 1}, callback=lambda error, answer: told.append((error, answer)))
        self.assertTrue(thread.daemon)
        sdk.call_async("http://127.0.0.1:9/", data={}, callback=lambda error, answer: told.append((error, answer)))
        eventually(lambda: len(told) == 2)
        self.assertIn((None, {"sent": {"A": 1}, "key": None}), told)
        self.assertTrue(any(isinstance(error, OSError) for error, _ in told))

    def test_call_async_without_callback(self) -> None:
        """Nobody is told of an error then, not even by a traceback."""
        with mock.patch.object(threading, "excepthook") as told:
            sdk.call_async("http://127.0.0.1:9/").join()
        told.assert_not_called()

    def test_call_from_within_infer(self) -> None:
        """An app may call a server on this machine while it answers."""
        with app_folder(CALLING_APP, streaming=False) as folder, ServerProcess(folder) as server:
            answer = ask(server.port, "POST", "/infer", {"TEXT": self.url})
        self.assertEqual(answer.json, {"OUT": "a"})


class OwnServer(TestCase):
    def test_call_of_a_streaming_app(self) -> None:
        """Our own server answers a call, in either dialect and in the form that the package sends."""
        url = f"http://127.0.0.1:{self.serve(lambda inputs, handler: self.words(inputs, handler)).port}"
        self.assertEqual(sdk.call(f"{url}/infer", data={"TEXT": "a b"}), [{"OUT": "a"}, {"OUT": "b"}])
        (event, _) = sdk.call(f"{url}/v2/models/fake/infer", data={"TEXT": "a b"})
        self.assertEqual(event, {"OUT": "a", "model_name": "fake", "model_version": "1"})
        for path in ("/infer", "/v2/models/fake/infer"):
            with self.assertRaisesRegex(RuntimeError, "out of words"):
                sdk.call(url + path, data={"TEXT": "a stop"})
        with self.assertRaisesRegex(RuntimeError, "status code 400 .*TXT"):
            sdk.call(f"{url}/infer", data={"TXT": "a"})

    @staticmethod
    def words(inputs: dict[str, Any], handler: Any) -> None:
        for word in inputs["TEXT"].split():
            if word == "stop":
                raise ValueError("out of words")
            handler.send_streamed_output({"OUT": word})

    def test_call_of_another_app(self) -> None:
        """The answer of an app that does not stream is its body."""
        server = self.serve(lambda inputs: {"OUT": inputs["TEXT"]}, streaming=False)
        url = f"http://127.0.0.1:{server.port}/v2/models/fake/infer"
        (output,) = sdk.call(url, data={"TEXT": "a"})["outputs"]
        self.assertEqual((output["name"], output["data"]), ("OUT", ["a"]))

    def test_import_inferless_is_ours_in_the_serving_process(self) -> None:
        """An app that imports inferless gets this module, with the package or without."""
        with app_folder(APP, streaming=False) as folder, ServerProcess(folder) as server:
            answer = ask(server.port, "POST", "/infer", {"TEXT": "a"}).json
        self.assertEqual(answer, {"OUT": "loaded", "from": "inferless_shim.sdk"})


if __name__ == "__main__":
    unittest.main()
