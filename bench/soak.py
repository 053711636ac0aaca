"""A server under a mixed load for half an hour: is every byte right, and does it end with what it began with?

    python bench/soak.py [--minutes M] [--streams N] [--seed S]

N clients at once, each with one stream after the other, most at four events a second. By chance a client reads to the
end; is cut, in the middle of an event, too, and resumes; is gone for good; cancels; reads slowly; starts a stream with
`Prefer: respond-async` and follows it later; repeats a POST with its Idempotency-Key; or sends half a request. What it
gets is compared byte by byte: each event once, in order, from one call of the app's.

After a warm-up of the same load, and once everything is forgotten, threads, descriptors and memory of the server are
looked at; and again after the soak. The server runs without glibc's caches of freed blocks (tcache), of which each of
its threads has one: with a thousand slots they keep some 30 MB in the first half hour, and hide what this looks for;
--as-is leaves them. The seed is printed. Linux only, loopback only; the load is as large as N.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from harness import Server, ours, progress, rss, serve

LINGER, RETENTION, HEARTBEAT, STALL, READ_TIMEOUT = 15, 20, 2, 20, 5  # seconds
WARM_UP = 240  # seconds, in which every slot has run a few streams
PATIENCE = 60  # seconds within which whatever is awaited comes
FLAGS = {
    "linger": LINGER, "retention": RETENTION, "heartbeat": HEARTBEAT, "stall": STALL,
    "read-timeout": READ_TIMEOUT, "idle-timeout": READ_TIMEOUT, "max-streams": 10_000, "max-connections": 2000,
}  # fmt: skip
MORE_MEMORY = 1.15  # times as much at the end as after the warm-up: the 10,000 forgotten ids, and what malloc scatters
RUN = re.compile(rb'"OUT":"[^".]+\.(\d+)\.')


class Wrong(Exception):
    """The server did what it must not."""


class Cut(Exception):
    """The connection ended before the stream did."""


# ---- HTTP


class Answer:
    """A response: `status` and `fields` at once, `pieces` as they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self.reader, self.writer = reader, writer
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body without chunk framing. Raises Cut if it ends without its end."""
        try:
            if "transfer-encoding" not in self.fields:
                yield await self.reader.readexactly(int(self.fields.get("content-length", 0)))
                return
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                while size:
                    data = await self.reader.read(size)
                    if not data:
                        raise Cut
                    size -= len(data)
                    yield data
                if await self.reader.readexactly(2) != b"\r\n":
                    raise Wrong("a chunk has no end")
            if await self.reader.readexactly(2) != b"\r\n":
                raise Wrong("a body has no end")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut from error

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    def close(self, *, hard: bool = False) -> None:
        if hard:
            self.writer.transport.abort()
        else:
            self.writer.close()


def request(method: str, target: str, body: Any = None, **fields: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    lines += [f"Content-Length: {len(content)}"] if body is not None else []
    return "\r\n".join([*lines, "", ""]).encode() + content


async def connect(port: int, *, narrow: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect; a narrow connection has next to no room for what its reader does not take."""
    plain = socket.socket()
    plain.setblocking(False)
    if narrow:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=plain, limit=4096 if narrow else 65536)


