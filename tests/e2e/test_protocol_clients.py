"""Real clients of the Inference Protocol: `tritonclient[http]` with its defaults, and the PyPI package `inferless`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import unittest
from pathlib import Path
from typing import Any

from tests.e2e.wire import TestCase, need, served
from tests.support import app_folder

MISSING = "is missing: pip install -r tests/e2e/requirements.txt, and --no-deps -r tests/e2e/requirements-no-deps.txt"

# Gives back what it gets, and says in SEEN what that was; a list of any length for every datatype.
ECHO_SCHEMA = """
    WIDTHS = [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)] + ["FP16", "BF16", "FP32", "FP64"]
    INPUT_SCHEMA = {
        name: {"datatype": name, "required": False, "shape": [-1]} for name in [*WIDTHS, "BOOL", "BYTES"]
    } | {
        "TEXT": {"datatype": "STRING", "required": False, "shape": [1]},
        "SQUARE": {"datatype": "FP32", "required": False, "shape": [2, 2]},
        "RAISE": {"datatype": "STRING", "required": False, "shape": [1]},
    }
"""
ECHO_APP = """
    import json

    class InferlessPythonModel:
        def initialize(self):
            self.calls = 0

        def infer(self, inputs):
            if "RAISE" in inputs:
                raise RuntimeError(inputs["RAISE"])
            self.calls += 1
            return {**inputs, "SEEN": json.dumps(inputs), "CALLS": self.calls}

        def finalize(self):
            pass
"""
# Makes what its CODE says, with numpy and ml_dtypes (the client's own dependency, which has bfloat16).
MAKER_SCHEMA = 'INPUT_SCHEMA = {"CODE": {"datatype": "STRING", "required": True, "shape": [1]}}'
MAKER_APP = """
    import ml_dtypes
    import numpy

    class InferlessPythonModel:
        def infer(self, inputs):
            return {"OUT": eval(inputs["CODE"], {"numpy": numpy, "ml_dtypes": ml_dtypes})}
"""
BATCH_SCHEMA = """
    INPUT_SCHEMA = {
        "TEXT": {"datatype": "STRING", "required": True, "shape": [1]},
        "NUMBERS": {"datatype": "INT64", "required": False, "shape": [-1]},
    }
    BATCH_SIZE = 4
    BATCH_WINDOW = 1
"""
BATCH_APP = """
    class InferlessPythonModel:
        def infer(self, inputs):
            return [{"OUT": each["TEXT"].upper(), "SUM": sum(each.get("NUMBERS", []))} for each in inputs]
"""
STREAM_APP = """
    class InferlessPythonModel:
        def infer(self, inputs, stream_output_handler):
            for word in inputs["TEXT"].split():
                stream_output_handler.send_streamed_output({"OUT": word})
            stream_output_handler.finalise_streamed_output()
