"""Real clients read the native dialect: what the app sent, ids in order, `done`, and nothing else.

Once live, with a heartbeat between any two blocks; once from recorded bytes, heartbeats put in, split at every byte.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import re
import shutil
import subprocess
import unittest
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.wire import GATED, Proxy, Serving, TestCase, gate, need, served
from tests.support import PATIENCE, ask

HERE = Path(__file__).resolve().parent
CLIENTS = HERE / "clients"
SEED = random.SystemRandom().randrange(10**6)

# What a careless parser would trip over: line ends and field names inside the data, characters of 2, 3 and 4 bytes,
# text that is nothing but white space, no text at all.
SENT = [
    {"OUT": "To", "N": 1},
    {"OUT": " boil\r\n\n: ka\n\ndata: é", "N": 2},
    {"OUT": " \u2028\x85😀", "N": 3},
    {"OUT": "", "N": 4},
]
HEARTBEAT = b": ka\n"
# A heartbeat right after the head, or after a block, which ends its chunk.
HEARTBEAT_AFTER_BLOCK = re.compile(rb"(?:\r\n\r\n|\n\n\r\n)[0-9a-f]+\r\n: ka[^\n]*\n")


class Event(NamedTuple):
    """An event as a client was given it; `type` is "message" where the stream names none."""

    type: str
    id: str
    data: Any


def event(type: str | None, id: str | None, data: str) -> Event:
    """Take an event as it is: data that is no JSON, such as a stray event's empty one, stays text."""
    try:
        value = json.loads(data)
    except ValueError:
        value = data
    return Event(type or "message", id or "", value)


def body(sent: list[Any], gate: str | None = None) -> dict[str, Any]:
    return {"TEXT": json.dumps(sent)} | ({"GATE": gate} if gate else {})


def target(sent: list[Any], gate: str | None = None) -> str:
    return "/infer?" + urllib.parse.urlencode(body(sent, gate))


# ---- The clients. Python's read byte strings, or a URL that is posted to; node's do both in a process of their own.


def openai_events(pieces: Iterable[bytes]) -> list[Event]:
    from openai._streaming import SSEDecoder

    return [event(each.event, each.id, each.data) for each in SSEDecoder().iter_bytes(iter(pieces))]


def openai_post(url: str, content: bytes) -> list[Event]:
    import httpx

    with httpx.stream("POST", url, content=content, timeout=PATIENCE) as response:
        return openai_events(response.iter_bytes())