async def ask(port: int, message: bytes, *, narrow: bool = False) -> Answer:
    """Send a request on a connection of its own; return its answer once the head is there."""
    reader, writer = await connect(port, narrow=narrow)
    writer.write(message)
    try:
        return Answer(reader, writer, await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        raise Wrong(f"no answer to {message[:80]!r}") from None


# ---- One stream


class Expected:
    """What a stream has to be. It takes what comes, in whatever pieces, and complains of the first wrong byte."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        self.id = ""
        self.number = 0  # of the last event that came
        self.ended: str | None = None  # done, or the code of an error
        self._call = b""
        self._unread = b""

    @property
    def last_event_id(self) -> str:
        return f"{self.id}-{self.number}"

    def begin(self, answer: Answer) -> None:
        """Look at the head of a connection on which the stream goes on, after the last event that came."""
        if answer.status != 200:
            raise Wrong(f"status {answer.status} instead of a stream, after event {self.number}")
        named = answer.fields["stream-id"]
        if self.id not in ("", named):
            raise Wrong("another stream")
        self.id, self._unread = named, b""

    def take(self, data: bytes) -> None:
        self._unread += data
        while True:
            while self._unread.startswith(b":"):  # a heartbeat is one line
                line, newline, rest = self._unread.partition(b"\n")
                if not newline:
                    return
                if not line.startswith(b": ka"):
                    raise Wrong(f"the comment {line!r}")
                self._unread = rest
            block, end, rest = self._unread.partition(b"\n\n")
            if not end:
                return
            self._unread = rest
            self._block(block)

    def _block(self, block: bytes) -> None:
        if self.ended:
            raise Wrong(f"{block[:80]!r} after the end")
        self.number += 1
        first = b"retry: 2000\n" if self.number == 1 else b""
        start = b"id: %b-%d\n%b" % (self.id.encode(), self.number, first)
        if not block.startswith(start):
            raise Wrong(f"{block[:80]!r} instead of event {self.number}")
        rest = block[len(start) :]
        if rest.startswith(b"event: "):
            self._end(rest)
            return
        if not self._call:
            found = RUN.search(rest)
            self._call = found[1] if found else b"?"
        padding = "x" * self.inputs.get("SIZE", 0)
        wanted = f'data: {{"OUT":"{self.inputs["KEY"]}.{self._call.decode()}.{self.number}{padding}"}}'
        if rest != wanted.encode():
            raise Wrong(f"{rest[:80]!r} instead of {wanted[:80]!r}")

    def _end(self, lines: bytes) -> None:
        told = json.loads(lines.partition(b"\ndata: ")[2])
        self.ended = "done" if lines.startswith(b"event: done\n") else told["code"]
        if self.ended == "done" and not self.number == told["events"] + 1 == self.inputs["COUNT"] + 1:
            raise Wrong(f"{told} after {self.number - 1} events")


class Client:
    """One of those at once: it has one stream after the other, each in a way that chance decides."""

    def __init__(self, port: int, name: str, rng: random.Random, tally: Counter[str]) -> None:
        self.port, self.name, self.rng, self.tally = port, name, rng, tally
        self.served = 0

    async def run(self, until: float) -> None:
        ways: dict[Callable[[Expected], Awaitable[None]], int] = {
            self.read: 4, self.cut: 6, self.abandon: 1, self.cancel: 2, self.dawdle: 2, self.follow_later: 2,
            self.repeat: 2, self.break_off: 1,
        }  # fmt: skip
        while time.monotonic() < until:
            way = self.rng.choices(list(ways), list(ways.values()))[0]
            self.served += 1
            inputs = {"KEY": f"{self.name}-{self.served}", "COUNT": self.rng.randint(1, 120), "PERIOD_MS": 250}
            if self.rng.random() < 0.05:  # so slowly that heartbeats come between
                inputs |= {"COUNT": self.rng.randint(1, 6), "PERIOD_MS": 3000}
            expected = Expected(inputs)
            try:
                await asyncio.wait_for(way(expected), PATIENCE + inputs["COUNT"] * inputs["PERIOD_MS"] / 1e3)
                self.tally[way.__name__] += 1
                self.tally["events"] += expected.number
            except (Wrong, Cut, OSError, TimeoutError, asyncio.TimeoutError) as error:
                told = (
                    f"{way.__name__} {inputs}: {type(error).__name__} {error} (stream {expected.id}, {expected.number})"
                )
                self.tally["FAILURES"] += 1
                progress(told)

    # ---- the ways

    async def read(self, expected: Expected) -> None:
        await self._to_end(expected, request("POST", "/infer", expected.inputs))

    async def cut(self, expected: Expected) -> None:
        """Be cut several times, and come back as an EventSource, a fetch or a query does."""
        await self._part(expected, request("POST", "/infer", expected.inputs))
        for _ in range(self.rng.randint(0, 3)):
            await asyncio.sleep(self.rng.uniform(0, LINGER / 9))
            if await self._part(expected, self._resume(expected)):
                return
        await asyncio.sleep(self.rng.uniform(0, LINGER / 9))
        await self._to_end(expected, self._resume(expected))

    async def abandon(self, expected: Expected) -> None:
        """Never come back; after `--linger` the stream is cancelled."""
        await self._part(expected, request("POST", "/infer", expected.inputs))

    async def cancel(self, expected: Expected) -> None:
        answer = await ask(self.port, request("POST", "/infer", expected.inputs))
        expected.begin(answer)
        wanted, asked = self.rng.randint(0, expected.inputs["COUNT"]), False
        async for data in answer.pieces():
            expected.take(data)
            if expected.number >= wanted and not expected.ended and not asked:
                asked = True
                await self._delete(expected.id)
        answer.close()
        if expected.ended not in ("done", "cancelled"):
            raise Wrong(f"it ended with {expected.ended}")

    async def dawdle(self, expected: Expected) -> None:
        """Read slowly what comes fast: it waits in the log, and the connection is held."""
        expected.inputs.update(COUNT=self.rng.randint(100, 400), PERIOD_MS=10, SIZE=1000)
        answer = await ask(self.port, request("POST", "/infer", expected.inputs), narrow=True)
        expected.begin(answer)
        taken = 0
        async for data in answer.pieces():
            expected.take(data)
            taken += len(data)
            if taken > 40_000:
                taken = 0
                await asyncio.sleep(self.rng.uniform(0.5, 3))
        answer.close()
        self._done(expected)

    async def follow_later(self, expected: Expected) -> None:
        answer = await ask(self.port, request("POST", "/infer", expected.inputs, Prefer="respond-async"))
        await answer.body()
        answer.close()
        if answer.status != 202:
            raise Wrong(f"status {answer.status} instead of 202")
        await asyncio.sleep(self.rng.uniform(0, 3))
        await self._to_end(expected, request("GET", answer.fields["location"]))

    async def repeat(self, expected: Expected) -> None:
        """Post again with the same Idempotency-Key: the same stream, from its start, of the same call."""
        message = request("POST", "/infer", expected.inputs, Idempotency_Key=expected.inputs["KEY"])
        await self._part(expected, message)
        again = Expected(expected.inputs)
        again.id, again._call = expected.id, expected._call
        await asyncio.sleep(self.rng.uniform(0, LINGER / 9))
        if expected.ended:  # all was read, and nothing follows the start but what is replayed
            return
        await self._to_end(again, message)
        expected.number = again.number

    async def break_off(self, expected: Expected) -> None:
        """Send half a request, or one that is none, and leave after a while, or see the server close."""
        message = request("POST", "/infer", expected.inputs)
        broken = self.rng.choice([message[: self.rng.randrange(len(message))], b"\x16\x03\x01\x00 what?\r\n\r\n"])
        reader, writer = await connect(self.port)
        writer.write(broken)
        await asyncio.sleep(self.rng.uniform(0, 1))
        if self.rng.random() < 0.5:
            while await reader.read(65536):
                pass
        writer.close()

    # ---- what they have in common

    def _resume(self, expected: Expected) -> bytes:
        way = self.rng.randrange(3)
        if way == 0:
            return request("POST", "/infer", expected.inputs, Last_Event_ID=expected.last_event_id)
        if way == 1:
            return request("GET", f"/streams/{expected.id}", Last_Event_ID=expected.last_event_id)
        return request("GET", f"/streams/{expected.id}?last_event_id={expected.last_event_id}")

    async def _part(self, expected: Expected, message: bytes) -> bool:
        """Read some bytes and be cut; return whether the stream was over before."""
        answer = await ask(self.port, message)
        if self._is_over(expected, answer):
            return True
        expected.begin(answer)
        left = self.rng.randint(0, 1500)
        async for data in answer.pieces():
            expected.take(data[:left])
            left -= len(data)
            if left <= 0:
                break
        answer.close(hard=self.rng.random() < 0.5)
        return expected.ended is not None

    async def _to_end(self, expected: Expected, message: bytes) -> None:
        answer = await ask(self.port, message)
        if self._is_over(expected, answer):
            return
        expected.begin(answer)
        async for data in answer.pieces():
            expected.take(data)
        answer.close()
        self._done(expected)

    def _is_over(self, expected: Expected, answer: Answer) -> bool:
        """Whether nothing follows what came: 204, if the stream is over."""
        if answer.status != 204:
            return False
        answer.close()
        if not expected.ended:
            raise Wrong(f"204 after event {expected.number}, which was not the last")
        return True

    def _done(self, expected: Expected) -> None:
        if expected.ended != "done":
            raise Wrong(f"it ended with {expected.ended} after event {expected.number}")

    async def _delete(self, stream: str) -> None:
        answer = await ask(self.port, request("DELETE", f"/streams/{stream}"))
        answer.close()
        if answer.status != 204:
            raise Wrong(f"status {answer.status} to DELETE")


# ---- The server


class State(NamedTuple):
    """What a process has."""

    threads: int
    descriptors: int
    memory: float  # MB

    @classmethod
    def of(cls, server: Server) -> State:
        proc = Path(f"/proc/{server.pid}")
        return cls(len(os.listdir(proc / "task")), len(os.listdir(proc / "fd")), rss(server.pid))

    def __str__(self) -> str:
        return f"{self.threads:6} threads {self.descriptors:6} descriptors {self.memory:8.1f} MB"


async def load(server: Server, streams: int, seconds: float, seed: str, tally: Counter[str]) -> State:
    """Put the load on for `seconds`, and let it end; return the most that the server had."""
    until = time.monotonic() + seconds
    clients = [Client(server.port, f"{seed}-{n}", random.Random(f"{seed}-{n}"), tally) for n in range(streams)]

    async def one(number: int, client: Client) -> None:
        await asyncio.sleep(min(seconds, 10) * number / streams)  # so that they don't tick together
        await client.run(until)

    running = asyncio.gather(*(one(number, client) for number, client in enumerate(clients)))
    most, told = State.of(server), time.monotonic()
    while not running.done():
        await asyncio.wait([running], timeout=0.5)
        most = State(*map(max, most, State.of(server)))
        if time.monotonic() > told + 60:
            told = time.monotonic()
            count = f"{tally['events']:,} events, {tally['FAILURES']} failures"
            progress(f"{until - told:6.0f} s left; {State.of(server)}; {count}")
    await running
    return most


async def quiet(server: Server) -> State:
    """Wait until nothing is left to linger or to be kept; return what the server has."""
    await asyncio.sleep(LINGER + RETENTION + READ_TIMEOUT + 2)
    return State.of(server)


async def soak(server: Server, streams: int, minutes: float, seed: int, tally: Counter[str]) -> bool:
    started = State.of(server)
    await load(server, streams, WARM_UP, f"warm{seed}", Counter())
    before = await quiet(server)
    progress(f"after the warm-up: {before}")
    most = await load(server, streams, minutes * 60, f"s{seed}", tally)
    after = await quiet(server)
    for title, state in (
        ("at the start", started),
        ("after the warm-up", before),
        ("at most", most),
        ("at the end", after),
    ):
        print(f"  {title:<18}{state}")
    same = after.threads == before.threads and after.descriptors == before.descriptors
    return same and after.memory <= before.memory * MORE_MEMORY


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, metavar="M", help="after the warm-up of four (default 30)")
    parser.add_argument("--streams", type=int, default=500, metavar="N", help="at once (default 500)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="S")
    parser.add_argument("--as-is", action="store_true", help="leave malloc as it is")
    arguments = parser.parse_args()
    if not arguments.as_is:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=4"
    print(f"seed {arguments.seed}, {arguments.streams} streams at once for {arguments.minutes:g} minutes", flush=True)
    flags = [text for name, value in FLAGS.items() for text in (f"--{name}", str(value))]
    tally: Counter[str] = Counter()
    # Those who left for good hold a slot for as long as the server lingers.
    with serve(ours(arguments.streams * 2, *flags, app="numbered"), set(os.sched_getaffinity(0))) as server:
        same = asyncio.run(soak(server, arguments.streams, arguments.minutes, arguments.seed, tally))
    failures = tally.pop("FAILURES", 0)
    print("  " + ", ".join(f"{name} {count:,}" for name, count in sorted(tally.items())))
    print(f"  {failures} failures; {'it ended with what it began with' if same else 'IT ENDED WITH MORE'}")
    return 0 if same and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
