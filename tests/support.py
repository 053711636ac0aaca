"""What the tests share: apps made on the spot, servers in this process and in others, a client that hides nothing.

Tests wait for conditions with `eventually`, never for time. `MS` is the one unit of time in them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

from inferless_shim import app, protocol
from inferless_shim.answers import Outputs
from inferless_shim.app import Server
from inferless_shim.budget import Budget, Hold
from inferless_shim.config import Settings
from inferless_shim.loader import Flags
from inferless_shim.schema import Rules, Schema, compile_schema, refusal

ROOT = Path(__file__).resolve().parent.parent
MS = 0.001
PATIENCE = 30.0  # seconds: longer than any machine needs, so that only a condition that never comes fails
TEXT_SCHEMA = {"TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["How to make an omelette"]}}
EMPTY = tempfile.TemporaryDirectory()  # a folder of apps without one: nothing of ours is taken for their siblings
atexit.register(EMPTY.cleanup)
# What every server made here is given besides; `certificates.OverTls` fills it.
SETTINGS: dict[str, Any] = {}


def eventually(condition: Callable[[], Any], timeout: float = PATIENCE, what: str = "") -> Any:
    """Wait until `condition` returns something true, and return it; AssertionError if it never does."""
    deadline = time.monotonic() + timeout
    pause = 0.2 * MS
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what or condition}")
        time.sleep(pause)
        pause = min(2 * pause, 5 * MS)
    return value


@contextlib.contextmanager
def about(**what: Any) -> Iterator[None]:
    """Say what a failure is about, as `subTest` does, but end the test: for loops of thousands of rounds.

    pytest keeps a report of every `subTest`, also of those that passed.
    """
    try:
        yield
    except Exception as error:
        raise AssertionError(", ".join(f"{name}={value!r}" for name, value in what.items())) from error


def checked(
    schema: Schema, values: Mapping[str, object], tensor_shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """Return what `build` takes, as `protocol` does. Raises BadRequest that tells all faults at once."""
    inputs, faults = schema.examine(values, tensor_shapes or {})
    if faults:
        raise refusal(faults)
    return inputs


def unbounded() -> Hold:
    """Return a hold that always finds room."""
    return Budget(sys.maxsize).hold()


def read_body(body: bytes, schema: Schema, header_length: str | None = None) -> protocol.Call:
    """Read a request's body where there is memory for whatever it holds."""
    return protocol.read_body(body, schema, header_length, weigh=unbounded().weigh)


class FakeApp:
    """An app without a folder: `infer` is a plain function. It has what `loader.App` has for the engine."""

    def __init__(
        self,
        infer: Callable[..., Any],
        schema: dict[str, Any] | None = None,
        *,
        streaming: bool = True,
        batch_size: int = 0,
        batch_window: int = 500,
    ):
        self.name = "fake"
        self.folder = Path(EMPTY.name)
        self.flags = Flags(streaming, batch_size, batch_window)
        self.streaming = streaming
        self.batched = batch_size > 0
        self.schema = compile_schema(TEXT_SCHEMA if schema is None else schema, Rules(streaming, self.batched))
        self.outputs: Outputs = {}
        self.module = types.ModuleType("app")
        self.instance = types.SimpleNamespace(infer=infer)
        self.finalized = 0

    def load(self) -> None:
        pass

    def infer(self, inputs: dict[str, Any], handler: Any, instance: Any = None) -> Any:
        instance = self.instance if instance is None else instance
        return instance.infer(inputs, handler) if self.streaming else instance.infer(inputs)

    def infer_batch(self, batch: list[dict[str, Any]], instance: Any = None) -> Any:
        return (self.instance if instance is None else instance).infer(batch)

    def answer(self, result: Any) -> Any:
        return result

    def described_outputs(self) -> Outputs:
        return self.outputs

    def finalize(self) -> None:
        self.finalized += 1


def words(inputs: dict[str, Any], handler: Any) -> None:
    """Send the words of TEXT, one event a word: what a streaming app does when nothing is the matter with it."""
    for word in inputs["TEXT"].split():
        handler.send_streamed_output({"OUT": word})


