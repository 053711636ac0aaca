"""An infer that never comes back, in a server process: who is told what, and what `--on-stuck` makes of it.

Time is the test's: a run is late when the file `late` is there, and lost when `lost` is.
"""

from __future__ import annotations

import signal
import unittest
from pathlib import Path
from typing import Any

from tests.support import Client, ServerProcess, TestCase, app_folder, ask, eventually, request_bytes

PROGRAM = """
import os, sys
from inferless_shim import cli, run
def is_late(self, now, grace=0.0):
    return self.deadline is not None and os.path.exists("lost" if grace else "late")
run.Run.is_late = is_late
sys.exit(cli.main(sys.argv[2:]))
"""
APP = """
    import os, threading, time
    class InferlessPythonModel:
        def infer(self, inputs, handler):
            handler.send_streamed_output({"OUT": inputs["TEXT"]})
            while inputs["TEXT"] == "stuck" and not os.path.exists("let go"):
                time.sleep(0.01)
        def finalize(self):
            print("finalize")
"""


class StuckTests(TestCase):
    def start(self, *flags: str) -> ServerProcess:
        context = app_folder(APP)
        self.folder: Path = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        server = ServerProcess(self.folder, *flags, python=("-c", PROGRAM))
        self.addCleanup(server.__exit__)
        server.wait_until_ready()
        return server

    def client(self, server: ServerProcess) -> Client:
        client = Client(server.port)
        self.addCleanup(client.__exit__)
        return client

    def follow(self, server: ServerProcess, method: str, target: str, body: Any = None) -> Any:
        return self.client(server).request(method, target, body)

    def ends(self, *responses: Any) -> list[str]:
        for response in responses:
            response.read()
            self.assertTrue(response.complete, "its end was cut off")
        return [each.events[-1].data.get("code", each.events[-1].event) for each in responses]

    def get_stuck(self, server: ServerProcess) -> Any:
        stuck = self.follow(server, "POST", "/infer", {"TEXT": "stuck"})
        next(stuck.chunks())
        return stuck

    def test_exit(self) -> None:
        """The client of the stuck infer has its `timeout` first; who waits gets `shutting_down`; status 70.

        So does whoever follows either stream again; nobody's answer is cut off, and finalize does not run beside infer.
        """
        server = self.start("--on-stuck", "exit")
        stuck = self.get_stuck(server)
        queued = self.follow(server, "POST", "/infer", {"TEXT": "queued"})
        answer = self.client(server)
        answer.send(request_bytes("POST", "/v2/models/made/generate", {"TEXT": "answer"}))
        replays = [self.follow(server, "GET", each.fields["content-location"]) for each in (stuck, queued)]
        (self.folder / "late").touch()
        self.assertEqual(self.ends(stuck, replays[0]), ["timeout", "timeout"])
        self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 200)  # it has its grace
        again = ask(server.port, "GET", stuck.fields["content-location"])
        self.assertEqual(again.body, stuck.body)
        (self.folder / "lost").touch()
        self.assertEqual(self.ends(queued, replays[1]), ["shutting_down", "shutting_down"])
        self.assertIn(b" 503 ", answer.read_until(b"\r\n"))
        self.assertEqual(server.finish(), 70)
        self.assertIn("exit (--on-stuck)", server.log)
        self.assertNotIn("Traceback", server.log)
        self.assertEqual(server.out, "")

    def test_stay(self) -> None:
        """Without it the server stays, not ready, and says why; when infer ends after all it is ready again.

        What was queued is told at once, and does not wait for that.
        """
        server = self.start()
        stuck = self.get_stuck(server)
        queued = self.follow(server, "POST", "/infer", {"TEXT": "queued"})
        (self.folder / "late").touch()
        self.assertEqual(self.ends(stuck), ["timeout"])
        (self.folder / "lost").touch()
        eventually(lambda: ask(server.port, "GET", "/v2/health/ready").status == 503)
        for response in (
            ask(server.port, "GET", "/v2/health/ready"),
            ask(server.port, "POST", "/infer", {"TEXT": "x"}),
        ):
            self.assertEqual(response.status, 503)
            self.assertIn("Every slot is held by an infer that does not end", response.json["error"])
        self.assertEqual(ask(server.port, "GET", "/v2/health/live").status, 200)
        (self.folder / "late").unlink()
        (self.folder / "lost").unlink()
        (self.folder / "let go").touch()
        self.assertEqual(self.ends(queued), ["shutting_down"])
        eventually(lambda: ask(server.port, "GET", "/v2/health/ready").status == 200)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.finish(), 0)

    def test_sigterm_while_stuck(self) -> None:
        """A stuck infer does not hold the exit, whose status is 0: somebody wanted it."""
        server = self.start("--stuck-grace", "50ms")
        stuck = self.get_stuck(server)
        (self.folder / "late").touch()
        (self.folder / "lost").touch()
        self.assertEqual(self.ends(stuck), ["timeout"])
        eventually(lambda: ask(server.port, "GET", "/v2/health/ready").status == 503)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.finish(), 0)
        self.assertEqual(server.out, "")

    def test_one_of_two(self) -> None:
        """With a slot left the server is ready, and `--on-stuck exit` waits."""
        server = self.start("--on-stuck", "exit", "--concurrency", "2")
        stuck = self.get_stuck(server)
        (self.folder / "late").touch()
        (self.folder / "lost").touch()
        self.assertEqual(self.ends(stuck), ["timeout"])
        eventually(lambda: "its slot is lost" in server.log)
        (self.folder / "late").unlink()
        self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 200)
        (self.folder / "lost").unlink()
        response = ask(server.port, "POST", "/infer", {"TEXT": "other"})
        self.assertEqual([event.event for event in response.events], [None, "done"])
        self.assertIsNone(server.process.poll())


if __name__ == "__main__":
    unittest.main()