"""

# What is sent of each datatype, and what the app must see.
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    "INT8": [-128, 0, 127],
    "INT16": [-(2**15), 258, 2**15 - 1],
    "INT32": [-(2**31), 1, 2**31 - 1],
    "INT64": [-(2**63), 1, 2**63 - 1],
    "UINT8": [0, 1, 255],
    "UINT16": [0, 258, 2**16 - 1],
    "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "FP16": [0.5, -65504.0, 2.0**-24],
    "BF16": [0.5, -1.0, 3.140625],
    "FP32": [0.5, -1.5, 2.0**-149],
    "FP64": [0.1, -1e300, 5e-324],
    "BYTES": ["", "plain", "é漢😀\n\0"],
}


class ServedTestCase(TestCase):
    """Against a server of an app folder, in a process of its own."""

    @classmethod
    def serve_folder(cls, app: str, schema: str | None, name: str) -> int:
        folder: Path = cls.hold_for_class(app_folder(app, schema, name=name))
        return cls.hold_for_class(served(folder)).port


class TritonTestCase(ServedTestCase):
    app, schema, model = ECHO_APP, ECHO_SCHEMA, "echo"

    @classmethod
    def setUpClass(cls) -> None:
        for package in ("tritonclient", "geventhttpclient", "numpy", "ml_dtypes"):
            need(importlib.util.find_spec(package), f"{package} {MISSING}")
        from tritonclient.http import InferenceServerClient

        cls.port = cls.serve_folder(cls.app, cls.schema, cls.model)
        cls.client = InferenceServerClient(f"127.0.0.1:{cls.port}", concurrency=2)
        cls.addClassCleanup(cls.client.close)

    def dtype(self, datatype: str) -> Any:
        import numpy
        from tritonclient.utils import triton_to_np_dtype

        return numpy.dtype(triton_to_np_dtype(datatype))

    def tensor(self, name: str, values: Any, datatype: str, *, binary: bool = True) -> Any:
        import numpy
        from tritonclient.http import InferInput

        array = numpy.array(values, dtype=self.dtype(datatype))
        made = InferInput(name, list(array.shape), datatype)
        return made.set_data_from_numpy(array, binary_data=binary)

    def text(self, words: str, name: str = "TEXT") -> Any:
        return self.tensor(name, [words], "BYTES")

    def wanted(self, name: str, *, binary: bool) -> Any:
        from tritonclient.http import InferRequestedOutput

        return InferRequestedOutput(name, binary_data=binary)

    def seen(self, result: Any) -> Any:
        """Return the inputs as the app saw them."""
        (text,) = result.as_numpy("SEEN")
        return json.loads(text)

    def assert_refused(self, words: str, call: Any, *args: Any, status: str = "400", **named: Any) -> None:
        from tritonclient.utils import InferenceServerException

        with self.assertRaises(InferenceServerException) as caught:
            call(*args, **named)
        self.assertIn(words, caught.exception.message())
        self.assertEqual(caught.exception.status(), status)


class TritonDescriptionTest(TritonTestCase):
    def test_health(self) -> None:
        """Live, ready, and the model ready; another version or model is not."""
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        for version in ("", "1"):
            self.assertTrue(self.client.is_model_ready("echo", version))
        self.assertFalse(self.client.is_model_ready("echo", "2"))
        self.assertFalse(self.client.is_model_ready("other"))

    def test_metadata(self) -> None:
        """Server and model are described; outputs are known once there was an answer."""
        self.assertIn("binary_tensor_data", self.client.get_server_metadata()["extensions"])
        self.client.infer("echo", [self.tensor("INT8", [1, 2], "INT8"), self.text("x")])
        for version in ("", "1"):
            metadata = self.client.get_model_metadata("echo", version)
            self.assertEqual((metadata["name"], metadata["versions"]), ("echo", ["1"]))
            inputs = {each["name"]: (each["datatype"], each["shape"]) for each in metadata["inputs"]}
            for datatype in VALUES:
                self.assertEqual(inputs[datatype], (datatype, [-1]))
            self.assertEqual((inputs["TEXT"], inputs["SQUARE"]), (("BYTES", [1]), ("FP32", [2, 2])))
            outputs = {each["name"]: (each["datatype"], each["shape"]) for each in metadata["outputs"]}
            known = {"INT8": ("INT64", [-1]), "TEXT": ("BYTES", [1]), "CALLS": ("INT64", [1])}
            self.assertEqual(outputs, outputs | known)
        self.assert_refused("no model other", self.client.get_model_metadata, "other", status="404")

    def test_config(self) -> None:
        """The configuration is in Triton's words."""
        config = self.client.get_model_config("echo", "1")
        self.assertEqual((config["name"], config["max_batch_size"]), ("echo", 0))
        inputs = {each["name"]: (each["data_type"], each["dims"]) for each in config["input"]}
        self.assertEqual(inputs["TEXT"], ("TYPE_STRING", [1]))
        self.assertEqual(inputs["UINT16"], ("TYPE_UINT16", [-1]))
        self.assertEqual(inputs["BF16"], ("TYPE_BF16", [-1]))

    def test_index(self) -> None:
        """The repository holds one model."""
        (entry,) = self.client.get_model_repository_index()
        self.assertEqual((entry["name"], entry["version"], entry["state"]), ("echo", "1", "READY"))

    def test_what_there_is_not(self) -> None:
        """What is not there is a 404 in words that the client shows."""
        self.assert_refused("There is nothing at", self.client.get_inference_statistics, "echo", status="404")
        self.assert_refused("There is nothing at", self.client.get_trace_settings, status="404")


