"""`import inferless` is ours: decorators change nothing, calls really call."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any

from inferless_shim import sdk
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


class EchoHandler(http.server.BaseHTTPRequestHandler):
    """Answers a POST with what it was sent and the key that came along."""

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"sent": sent, "key": self.headers["Authorization"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


class SdkTest(TestCase):
    def setUp(self) -> None:
        server = http.server.HTTPServer(("127.0.0.1", 0), EchoHandler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.url = f"http://127.0.0.1:{server.server_port}/"

    def test_decorators_leave_what_they_decorate(self) -> None:
        """Every decorator, with arguments or without, returns the very function or class."""
        app = sdk.Cls(gpu="A100")
        for decorate in (sdk.request, sdk.response, sdk.config, sdk.method, sdk.local_entry_point, app.load, app.infer):
            self.assertIs(decorate(EchoHandler), EchoHandler)
            self.assertIs(decorate(gpu="T4")(EchoHandler), EchoHandler)
            self.assertIs(decorate()(EchoHandler), EchoHandler)

    def test_call_returns_the_answer(self) -> None:
        """`call` posts the data with the key and returns the JSON answer."""
        answer = sdk.call(self.url, workspace_api_key="secret", data={"TEXT": "a"})
        self.assertEqual(answer, {"sent": {"TEXT": "a"}, "key": "Bearer secret"})

    def test_call_async_tells_the_callback(self) -> None:
        """`call_async` gives the callback the answer, or the error of a server that is not there."""
        told: list[tuple[Any, Any]] = []
        sdk.call_async(self.url, data={"A": 1}, callback=lambda error, answer: told.append((error, answer)))
        sdk.call_async("http://127.0.0.1:9/", data={}, callback=lambda error, answer: told.append((error, answer)))
        eventually(lambda: len(told) == 2)
        self.assertIn((None, {"sent": {"A": 1}, "key": None}), told)
        self.assertTrue(any(isinstance(error, OSError) for error, _ in told))

    def test_import_inferless_is_ours_in_the_serving_process(self) -> None:
        """An app that imports inferless gets this module, with the package or without."""
        with app_folder(APP, streaming=False) as folder, ServerProcess(folder) as server:
            answer = ask(server.port, "POST", "/infer", {"TEXT": "a"}).json
        self.assertEqual(answer, {"OUT": "loaded", "from": "inferless_shim.sdk"})
