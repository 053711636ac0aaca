"""The server's memory stays within the sum that README states, and reaches a good part of it: one process, full."""

from __future__ import annotations

import json
import re
import sys
import unittest
from pathlib import Path

from .support import (
    Client,
    Response,
    ServerProcess,
    TestCase,
    app_folder,
    ask,
    eventually,
    read_metrics,
    request_bytes,
)

KIB, MIB = 1024, 1024 * 1024
LOG_TOTAL, BODY_TOTAL = 24 * MIB, 48 * MIB
SLOTS, QUEUE, CONNECTIONS = 16, 31, 100
TEXT = MIB  # characters of an input: while the last is read, as many as there are places are nearly all of the room
EACH_STREAM, EACH_CONNECTION, ALWAYS = 64 * KIB, 192 * KIB, 8 * MIB  # README's figures
APP = """
    class InferlessPythonModel:
        def initialize(self):
            pass

        def infer(self, inputs, stream_output_handler):
            for _ in range(inputs["COUNT"]):
                stream_output_handler.send_streamed_output({"OUT": "x" * 10_000})
            while inputs["STAY"] and not stream_output_handler.cancelled:
                time.sleep(0.01)

    import time
"""
SCHEMA = """
    INPUT_SCHEMA = {
        "TEXT": {"datatype": "STRING", "required": False, "shape": [1]},
        "COUNT": {"datatype": "INT32", "required": True, "shape": [1]},
        "STAY": {"datatype": "BOOL", "required": True, "shape": [1]},
    }
    IS_STREAMING_OUTPUT = True
"""


def resident(server: ServerProcess, what: str = "VmRSS") -> int:
    """Return a process's resident memory in bytes; `VmHWM` is its peak."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * KIB


def unread(server: ServerProcess) -> int:
    """Return what the kernel still holds for a server: connections to accept, and bytes of those that it has (proc(5)).

    A row's second field is the address, its fifth the two queues, `sent:received`, all of it in hex.
    """
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{server.port:04X}"))


@unittest.skipUnless(sys.platform == "linux", "reads /proc")
class SumTests(TestCase):
    def setUp(self) -> None:
        folder = app_folder(APP, SCHEMA)
        self.addCleanup(folder.__exit__, None, None, None)
        limits = {
            "log-total": LOG_TOTAL, "log-cap": 2 * MIB, "body-total": BODY_TOTAL, "max-body": 8 * MIB, "queue": QUEUE,
            "concurrency": SLOTS, "max-connections": CONNECTIONS, "read-timeout": 60, "stall": 60, "linger": 60,
        }  # fmt: skip
        flags = [text for name, value in limits.items() for text in (f"--{name}", str(value))]
        self.server = ServerProcess(folder.__enter__(), *flags)
        self.server.__enter__()
        self.addCleanup(self.server.__exit__)

    def client(self) -> Client:
        client = Client(self.server.port, receive_buffer=4096)
        self.addCleanup(client.__exit__)
        return client

    def post(self, count: int, *, stay: bool, text: str = "") -> Client:
        client = self.client()
        client.send(request_bytes("POST", "/infer", {"COUNT": count, "STAY": stay, "TEXT": text}))
        return client

    def churn(self) -> None:
        """Have bodies read and parsed that come to nothing, so that the allocator keeps what it will."""
        bodies = [
            json.dumps({"TEXT": "x" * 4 * TEXT}).encode(),
            b'{"TEXT": [' + b"[0]," * 100_000 + b"[0]]}",
            b'{"TEXT": "' + b"x" * 4 * TEXT,
        ]
        for number in range(12):
            self.assertEqual(ask(self.server.port, "POST", "/infer", bodies[number % len(bodies)]).status, 400)

    def test_sum(self) -> None:
        """Every limit reached at once: what the process grew by is below the sum, and above a third of it."""
        ask(self.server.port, "POST", "/infer", {"COUNT": 10, "STAY": False})
        before = resident(self.server)
        for _ in range(8):  # finished streams, which are kept
            ask(self.server.port, "POST", "/infer", {"COUNT": 200, "STAY": False})
        self.churn()
        held = [self.post(250, stay=True) for _ in range(SLOTS)]  # nobody reads them
        for client in held:
            self.assertEqual(Response(client).status, 200)
        self.churn()
        for _ in range(QUEUE):
            self.assertEqual(Response(self.post(1, stay=True, text="x" * TEXT)).status, 200)
        self.assertEqual(ask(self.server.port, "POST", "/infer", {"COUNT": 1, "STAY": True}).status, 503)
        refused = ask(self.server.port, "POST", "/infer", {"COUNT": 1, "STAY": True, "TEXT": "x" * 2 * TEXT})
        self.assertEqual(refused.status, 503)
        self.assertIn("--body-total", refused.json["error"])
        head = request_bytes("POST", "/infer", None, {f"X-{n}": "v" * 640 for n in range(95)})[:-2]
        sent = 10 + 8 * 200 + SLOTS * 250
        watcher = self.client()

        def full() -> bool:
            """Fill up the connections, among them those of readers that fell behind; True once all is read and sent."""
            if unread(self.server):
                return False  # whatever is accepted is counted
            figures = read_metrics(watcher.request("GET", "/metrics").read().body.decode())
            missing = CONNECTIONS - int(figures["shim_connections"].value())
            for _ in range(missing):
                self.client().send(head)
            return not missing and figures["shim_events_total"].value() == sent

        eventually(full)
        grown, peak = resident(self.server) - before, resident(self.server, "VmHWM") - before
        bound = LOG_TOTAL * 9 // 8 + BODY_TOTAL + (SLOTS + QUEUE) * EACH_STREAM + CONNECTIONS * EACH_CONNECTION + ALWAYS
        self.assertLessEqual(peak, bound)
        self.assertGreaterEqual(grown, bound // 3)


if __name__ == "__main__":
    unittest.main()