class TritonInferTest(TritonTestCase):
    def test_datatypes(self) -> None:
        """Every datatype on the way in, as bytes and as JSON: the app sees the values."""
        for datatype, values in VALUES.items():
            for binary in (True, False):
                if datatype == "BF16" and not binary:
                    continue  # the client refuses to
                with self.subTest(datatype, binary=binary):
                    sent = [self.tensor(datatype, values, datatype, binary=binary)]
                    # SEEN alone: Python's int goes back as INT64, where not every UINT64 fits.
                    result = self.client.infer("echo", sent, outputs=[self.wanted("SEEN", binary=binary)])
                    self.assertEqual(self.seen(result), {datatype: values})

    def test_datatypes_back(self) -> None:
        """On the way back BOOL, INT64, FP64 and BYTES, as bytes (the default) and as JSON."""
        for datatype, values in VALUES.items():
            told = {"BOOL": "BOOL", "BYTES": "BYTES"}.get(datatype, "FP64" if "F" in datatype else "INT64")
            for outputs in (None, [self.wanted(datatype, binary=True)], [self.wanted(datatype, binary=False)]):
                if datatype == "UINT64":
                    values = values[:2]  # Python's int goes out as INT64
                with self.subTest(datatype, outputs=outputs):
                    sent = [self.tensor(datatype, values, datatype)]
                    result = self.client.infer("echo", sent, outputs=outputs)
                    output = result.get_output(datatype)
                    self.assertEqual((output["datatype"], output["shape"]), (told, [len(values)]))
                    back = [
                        each.decode() if isinstance(each, bytes) else each
                        for each in result.as_numpy(datatype).tolist()
                    ]
                    self.assertEqual(back, values)

    def test_defaults(self) -> None:
        """Asked for nothing, all outputs come back as binary data; the request's id comes back, too."""
        result = self.client.infer("echo", [self.text("héllo")], request_id="seven")
        response = result.get_response()
        self.assertEqual((response["id"], response["model_name"], response["model_version"]), ("seven", "echo", "1"))
        for output in response["outputs"]:
            self.assertEqual(output.keys(), {"name", "datatype", "shape", "parameters"})
        self.assertEqual(result.as_numpy("TEXT").tolist(), ["héllo".encode()])
        self.assertNotIn("id", self.client.infer("echo", [self.text("x")]).get_response())

    def test_outputs(self) -> None:
        """A subset in its own order, each output as it was asked for; an unknown one is refused."""
        wanted = [self.wanted("SEEN", binary=False), self.wanted("TEXT", binary=True)]
        result = self.client.infer("echo", [self.text("x")], model_version="1", outputs=wanted)
        seen, text = result.get_response()["outputs"]
        self.assertEqual((seen["name"], seen["data"]), ("SEEN", ['{"TEXT": "x"}']))
        self.assertEqual((text["name"], text["parameters"]), ("TEXT", {"binary_data_size": 5}))
        for binary in (True, False):
            outputs = [self.wanted("NONE", binary=binary)]
            self.assert_refused('"NONE" is not an output', self.client.infer, "echo", [self.text("x")], outputs=outputs)

    def test_mixed(self) -> None:
        """Binary inputs among others with their data in JSON."""
        sent = [
            self.tensor("INT8", [1, 2], "INT8"),
            self.tensor("FP32", [0.5, 1.5], "FP32", binary=False),
            self.text("é"),
            self.tensor("BOOL", [True, False], "BOOL", binary=False),
            self.tensor("BYTES", ["a", ""], "BYTES"),
        ]
        expected = {"INT8": [1, 2], "FP32": [0.5, 1.5], "TEXT": "é", "BOOL": [True, False], "BYTES": ["a", ""]}
        self.assertEqual(self.seen(self.client.infer("echo", sent)), expected)

    def test_shapes(self) -> None:
        """[1] is a scalar, [-1] takes any length and none, [2, 2] nests; a shape that does not fit is refused."""
        table: list[tuple[str, Any, Any]] = [
            ("INT32", [5], 5),
            ("INT32", [], []),
            ("INT32", list(range(1000)), list(range(1000))),
            ("SQUARE", [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]]),
        ]
        for name, values, seen in table:
            datatype = "FP32" if name == "SQUARE" else name
            with self.subTest(name, values=str(values)[:20]):
                result = self.client.infer("echo", [self.tensor(name, values, datatype)])
                self.assertEqual(self.seen(result), {name: seen})
                if name == "SQUARE":
                    self.assertEqual(result.as_numpy(name).shape, (2, 2))
        for values in ([1.0, 2.0, 3.0, 4.0], [[1.0, 2.0]]):
            self.assert_refused("SQUARE must be", self.client.infer, "echo", [self.tensor("SQUARE", values, "FP32")])

    def test_other_datatype_than_declared(self) -> None:
        """The schema decides: integers are fine numbers, of any width; a fraction is no integer."""
        self.assertEqual(
            self.seen(self.client.infer("echo", [self.tensor("FP32", [1, 2], "INT64")])), {"FP32": [1.0, 2.0]}
        )
        self.assertEqual(
            self.seen(self.client.infer("echo", [self.tensor("INT8", [300, 1], "INT64")])), {"INT8": [300, 1]}
        )
        self.assertEqual(
            self.seen(self.client.infer("echo", [self.tensor("INT8", [2.0, 1.0], "FP64")])), {"INT8": [2, 1]}
        )
        self.assert_refused("INT8 must be", self.client.infer, "echo", [self.tensor("INT8", [0.5, 1.0], "FP32")])
        self.assert_refused("TEXT must be a string", self.client.infer, "echo", [self.tensor("TEXT", [1], "INT8")])

    def test_errors(self) -> None:
        """What is wrong comes to the user in the server's own words."""
        infer = self.client.infer
        self.assert_refused("did you mean TEXT?", infer, "echo", [self.text("x", "TXT")])
        self.assert_refused("nan at position 1", infer, "echo", [self.tensor("FP64", [0.5, math.nan], "FP64")])
        self.assert_refused("not UTF-8 at position 0", infer, "echo", [self.tensor("TEXT", [b"\xff"], "BYTES")])
        self.assert_refused("no model other", infer, "other", [self.text("x")], status="404")
        self.assert_refused("the only one is 1", infer, "echo", [self.text("x")], model_version="2", status="404")
        self.assert_refused("fell over", infer, "echo", [self.text("it fell over", "RAISE")], status="500")
        compressed = {"request_compression_algorithm": "gzip"}
        self.assert_refused("uncompressed", infer, "echo", [self.text("x")], status="415", **compressed)

    def test_classification(self) -> None:
        """Classes instead of the output itself are refused in words."""
        from tritonclient.http import InferRequestedOutput

        outputs = [InferRequestedOutput("FP32", class_count=2)]
        self.assert_refused("classification", self.client.infer, "echo", [self.text("x")], outputs=outputs)

    def test_what_is_ignored(self) -> None:
        """Parameters of one's own, a priority, a sequence, an offer to take a compressed answer change nothing."""
        ignored = {"sequence_id": 5, "sequence_start": True, "priority": 1, "timeout": 10**6, "parameters": {"a": 1}}
        result = self.client.infer("echo", [self.text("x")], response_compression_algorithm="gzip", **ignored)
        self.assertEqual(self.seen(result), {"TEXT": "x"})

    def test_many_elements(self) -> None:
        """A million numbers, as bytes both ways."""
        import numpy

        values = numpy.arange(1_000_000, dtype=numpy.float32)
        outputs = [self.wanted("FP32", binary=True)]
        result = self.client.infer("echo", [self.tensor("FP32", values, "FP32")], outputs=outputs)
        self.assertTrue((result.as_numpy("FP32") == values).all())

    def test_async_infer(self) -> None:
        """The client's own pool of requests."""
        pending = [self.client.async_infer("echo", [self.text(str(number))]) for number in range(5)]
        self.assertEqual([self.seen(each.get_result())["TEXT"] for each in pending], ["0", "1", "2", "3", "4"])

    def test_aio(self) -> None:
        """The asyncio client says the same."""
        need(importlib.util.find_spec("aiohttp"), f"aiohttp {MISSING}")

        async def infer() -> Any:
            from tritonclient.http.aio import InferenceServerClient

            async with InferenceServerClient(f"127.0.0.1:{self.port}") as client:
                assert await client.is_model_ready("echo")
                return await client.infer("echo", [self.text("é")], request_id="seven")

        result = asyncio.run(infer())
        self.assertEqual((self.seen(result), result.get_response()["id"]), ({"TEXT": "é"}, "seven"))


