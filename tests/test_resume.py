"""Shows 3: a client that is cut off, however and wherever, comes back and has every event exactly once, in order."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any

from inferless_shim.app import Server
from tests.support import (
    MS,
    Client,
    Event,
    SharedServer,
    TestCase,
    ask,
    eventually,
    parse_events,
    request_bytes,
    serving,
)

SEED = os.environ.get("SEED", str(random.randrange(1 << 32)))
STREAMS, AT_A_TIME, MOST_CUTS = 200, 64, 4
EVENTS = 40
# Of the streams that their reader stops reading: more in all than the socket buffers of both ends hold.
LARGE = 8_000
SCHEMA = {
    "SEED": {"datatype": "STRING", "required": True, "shape": [1]},
    "SIZE": {"datatype": "INT32", "required": True, "shape": [1]},
}
Cut = Callable[[Server, Client], None]


def outputs(seed: str, size: int) -> list[dict[str, Any]]:
    """Return what the app sends for these inputs."""
    chance = random.Random(seed)
    return [{"N": number, "OUT": chance.choice("xé😀") * chance.randrange(size)} for number in range(EVENTS)]


def infer(inputs: dict[str, Any], handler: Any) -> None:
    """Send them, now in a hurry, now with pauses."""
    chance = random.Random(inputs["SEED"] + " pauses")
    for output in outputs(inputs["SEED"], inputs["SIZE"]):
        if chance.random() < 0.5:
            time.sleep(chance.random() * 5 * MS)
        handler.send_streamed_output(output)


def split_response(raw: bytes) -> tuple[str, bytes, bool]:
    """Return head, body without framing, and whether it is whole, of as much of a response as has come."""
    head, found, rest = raw.partition(b"\r\n\r\n")
    if not found or b"chunked" not in head:
        return (head.decode() if found else ""), rest, False
    body = b""
    while rest:
        line, found, rest = rest.partition(b"\r\n")
        if not found:
            break
        size = int(line, 16)
        if not size:
            return head.decode(), body, rest == b"\r\n"
        body += rest[:size]
        rest = rest[size + 2 :]
    return head.decode(), body, False


# ---- Ways to be cut off


def disconnect(server: Server, client: Client) -> None:
    client.sock.close()


def half_close(server: Server, client: Client) -> None:
    client.half_close()


def stop_reading(server: Server, client: Client) -> None:
    """Read nothing until the server has given up on us, or has nothing more to say."""
    address = client.sock.getsockname()
    eventually(lambda: address not in peers(server))


def peers(server: Server) -> list[Any]:
    found = []
    for handler in list(server._handlers):
        with contextlib.suppress(OSError):
            found.append(handler.connection.sock.getpeername())
    return found


class Reader:
    """One client with its own random fate: it is cut off, comes back, and keeps what it got."""

    def __init__(self, server: Server, index: int) -> None:
        self.server = server
        self.chance = random.Random(f"{SEED}/{index}")
        self.cut: Cut = (disconnect, half_close, stop_reading)[index % 3]
        self.version = ("1.1", "1.0")[index // 3 % 2]
        self.inputs = {"SEED": f"{SEED}/{index}", "SIZE": LARGE if self.cut is stop_reading else 100}
        self.cuts = self.chance.randint(1, MOST_CUTS)
        self.stream: str | None = None
        self.events: list[Event] = []
        self.attempts = 0

    def run(self) -> None:
        while not (self.events and self.events[-1].event):
            self.attempts += 1
            assert self.attempts < 1000, "it comes back again and again and gets nothing"
            self._take(self._attempt())

    def _attempt(self) -> bytes:
        """Ask, and read until the cut or the end; return all that came."""
        cut_at = self.chance.randrange(self._likely_size()) if self.cuts else None
        raw = bytearray()
        receive_buffer = 4096 if self.cut is stop_reading and self.cuts else None
        with Client(self.server.port, receive_buffer=receive_buffer) as client, contextlib.suppress(OSError):
            client.send(self._request())
            while True:
                data = client.sock.recv(65536 if cut_at is None else max(1, cut_at - len(raw)))
                if not data:
                    break
                raw += data
                if cut_at is not None and len(raw) >= cut_at:
                    cut_at = None
                    self.cuts -= 1
                    self.cut(self.server, client)
        return bytes(raw)

    def _likely_size(self) -> int:
        """Return how many bytes an answer has at most, or fewer, to cut in the head and in the first event, too."""
        return self.chance.choice([500, 1000, EVENTS * (self.inputs["SIZE"] + 100)])

    def _request(self) -> bytes:
        number = self.events[-1].number if self.events else 0
        fields = {"Idempotency-Key": self.inputs["SEED"], "Connection": "close"}
        if self.stream is not None and (number or self.chance.random() < 0.5):
            fields["Last-Event-ID"] = f"{self.stream}-{number}"
            if self.chance.random() < 0.5:
                return request_bytes("GET", f"/streams/{self.stream}", None, fields, self.version)
        # One that was cut off in the head knows no id: its key finds the stream.
        return request_bytes("POST", "/infer", self.inputs, fields, self.version)

    def _take(self, raw: bytes) -> None:
        head, body, complete = split_response(raw)
        if not head:
            return
        assert head.startswith("HTTP/1.1 200 OK"), head
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
        assert self.stream in (None, fields["stream-id"]), "another stream"
        self.stream = fields["stream-id"]
        # Nothing is sorted or dropped here: what came twice or out of order is found by `check`.
        self.events += parse_events(body.decode("utf-8", "replace"))
        ended = bool(self.events and self.events[-1].event)
        assert not complete or ended, "a clean end without the last event"

    def check(self, test: unittest.TestCase) -> None:
        expected = outputs(self.inputs["SEED"], self.inputs["SIZE"])
        test.assertEqual([event.number for event in self.events], list(range(1, EVENTS + 2)))
        test.assertEqual([event.data for event in self.events[:-1]], expected)
        test.assertEqual((self.events[-1].event, self.events[-1].data["events"]), ("done", EVENTS))


class ResumeTests(TestCase):
    def test_cut_anywhere(self) -> None:
        """200 streams, 64 at a time, each cut up to 4 times at a random byte: by disconnect, half-close, no reading."""
        with serving(
            infer, SCHEMA, concurrency=AT_A_TIME, queue=STREAMS, linger=60, stall=100 * MS, retention=60
        ) as server:
            readers = [Reader(server, index) for index in range(STREAMS)]
            waiting = iter(readers)
            lock = threading.Lock()
            faults: list[str] = []

            def work() -> None:
                while True:
                    with lock:
                        reader = next(waiting, None)
                    if reader is None:
                        return
                    try:
                        reader.run()
                    except BaseException as error:
                        faults.append(f"{reader.inputs['SEED']}: {error!r}")

            threads = [threading.Thread(target=work) for _ in range(AT_A_TIME)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(faults, [], f"SEED={SEED}")
            for index, reader in enumerate(readers):
                with self.subTest(f"SEED={SEED}", index=index, cut=reader.cut.__name__, version=reader.version):
                    reader.check(self)
            last = f"{readers[0].stream}-{EVENTS + 1}"
            self.assertEqual(ask(server.port, "POST", "/infer", readers[0].inputs, {"Last-Event-ID": last}).status, 204)
        self.assertGreater(sum(reader.attempts for reader in readers), 1.5 * STREAMS, "most were not cut at all")


class EveryByteTests(SharedServer):
    def test_cut_after_every_byte(self) -> None:
        """Wherever a response ends, head included, what came and what comes after a resume is the whole, once."""
        for version in ("1.1", "1.0"):
            with Client(self.port) as client:
                client.send(request_bytes("POST", "/infer", {"TEXT": "a é 😀"}, {"Connection": "close"}, version))
                raw = b""
                while data := client.sock.recv(65536):
                    raw += data
            _, body, _ = split_response(raw)
            whole = parse_events(body.decode())
            stream = (whole[0].id or "").rpartition("-")[0]
            rest: dict[int, list[Event]] = {}  # by the number of the last event that came
            for size in range(len(raw) + 1):
                head, body, complete = split_response(raw[:size])
                came = parse_events(body.decode("utf-8", "replace")) if head else []
                last = came[-1].number if came else 0
                if last not in rest:
                    fields = {"Last-Event-ID": f"{stream}-{last}"}
                    rest[last] = ask(self.port, "POST", "/infer", {"TEXT": ""}, fields, version).events
                self.assertEqual(came + rest[last], whole, f"cut after {size} bytes, HTTP/{version}")
                self.assertEqual(complete, version == "1.1" and size == len(raw))
            self.assertEqual(rest[len(whole)], [])
            self.assertEqual(sorted(rest), list(range(len(whole) + 1)))


if __name__ == "__main__":
    unittest.main()