class Puppet:
    """A streaming app whose every step the test decides: `puppet.infer` does what `send`, `end` and `fail` ask for."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Any]] = []  # of each infer that has begun
        self.ended = 0  # how many infers are over
        self._steps: queue.SimpleQueue[Callable[[Any], Any] | None] = queue.SimpleQueue()

    def infer(self, inputs: dict[str, Any], handler: Any) -> None:
        self.inputs.append(inputs)
        try:
            while not handler.cancelled:
                with contextlib.suppress(queue.Empty):
                    step = self._steps.get(timeout=5 * MS)
                    if step is None:
                        return
                    step(handler)
        finally:
            self.ended += 1

    def do(self, step: Callable[[Any], Any] | None) -> None:
        """Have `step(handler)` run inside infer; None ends infer."""
        self._steps.put(step)

    def send(self, **output: Any) -> None:
        self.do(lambda handler: handler.send_streamed_output(output))

    def end(self) -> None:
        self.do(None)

    def fail(self, error: BaseException) -> None:
        def step(handler: Any) -> None:
            raise error

        self.do(step)


def serving(
    infer: Callable[..., Any], schema: dict[str, Any] | None = None, *, streaming: bool = True, **settings: Any
) -> contextlib.AbstractContextManager[Server]:
    """Serve `infer` in this process on a free port, `server.port`."""
    return serving_app(FakeApp(infer, schema, streaming=streaming), **settings)


@contextlib.contextmanager
def serving_app(fake: Any, **settings: Any) -> Iterator[Server]:
    """Serve an app in this process on a free port, `server.port`."""
    server = Server(Settings(port=0, **{**SETTINGS, **settings}), fake)
    with mock.patch.object(app, "TICK", 10 * MS):
        server.start()
        server.service.engine.loaded.wait()
        server.ready()
        try:
            yield server
        finally:
            for stream in server.service.store.running():
                stream.fail("shutting_down", "the test is over")
            server.service.engine.stop(1)
            server.shutdown()
            server.server_close()
            server._over.set()  # the accept thread ends, and lets go of the server and all that it keeps


@contextlib.contextmanager
def app_folder(app: str, schema: str | None = None, *, streaming: bool = True, name: str = "made") -> Iterator[Path]:
    """Make an app folder of two sources."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, name)
        folder.mkdir()
        (folder / "app.py").write_text(textwrap.dedent(app), encoding="utf-8")
        if schema is None:
            schema = f"INPUT_SCHEMA = {TEXT_SCHEMA!r}\nIS_STREAMING_OUTPUT = {streaming}\n"
        (folder / "input_schema.py").write_text(textwrap.dedent(schema), encoding="utf-8")
        yield folder


class ServerProcess:
    """`python server.py …` in a process of its own. `log` is all that it wrote to stderr so far."""

    def __init__(self, model: Path | str, *flags: str, python: tuple[str, ...] = (), environment: Any = None) -> None:
        command = [sys.executable, *python, str(ROOT / "server.py"), "--model", str(model), "--port", "0", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.log = ""
        self.out = ""
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in ("stderr", "stdout")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            if name == "stderr":
                self.log += line
            else:
                self.out += line

    def __enter__(self) -> ServerProcess:
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.finish()

    def wait_until_ready(self, timeout: float = PATIENCE) -> None:
        def said() -> Any:
            if self.process.poll() is not None:
                for reader in self._readers:  # it may not have read yet why that ended
                    reader.join(PATIENCE)
                raise AssertionError(self.log)
            return re.search(r"is ready on https?://\S+:(\d+)", self.log)

        self.port = int(eventually(said, timeout, "the server says it is ready")[1])

    def finish(self) -> int:
        """Wait for the process to end; return its exit status."""
        status = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status


class Event(NamedTuple):
    """One block of a stream as it came: its fields, and whether anything else stood in it."""

    id: str | None
    event: str | None
    data: Any
    lines: tuple[str, ...]

    @property
    def number(self) -> int:
        return int(self.id.rpartition("-")[2]) if self.id else -1


def parse_events(text: str) -> list[Event]:
    """Split an event stream into its blocks; an unfinished last block is left out, comments are kept in `lines`."""
    events = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        data = json.loads(fields["data"]) if "data" in fields else None
        events.append(Event(fields.get("id"), fields.get("event"), data, tuple(block.split("\n"))))
    return events


class Metric(NamedTuple):
    """A family as it was read: `samples` by name and labels."""

    kind: str
    help: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def value(self, **labels: str) -> float:
        """Return the one sample of a family that has these labels, whatever others it has; 0 if there is none."""
        found = [value for (_, own), value in self.samples.items() if labels.items() <= dict(own).items()]
        assert len(found) <= 1, found
        return found[0] if found else 0


METRIC_NAME = re.compile(r"[a-z_][a-z0-9_]*")
METRIC_SAMPLE = re.compile(r"([a-z_][a-z0-9_]*)(?:\{(.*)\})? (-?[0-9.e+-]+|\+Inf)")
METRIC_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\n"])*)"(?:,|$)')


def read_metrics(text: str) -> dict[str, Metric]:
    """Read Prometheus's text as strictly as promtool lints it; AssertionError for what is wrong in it."""
    assert text.endswith("\n"), "the last line has no line feed"
    found: dict[str, Metric] = {}
    help = name = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, name, help = line.split(" ", 3)
            continue
        if line.startswith("# TYPE "):
            _, _, typed, kind = line.split(" ")
            assert typed == name and METRIC_NAME.fullmatch(name) and name not in found and help, line
            assert kind in ("counter", "gauge", "histogram") and (kind == "counter") is name.endswith("_total"), line
            found[name] = Metric(kind, help, {})
            continue
        match = METRIC_SAMPLE.fullmatch(line)
        assert match and name in found, line
        metric = found[name]
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        assert match[1] in [name + suffix for suffix in suffixes], line
        labels, rest = [], match[2] or ""
        while rest:
            label = METRIC_LABEL.match(rest)
            assert label, line
            value = re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), label[2])
            labels.append((label[1], value))
            rest = rest[label.end() :]
        key = (match[1], tuple(labels))
        number = float(match[3].replace("+Inf", "inf"))
        assert key not in metric.samples and (metric.kind == "gauge" or number >= 0), line
        metric.samples[key] = number
    for name, metric in found.items():
        if metric.kind == "histogram":
            buckets = [(labels[-1][1], n) for (one, labels), n in metric.samples.items() if one == f"{name}_bucket"]
            bounds = [float(bound.replace("+Inf", "inf")) for bound, _ in buckets]
            counts = [n for _, n in buckets]
            assert bounds == sorted(set(bounds)) and counts == sorted(counts) and bounds[-1:] == [float("inf")], name
            assert counts[-1] == metric.samples[f"{name}_count", ()] and (f"{name}_sum", ()) in metric.samples, name
    return found