class TritonNumpyTest(TritonTestCase):
    """What an app makes with numpy comes back as it was: its width, its shape, its values."""

    app, schema, model = MAKER_APP, MAKER_SCHEMA, "maker"

    def made(self, code: str, *, binary: bool = True) -> tuple[str, Any]:
        outputs = [self.wanted("OUT", binary=binary)]
        result = self.client.infer("maker", [self.text(code, "CODE")], outputs=outputs)
        return result.get_output("OUT")["datatype"], result.as_numpy("OUT")

    def test_widths(self) -> None:
        """Every dtype goes out as its own datatype, as bytes and as JSON."""
        for datatype, values in VALUES.items():
            if datatype == "BYTES":
                continue
            name = "ml_dtypes.bfloat16" if datatype == "BF16" else f"'{self.dtype(datatype).name}'"
            for binary in (True, False):
                with self.subTest(datatype, binary=binary):
                    told, array = self.made(f"numpy.array([{values}, {values}], dtype={name})", binary=binary)
                    self.assertEqual((told, array.dtype), (datatype, self.dtype(datatype)))
                    self.assertEqual(array.tolist(), [values, values])

    def test_layouts(self) -> None:
        """However an array lies in memory, its elements go out row by row, little-endian."""
        for code, expected in (
            ("numpy.arange(6, dtype='int32').reshape(2, 3).T", [[0, 3], [1, 4], [2, 5]]),
            ("numpy.arange(10, dtype='int16')[::-3]", [9, 6, 3, 0]),
            ("numpy.asfortranarray([[1, 2], [3, 4]])", [[1, 2], [3, 4]]),
            ("numpy.array([1, 258], dtype='>i4')", [1, 258]),
            ("numpy.array([1.5, 2.5], dtype='>f8')", [1.5, 2.5]),
            ("numpy.float32(0.5)", [0.5]),
            ("numpy.bool_(True)", [True]),
            ("numpy.array(7, dtype='uint8')", [7]),
            ("numpy.zeros((0, 3), dtype='float32')", []),
            ("numpy.broadcast_to(numpy.int8(3), (2, 2))", [[3, 3], [3, 3]]),
        ):
            for binary in (True, False):
                with self.subTest(code, binary=binary):
                    self.assertEqual(self.made(code, binary=binary)[1].tolist(), expected)

    def test_not_finite(self) -> None:
        """NaN and Infinity go out as bytes; JSON has no words for them."""
        for dtype in ("'float16'", "'float32'", "'float64'", "ml_dtypes.bfloat16"):
            _, array = self.made(f"numpy.array([numpy.nan, numpy.inf, -numpy.inf], dtype={dtype})")
            self.assertTrue(math.isnan(array[0]))
            self.assertEqual(array[1:].tolist(), [math.inf, -math.inf])
        outputs = [self.wanted("OUT", binary=False)]
        code = [self.text("numpy.array([numpy.nan])", "CODE")]
        self.assert_refused("NaN or Infinity", self.client.infer, "maker", code, outputs=outputs, status="500")

    def test_text(self) -> None:
        """Strings of every sort are BYTES; bytes come back as they were; what has no datatype is JSON text."""
        for code, expected in (
            ("numpy.array(['é', 'b'])", ["é".encode(), b"b"]),
            ("numpy.array([b'a', b'bc'])", [b"a", b"bc"]),
            ("numpy.array(['é', 'b'], dtype=object)", ["é".encode(), b"b"]),
            ("b'\\xff\\x00\\xfe'", [b"\xff\x00\xfe"]),
            ("None", [b"null"]),
            ("{'a': numpy.array([1, 2])}", [b'{"a": [1, 2]}']),
            ("[[1], [2, 3]]", [b"[[1], [2, 3]]"]),
        ):
            with self.subTest(code):
                datatype, array = self.made(code)
                self.assertEqual((datatype, array.tolist()), ("BYTES", expected))