def httpx_sse_events(pieces: Iterable[bytes]) -> list[Event]:
    import httpx
    from httpx_sse import EventSource

    class Pieces(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return iter(pieces)

    fields = {"Content-Type": "text/event-stream; charset=utf-8"}
    source = EventSource(httpx.Response(200, headers=fields, stream=Pieces()))
    return [event(each.event, each.id, each.data) for each in source.iter_sse()]


def httpx_sse_post(url: str, content: bytes) -> list[Event]:
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(timeout=PATIENCE) as client, connect_sse(client, "POST", url, content=content) as source:
        return [event(each.event, each.id, each.data) for each in source.iter_sse()]


def sseclient_events(pieces: Iterable[bytes]) -> list[Event]:
    from sseclient import SSEClient

    return [event(each.event, each.id, each.data) for each in SSEClient(pieces).events()]


def sseclient_post(url: str, content: bytes) -> list[Event]:
    with urllib.request.urlopen(url, content, PATIENCE) as response:
        return sseclient_events(response)


class PythonClient(NamedTuple):
    package: str  # its import name
    read: Callable[[Iterable[bytes]], list[Event]]
    post: Callable[[str, bytes], list[Event]]


PYTHON = {
    "openai": PythonClient("openai", openai_events, openai_post),
    "httpx-sse": PythonClient("httpx_sse", httpx_sse_events, httpx_sse_post),
    "sseclient-py": PythonClient("sseclient", sseclient_events, sseclient_post),
}


def python_client(name: str) -> PythonClient:
    client = PYTHON[name]
    need(importlib.util.find_spec(client.package), f"{name} is missing: pip install -r tests/e2e/requirements.txt")
    return client


def node(client: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run jobs through a client of clients/; return what each was told, its lists of events as `Event`s."""
    need(shutil.which("node"), "node is missing (20 or newer)")
    need((HERE / "node_modules").is_dir(), "npm's clients are missing: npm install in tests/e2e")
    process = subprocess.run(
        ["node", str(CLIENTS / f"{client}.mjs")], input=json.dumps(jobs), capture_output=True, text=True,
        timeout=10 * PATIENCE, check=False,
    )  # fmt: skip
    if process.returncode:
        raise AssertionError(f"{client} ended with {process.returncode}: {process.stderr}")
    results = json.loads(process.stdout)
    for result in results:
        for name in {"events", "streamed"} & result.keys():
            result[name] = [event(*each) for each in result[name]]
    return results


# ---- What must come out


class ClientTestCase(TestCase):
    def check(self, events: list[Event], sent: list[Any] = SENT, last: str = "done") -> None:
        """Every dict once, in order, ids counted from 1, then the last event; nothing else."""
        stream = events[0].id.rpartition("-")[0] if events else ""
        expected = [Event("message", f"{stream}-{number}", data) for number, data in enumerate(sent, start=1)]
        self.assertEqual(events[:-1], expected, f"and last of all {events[-1:]}")
        self.assertEqual((events[-1].type, events[-1].id), (last, f"{stream}-{len(sent) + 1}"))
        if last == "done":
            self.assertEqual(events[-1].data["events"], len(sent))
        else:
            self.assertEqual(events[-1].data["code"], "app_error")


class LiveTest(ClientTestCase):
    """Through a proxy that lets an event through only once a heartbeat stands after the one before."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.hold_for_class(served(GATED, "--heartbeat", "1ms", "--retry", "1ms"))
        cls.gate = cls.hold_for_class(gate())
        cls.proxy = cls.hold_for_class(Proxy(cls.server.port, cls.let_through))
        cls.content = json.dumps(body(SENT, cls.gate.path)).encode()
        cls.url = f"http://127.0.0.1:{cls.proxy.port}/infer"

    @classmethod
    def let_through(cls, received: bytes) -> None:
        cls.gate.open(len(HEARTBEAT_AFTER_BLOCK.findall(received)))

    def setUp(self) -> None:
        self.gate.shut()
        self.proxy.received = b""

    def check(self, events: list[Event], *args: Any) -> None:
        super().check(events, *args)
        before_last, _, _ = self.proxy.received.partition(b"event: done")
        gaps = len(HEARTBEAT_AFTER_BLOCK.findall(before_last))
        self.assertEqual(gaps, len(SENT) + 1, "a heartbeat before the first block, and between any two")

    def post_with(self, name: str) -> None:
        self.check(python_client(name).post(self.url, self.content))

    def test_openai(self) -> None:
        """openai-python's decoder reads a live stream with a heartbeat between any two blocks."""
        self.post_with("openai")

    def test_httpx_sse(self) -> None:
        """httpx-sse reads a live stream with a heartbeat between any two blocks."""
        self.post_with("httpx-sse")

    def test_sseclient_py(self) -> None:
        """sseclient-py reads a live stream with a heartbeat between any two blocks."""
        self.post_with("sseclient-py")

    def test_eventsource_parser(self) -> None:
        """eventsource-parser, as a parser and as a stream, reads a live stream with heartbeats between its blocks."""
        (result,) = node("eventsource-parser", [{"url": self.url, "body": self.content.decode()}])
        self.check(result["events"])
        self.check(result["streamed"])

    def test_fetch_event_source(self) -> None:
        """@microsoft/fetch-event-source reads a live stream with a heartbeat between any two blocks."""
        (result,) = node("fetch-event-source", [{"url": self.url, "body": self.content.decode()}])
        self.check(result["events"])

    def test_eventsource(self) -> None:
        """npm's eventsource reads a live GET /infer with a heartbeat between any two blocks, and stops at the 204."""
        (result,) = node("eventsource", [{"url": f"http://127.0.0.1:{self.proxy.port}" + target(SENT, self.gate.path)}])
        self.check(result["events"])
        self.assertEqual(result["statuses"], [200, 204])
        self.assertEqual(result["positions"], [None, result["events"][-1].id])

    def test_eventsource_of_a_stream(self) -> None:
        """npm's eventsource reads a stream that was started with `Prefer: respond-async`, and stops at the 204."""
        started = ask(self.server.port, "POST", "/infer", self.content, {"Prefer": "respond-async"})
        self.assertEqual(started.status, 202)
        url = f"http://127.0.0.1:{self.proxy.port}" + started.fields["location"]
        (result,) = node("eventsource", [{"url": url}])
        self.check(result["events"])
        self.assertEqual(result["statuses"], [200, 204])


class SplitTest(ClientTestCase):
    """From recorded bytes with a heartbeat in every gap, in two parts split at every byte, and byte by byte."""

    @classmethod
    def setUpClass(cls) -> None:
        with served(GATED, "--retry", "1ms") as server:
            cls.posted = with_heartbeats(ask(server.port, "POST", "/infer", body(SENT), version="1.0").body)
            cls.queried = with_heartbeats(ask(server.port, "GET", target(SENT), version="1.0").body)
            # The third is no dict, and makes the app raise.
            cls.failed = with_heartbeats(ask(server.port, "POST", "/infer", body([*SENT[:2], 3]), version="1.0").body)

    def check_python(self, name: str) -> None:
        client = python_client(name)
        for data, sent, last in ((self.posted, SENT, "done"), (self.failed, SENT[:2], "error")):
            for at in splits(data):
                with self.subTest(last=last, at=at if len(at) == 1 else "every byte"):
                    self.check(client.read(parts(data, at)), sent, last)

    def check_node(self, name: str, *keys: str, data: bytes, sent: list[Any] = SENT, last: str = "done") -> None:
        encoded = base64.b64encode(data).decode()
        jobs = [{"bytes": encoded, "at": at} for at in splits(data)]
        for job, result in zip(jobs, node(name, jobs), strict=True):
            for key in keys:
                with self.subTest(key=key, last=last, at=job["at"] if len(job["at"]) == 1 else "every byte"):
                    self.check(result[key], sent, last)

    def test_recording(self) -> None:
        """The recordings are whole, and have a heartbeat before the first block and between any two."""
        for data in (self.posted, self.queried, self.failed):
            self.assertEqual(data.count(HEARTBEAT), data.count(b"\n\n"))
            self.assertTrue(data.endswith(b"}\n\n"))

    def test_openai(self) -> None:
        """openai-python's decoder reads the same events however the bytes are split."""
        self.check_python("openai")

    def test_httpx_sse(self) -> None:
        """httpx-sse reads the same events however the bytes are split."""
        self.check_python("httpx-sse")

    def test_sseclient_py(self) -> None:
        """sseclient-py reads the same events however the bytes are split."""
        self.check_python("sseclient-py")

    def test_eventsource_parser(self) -> None:
        """eventsource-parser, as a parser and as a stream, reads the same events however the bytes are split."""
        self.check_node("eventsource-parser", "events", "streamed", data=self.posted)
        self.check_node("eventsource-parser", "events", data=self.failed, sent=SENT[:2], last="error")

    def test_fetch_event_source(self) -> None:
        """@microsoft/fetch-event-source reads the same events however the bytes are split."""
        self.check_node("fetch-event-source", "events", data=self.posted)
        self.check_node("fetch-event-source", "events", data=self.failed, sent=SENT[:2], last="error")

    def test_eventsource(self) -> None:
        """npm's eventsource reads the same events however the bytes are split; GET's id-only block is no event."""
        self.check_node("eventsource", "events", data=self.queried)
        self.check_node("eventsource", "events", data=self.failed, sent=SENT[:2], last="error")

    def test_over_http(self) -> None:
        """The two that bring their own HTTP read the same events from a server that writes the parts one by one."""
        for name, data in (("fetch-event-source", self.posted), ("eventsource", self.queried)):
            every = splits(data)
            with RecordedServer(data, every) as server:
                base = f"http://127.0.0.1:{server.port}"
                results = node(name, [{"url": f"{base}/{index}"} for index in range(len(every))])
            for at, result in zip(every, results, strict=True):
                with self.subTest(client=name, at=at if len(at) == 1 else "every byte"):
                    self.check(result["events"])


def with_heartbeats(data: bytes) -> bytes:
    """Put a heartbeat before each block, where a server may send one."""
    return b"".join(HEARTBEAT + block + b"\n\n" for block in data.split(b"\n\n")[:-1])


def splits(data: bytes) -> list[list[int]]:
    """Return where to split: in two at each byte, then at every byte."""
    return [*([at] for at in range(1, len(data))), list(range(1, len(data)))]


def parts(data: bytes, at: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


class RecordedServer(Serving):
    """Answers GET /<n> with `data` split at `every[n]`, a write and a chunk a part; whoever comes back gets 204."""

    def __init__(self, data: bytes, every: list[list[int]]) -> None:
        super().__init__(RecordedHandler)
        self.data = data
        self.every = every


class RecordedHandler(BaseHTTPRequestHandler):
    server: RecordedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.headers["Last-Event-ID"]:
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts(self.server.data, self.server.every[int(self.path[1:])]):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args: Any) -> None:
        pass


class CutTest(ClientTestCase):
    """npm's eventsource through a proxy that cuts its connections."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.hold_for_class(served(GATED, "--retry", "1ms", "--max-streams", "4000"))
        cls.proxy = cls.hold_for_class(Proxy(cls.server.port))
        cls.base = f"http://127.0.0.1:{cls.proxy.port}"

    def read(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Read each job's stream to its 204; check that every event came exactly once."""
        results = node("eventsource", jobs)
        for job, result in zip(jobs, results, strict=True):
            with self.subTest(seed=SEED, **job):
                self.check(result["events"])
                self.assertEqual(result["statuses"][-1], 204)
                self.assertEqual(result["positions"][-1], result["events"][-1].id)
        return results

    def response(self, path: str) -> bytes:
        """Return the response to a GET as it comes to npm's eventsource: head, framing and all."""
        self.proxy.received = b""
        self.read([{"url": self.base + path}])
        response, end, _ = self.proxy.received.partition(b"\r\n0\r\n\r\n")
        return response + end

    def finished_stream(self) -> str:
        return ask(self.server.port, "POST", "/infer", body(SENT)).fields["content-location"]

    def test_cut_at_every_byte(self) -> None:
        """A GET /infer that is cut after any byte, of its head too, yields every event exactly once."""
        path = target(SENT)
        response = self.response(path)
        results = self.read([{"url": self.base + path, "cuts": [cut]} for cut in range(len(response))])
        # Not after every cut behind the first event: fetch may throw away what it had not handed over before the cut.
        resumed = [cut for cut, result in enumerate(results) if result["positions"][1] is not None]
        self.assertTrue(resumed, "the client came back with its Last-Event-ID")
        self.assertGreaterEqual(resumed[0], end_of_first_event(response))

    def test_cut_at_every_byte_of_a_replay(self) -> None:
        """A GET /streams/<id> that is cut after any byte yields every event exactly once."""
        path = self.finished_stream()
        self.read([{"url": self.base + path, "cuts": [cut]} for cut in range(len(self.response(path)))])

    def test_cut_many_times(self) -> None:
        """Four cuts at random bytes, of a GET /infer and of a GET /streams/<id>, lose and repeat nothing."""
        print(f"\nseed {SEED}")
        choose = random.Random(SEED)
        jobs = []
        for path in (target(SENT), self.finished_stream()):
            response = self.response(path)
            # Not before the first event, which says how soon to come back: without it that takes three seconds.
            first = end_of_first_event(response)
            for _ in range(100):
                cuts = [choose.randrange(first, len(response)), *(choose.randrange(len(response)) for _ in range(3))]
                jobs.append({"url": self.base + path, "cuts": cuts})
        self.read(jobs)


def end_of_first_event(response: bytes) -> int:
    """Return after how many bytes npm's eventsource has dispatched the first event (id-only blocks are none to it)."""
    return response.index(b"\n\n", response.index(b"\ndata: ")) + 2


class CurlTest(TestCase):
    """curl's exit status tells a finished stream from a broken one."""

    def setUp(self) -> None:
        need(shutil.which("curl"), "curl is missing")
        self.server = self.hold(served(GATED))
        self.gate = self.hold(gate())

    def curl(self, *flags: str) -> subprocess.Popen[bytes]:
        content = json.dumps(body(SENT, self.gate.path))
        url = f"http://127.0.0.1:{self.server.port}/infer"
        process = subprocess.Popen(
            ["curl", "-sN", "--noproxy", "*", *flags, url, "-d", content], stdout=subprocess.PIPE, bufsize=0
        )
        self.addCleanup(process.stdout.close)  # type: ignore[union-attr]
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def status_when_finished(self, *flags: str) -> int:
        process = self.curl(*flags)
        self.gate.open(len(SENT) + 1)
        out, _ = process.communicate(timeout=PATIENCE)
        self.assertIn(b"event: done\n", out)
        return process.returncode

    def status_when_broken(self, *flags: str) -> int:
        """Kill the server once curl has printed the first event's data and waits for the second."""
        process = self.curl(*flags)
        assert process.stdout is not None
        self.gate.open(1)
        while not process.stdout.readline().startswith(b"data: "):
            self.assertIsNone(process.poll())
        self.server.process.kill()
        out, _ = process.communicate(timeout=PATIENCE)
        self.assertNotIn(b"data: ", out)
        return process.returncode

    def test_finished_over_http11(self) -> None:
        """curl exits with 0 when the stream is finished."""
        self.assertEqual(self.status_when_finished(), 0)

    def test_finished_over_http10(self) -> None:
        """curl exits with 0 when the stream is finished, over HTTP/1.0 too."""
        self.assertEqual(self.status_when_finished("--http1.0"), 0)

    def test_failed_over_http11(self) -> None:
        """curl exits with 0 when the stream ends with an error event: it was told all there is."""
        process = subprocess.run(
            ["curl", "-sN", "--noproxy", "*", f"http://127.0.0.1:{self.server.port}/infer", "-d", '{"TEXT": "[3]"}'],
            capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        self.assertIn(b"event: error\n", process.stdout)
        self.assertEqual(process.returncode, 0)

    def test_broken_over_http11(self) -> None:
        """curl exits with 18 (partial transfer) when the server dies in mid-stream: there was no final chunk."""
        self.assertEqual(self.status_when_broken(), 18)

    def test_broken_over_http10(self) -> None:
        """curl exits with 56 (receive error) when the server dies in mid-stream: the connection was reset."""
        self.assertEqual(self.status_when_broken("--http1.0"), 56)


if __name__ == "__main__":
    unittest.main()