class Response:
    """A response read off a raw socket: status, fields in lower case, body without framing, whether it ended well."""

    def __init__(self, client: Client, *, bodiless: bool = False) -> None:
        head = client.read_until(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.rstrip("\r\n").split("\r\n")
        self.version, status, self.reason = status_line.split(" ", 2)
        self.status = int(status)
        self.fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.complete = self._bodiless = bodiless or self.status in (100, 204)
        self._client = client
        self.body = b""

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes; `complete` is True after its proper end."""
        read = self._framed() if "transfer-encoding" in self.fields else self._unframed()
        # Then it is not complete; over TLS, an end without close_notify is an SSLError.
        with contextlib.suppress(EOFError, ConnectionResetError, ssl.SSLError):
            for data in () if self._bodiless else read:
                self.body += data
                yield data
            self.complete = True

    def _framed(self) -> Iterator[bytes]:
        while size := int(self._client.read_until(b"\r\n"), 16):
            yield self._client.read(size + 2)[:-2]
        assert self._client.read(2) == b"\r\n"

    def _unframed(self) -> Iterator[bytes]:
        if "content-length" in self.fields:
            yield self._client.read(int(self.fields["content-length"]))
        else:
            while data := self._client.read_some():
                yield data

    def read(self) -> Response:
        for _ in self.chunks():
            pass
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def refusal(self) -> Any:
        """The JSON body of an error, but for the request id, which must be the head's."""
        body = self.json
        assert body.pop("request_id") == self.fields["x-request-id"], self.fields
        return body

    @property
    def events(self) -> list[Event]:
        return parse_events(self.body.decode())


class Client:
    """A raw connection to a server on this machine; over TLS if there is a context for it."""

    tls: ClassVar[ssl.SSLContext | None] = None

    def __init__(self, port: int, timeout: float = PATIENCE, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(("127.0.0.1", port))
            if self.tls is not None:
                self.sock = self.tls.wrap_socket(self.sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        except BaseException:
            self.sock.close()
            raise
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def half_close(self) -> None:
        """End what we send, as TCP does; over TLS without close_notify."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def request(
        self, method: str, target: str, body: Any = None, fields: dict[str, str] | None = None, version: str = "1.1"
    ) -> Response:
        """Send a request; return its response, of which only the head is read yet."""
        self.send(request_bytes(method, target, body, fields, version))
        return Response(self, bodiless=method == "HEAD")

    def read_some(self) -> bytes:
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return self.sock.recv(65536)

    def read_until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"the connection ended before {end!r}; unread: {self._buffer!r}")
            self._buffer += data
        at = self._buffer.index(end) + len(end)
        data, self._buffer = self._buffer[:at], self._buffer[at:]
        return data

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"the connection ended {size - len(self._buffer)} bytes early")
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


def request_bytes(
    method: str, target: str, body: Any = None, fields: dict[str, str] | None = None, version: str = "1.1"
) -> bytes:
    """Write a request; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost"]
    if body is not None:
        lines.append(f"Content-Length: {len(content)}")
    lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def ask(
    port: int, method: str, target: str, body: Any = None, fields: dict[str, str] | None = None, version: str = "1.1"
) -> Response:
    """Send one request on a connection of its own and read the whole response."""
    with Client(port) as client:
        return client.request(method, target, body, fields, version).read()


class Clock:
    """Stands for `time` in a module: it stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class TestCase(unittest.TestCase):
    maxDiff = None

    def serve(self, infer: Callable[..., Any], *args: Any, **settings: Any) -> Server:
        """Serve as `serving` does, until the test is over."""
        context = serving(infer, *args, **settings)
        self.addCleanup(context.__exit__, None, None, None)
        return context.__enter__()


class SharedServer(TestCase):
    """Tests that leave nothing behind share one server: of `infer` with `settings`, which a subclass may change."""

    server: Server
    port: int
    infer: Callable[..., Any] = staticmethod(words)
    settings: ClassVar[dict[str, Any]] = {}

    @classmethod
    def setUpClass(cls) -> None:
        context = serving(cls.infer, **cls.settings)
        cls.server = context.__enter__()
        cls.addClassCleanup(delattr, cls, "server")  # and with it all streams
        cls.addClassCleanup(context.__exit__, None, None, None)
        cls.port = cls.server.port