class TritonRepositoryTest(TritonTestCase):
    def test_unload_and_load(self) -> None:
        """Unloaded, the model is not ready and says so; load brings a new instance back."""
        self.client.infer("echo", [self.text("x")])
        self.client.unload_model("echo")
        self.assertFalse(self.client.is_model_ready("echo"))
        self.assertEqual(self.client.get_model_repository_index()[0]["state"], "UNAVAILABLE")
        self.assert_refused("unloaded", self.client.infer, "echo", [self.text("x")], status="503")
        self.client.load_model("echo")
        self.assertTrue(self.client.is_model_ready("echo"))
        self.assertEqual(self.client.get_model_repository_index()[0]["state"], "READY")
        self.assertEqual(self.client.infer("echo", [self.text("x")]).as_numpy("CALLS").tolist(), [1])

    def test_refused(self) -> None:
        """Another configuration and another model are refused in words."""
        self.assert_refused("not supported", self.client.load_model, "echo", config="{}")
        for call in (self.client.load_model, self.client.unload_model):
            self.assert_refused("no model other", call, "other", status="404")


class InferlessTest(ServedTestCase):
    """The PyPI package's `call`, as the documentation's examples use it."""

    @classmethod
    def setUpClass(cls) -> None:
        need(importlib.util.find_spec("inferless"), f"inferless {MISSING}")
        cls.echo = f"http://127.0.0.1:{cls.serve_folder(ECHO_APP, ECHO_SCHEMA, 'echo')}/v2/models/echo"
        cls.batch = f"http://127.0.0.1:{cls.serve_folder(BATCH_APP, BATCH_SCHEMA, 'batch')}/v2/models/batch"
        cls.stream = f"http://127.0.0.1:{cls.serve_folder(STREAM_APP, None, 'stream')}/v2/models/stream"

    def outputs(self, answer: Any) -> dict[str, Any]:
        return {output["name"]: output["data"] for output in answer["outputs"]}

    def test_call_data(self) -> None:
        """`data` becomes tensors of BYTES, INT64, FP64 and BOOL, whatever the schema says."""
        import inferless

        data = {
            "TEXT": "There is a fine house in the forest", "INT32": 5, "FP16": 0.5, "BOOL": True,
            "INT8": [1, 2], "FP32": [1.0, 2.5], "BYTES": ["é", "b"], "SQUARE": [[1.0, 2.0], [3.0, 4.0]],
        }  # fmt: skip
        answer = inferless.call(self.echo + "/infer", "key", data=data)
        self.assertEqual((answer["model_name"], answer["model_version"]), ("echo", "1"))
        outputs = self.outputs(answer)
        self.assertEqual(json.loads(outputs["SEEN"][0]), data)
        self.assertEqual(outputs["SQUARE"], [1.0, 2.0, 3.0, 4.0])

    def test_call_data_of_numpy(self) -> None:
        """Arrays are sent by their width."""
        import inferless
        import numpy

        data = {"FP32": numpy.array([0.5, 1.5], "float32"), "UINT8": numpy.array([1, 255], "uint8")}
        seen = self.outputs(inferless.call(self.echo + "/infer", "key", data=data))["SEEN"]
        self.assertEqual(json.loads(seen[0]), {"FP32": [0.5, 1.5], "UINT8": [1, 255]})

    def test_call_inputs(self) -> None:
        """`inputs` is the body as it stands, with Inferless's own extra keys."""
        import inferless

        tensor = {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["a"], "optional": True}
        answer = inferless.call(self.echo + "/infer", "key", inputs={"inputs": [tensor], "id": "seven"})
        self.assertEqual((self.outputs(answer)["TEXT"], answer["id"]), (["a"], "seven"))

    def test_call_batch(self) -> None:
        """`is_batch` puts a dimension of 1 in front, which an app with BATCH_SIZE takes."""
        import inferless

        for numbers, total in (([4, 5], 9), ([1, 2, 3], 6)):
            data = {"TEXT": "a", "NUMBERS": numbers}
            answer = inferless.call(self.batch + "/infer", "key", data=data, is_batch=True)
            self.assertEqual(self.outputs(answer), {"OUT": ["A"], "SUM": [total]})

    def test_call_generate(self) -> None:
        """A streaming app's answer as one JSON body."""
        import inferless

        answer = inferless.call(self.stream + "/generate", "key", inputs={"parameters": {"TEXT": "a b"}})
        self.assertEqual(answer, {"OUT": "ab", "model_name": "stream", "model_version": "1"})

    def test_call_errors(self) -> None:
        """What is wrong is in the exception, in the server's own words, or goes to the callback."""
        import inferless

        with self.assertRaisesRegex(Exception, "status code 400 .*did you mean TEXT"):
            inferless.call(self.echo + "/infer", "key", data={"TXT": "a"})
        told: list[Any] = []
        thread = inferless.call_async(
            self.echo + "/infer", "key", data={"TEXT": 5}, callback=lambda error, answer: told.append((error, answer))
        )
        thread.join()
        ((error, answer),) = told
        self.assertIsNone(answer)
        self.assertIn("TEXT must be a string, got the integer 5", str(error))


if __name__ == "__main__":
    unittest.main()
