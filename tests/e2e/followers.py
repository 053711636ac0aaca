"""Clients that follow a stream through cuts, crashes and other servers, and a judge of all that they were told.

A follower keeps what any client would keep, the number of the last event that came, and comes back with it until the
stream has ended. The judge of a stream holds every block against the bytes that it must have, against the block before
it, and against what others were told of the same event, whenever and by whichever server.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.recognisable.app import text
from tests.support import MS, PATIENCE, Client, Response

APP = Path(__file__).with_name("recognisable")
NAME = APP.name
INTERRUPTED = "interrupted"
KEPT = re.compile(r"; (\d+) events? (?:was|were) kept\.")  # the protocol dialect's errors are a sentence alone
NOT_NOW = (502, 503)  # nginx's, where no server is there, and ours
PAUSE = 10 * MS  # before a client comes back to a server that is not there


class WrongError(Exception):
    """A client was told what it must not be told."""


def shown(block: bytes) -> str:
    return repr(block if len(block) <= 300 else block[:200] + b"..." + block[-100:])


class Plan(NamedTuple):
    """A stream to ask for: `events` of `key`, `burst` at a time with a pause between; and how it is asked for."""

    key: str
    events: int
    period_ms: int = 0
    burst: int = 1
    size: int = 100
    protocol: bool = False
    keyed: bool = False
    detached: bool = False

    @property
    def route(self) -> str:
        return f"/v2/models/{NAME}/generate_stream" if self.protocol else "/infer"

    @property
    def inputs(self) -> dict[str, Any]:
        return {
            "KEY": self.key, "COUNT": self.events, "PERIOD_MS": self.period_ms, "BURST": self.burst, "SIZE": self.size,
        }  # fmt: skip

    @property
    def fields(self) -> dict[str, str]:
        fields = {"Idempotency-Key": self.key} if self.keyed else {}
        return fields | ({"Prefer": "respond-async"} if self.detached else {})

    @property
    def last(self) -> int:
        """The number of a finished stream's last event: the protocol dialect has none that says `done`."""
        return self.events + (not self.protocol)

    def block(self, stream: str, number: int, run: str) -> bytes:
        """Write event `number` as it must come, byte for byte."""
        data = {"OUT": text(self.key, number, self.size), "RUN": run}
        if self.protocol:
            data |= {"model_name": NAME, "model_version": "1"}
        retry = "retry: 2000\n" if number == 1 else ""
        body = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        return f"id: {stream}-{number}\n{retry}data: {body}\n\n".encode()


class Position:
    """How far a client is: the last event that it has, the one that it had when it asked last, and how all ended."""

    def __init__(self) -> None:
        self.last = self.began = 0
        self.warned = False  # whether it asked last after somebody was told that the stream is interrupted
        self.end = ""  # `done`, or the code of the error that came last


class Judge:
    """What its clients were told of one stream. Any thread.

    A `sure` stream loses nothing that a client has seen. What somebody has `spoilt` on disk may lose its end, or be
    unknown, but nothing else; a `losable` one may be unknown, or (`losable_unseen`) as long as no event was seen.
    `alone`: what is left after an interruption is what all clients see from then on; with replicas, those of a server
    that was taken for dead may have seen more.
    """

    def __init__(self, plan: Plan, stream: str, *, sure: bool = False, alone: bool = True) -> None:
        self.plan, self.stream, self.sure, self.alone = plan, stream, sure, alone
        self.spoilt = self.losable = self.losable_unseen = False
        self.finished = False  # whether a client was told that it ended well
        self.run = ""  # the run of infer that made it, once an event has told
        self.last_block = b""  # the one that ends it, if that is not an interruption
        self.highest = 0  # the number of the last event that any client has seen, but for an interruption
        self.kept: int | None = None  # events, once it is interrupted
        self.lock = threading.Lock()

    def take(self, position: Position, block: bytes) -> None:
        """Judge a block that came after `position`, and move that on. Raises WrongError."""
        with self.lock:
            fields = self._fields(block)
            number = self._number(fields.get("id", ""))
            if number <= position.last:
                raise WrongError(f"twice or out of order: {number} after {position.last}: {shown(block)}")
            if number > position.last + 1:
                raise WrongError(f"missing: {number} after {position.last}: {shown(block)}")
            data = json.loads(fields["data"])
            if data.get("code") == INTERRUPTED or (self.plan.protocol and KEPT.search(data.get("error", ""))):
                self._take_interruption(position, data, block)
                position.end = INTERRUPTED
            elif position.end:
                raise WrongError(f"after the end ({position.end}): {shown(block)}")
            elif "OUT" in data:
                self._take_event(position, number, data, block)
            else:
                self._take_last(number, fields.get("event", ""), data, block)
                position.end = data.get("code", "error") if "error" in data else "done"
            position.last = number

    def take_clean_end(self, position: Position) -> None:
        """Judge the end of a body that is whole. Raises WrongError if something is missing before it."""
        if self.plan.protocol and not position.end and position.last == self.plan.events:
            position.end = "done"
        self.finished |= position.end == "done"
        if not position.end:
            raise WrongError(f"a clean end after {position.last}, without the last event")

    def take_nothing(self, position: Position) -> None:
        """Judge a 204. Raises WrongError if there is something that this client has not seen."""
        if self.kept is not None:
            raise WrongError(f"204 after {position.last} for a stream that was interrupted after {self.kept}")
        if self.plan.protocol and position.last == self.plan.events:
            position.end = "done"
        if not position.end:
            raise WrongError(f"204 after {position.last}, before the end")

    @property
    def may_be_unknown(self) -> bool:
        return self.spoilt or self.losable or (self.losable_unseen and self.highest == 0)

    # ---- Needs self.lock

    def _fields(self, block: bytes) -> dict[str, str]:
        try:
            return dict(line.split(": ", 1) for line in block.decode().rstrip("\n").split("\n"))
        except ValueError:
            raise WrongError(f"altered: {shown(block)}") from None

    def _number(self, event_id: str) -> int:
        stream, _, number = event_id.rpartition("-")
        if stream != self.stream:
            raise WrongError(f"{event_id!r} in stream {self.stream}")
        return int(number)

    def _take_event(self, position: Position, number: int, data: dict[str, Any], block: bytes) -> None:
        self.run = self.run or data.get("RUN", "")
        if block != self.plan.block(self.stream, number, self.run) or number > self.plan.events:
            raise WrongError(f"altered: {shown(block)}, run {self.run}, {self.plan}")
        came_back = self.kept is not None and number > self.kept and not self.spoilt
        if came_back and (self.sure or (self.alone and position.warned)):
            raise WrongError(f"a client was sent {number}, only {self.kept} were kept")
        self.highest = max(self.highest, number)

    def _take_last(self, number: int, event: str, data: dict[str, Any], block: bytes) -> None:
        """What ends a stream is the same to all, and nothing has followed it."""
        if event == "done" and (number, data["events"]) != (self.plan.last, self.plan.events):
            raise WrongError(f"done too early: {shown(block)}, {self.plan}")
        if event != ("done" if "events" in data else "" if self.plan.protocol else "error"):
            raise WrongError(f"not an event of ours: {shown(block)}")
        if block != (self.last_block or block) or number < self.highest or (self.plan.protocol and "events" in data):
            raise WrongError(
                f"another end: {shown(block)}, it was {shown(self.last_block)}; the highest seen is {self.highest}"
            )
        self.last_block, self.highest = block, number

    def _take_interruption(self, position: Position, data: dict[str, Any], block: bytes) -> None:
        """Its number is one above what its client has; what was kept is the same to all, and all that was promised."""
        words = KEPT.search(data["error"])
        kept = int(words[1]) if words else -1
        if not self.plan.protocol and data.get("events") != kept:
            raise WrongError(f"not what its sentence says: {shown(block)}")
        just_sent = position.last > position.began or not position.began  # this client was sent all that is kept
        if not 0 <= kept <= position.last or (self.alone and just_sent and kept != position.last):
            raise WrongError(
                f"interrupted at the wrong place, from {position.began} to {position.last}: {shown(block)}"
            )
        if self.kept is not None and kept != self.kept and not (self.spoilt and kept < self.kept):
            raise WrongError(f"{self.kept} events were kept, and now {kept}: {shown(block)}")
        if not self.spoilt:
            if self.sure and kept < self.highest:
                raise WrongError(f"a client has seen {self.highest}, only {kept} were kept: {shown(block)}")
            if kept >= self.highest and (self.last_block or (self.sure and self.finished)):
                raise WrongError(f"all was kept, its end too, and yet {shown(block)}")
        self.kept = kept


class Blocks:
    """Cuts a body into blocks as it comes. Comments, which belong to no event, are left out; `rest` is unfinished."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        *whole, self.rest = (self.rest + data).split(b"\n\n")
        for block in whole:
            lines = [line for line in block.split(b"\n") if not line.startswith(b":")]
            yield b"\n".join(lines) + b"\n\n"


class Follower:
    """One client of one stream. `connect` may reach another server each time, and raise OSError.

    With `cut`, a chance for each piece that comes, it hangs up by itself. `answers` counts what it was told, by status.
    """

    def __init__(
        self,
        judge: Judge,
        connect: Callable[[], Client],
        chance: random.Random,
        *,
        version: str = "1.1",
        fields: dict[str, str] | None = None,
        cut: float = 0,
    ) -> None:
        self.judge, self.connect, self.chance = judge, connect, chance
        self.version, self.fields, self.cut = version, fields or {}, cut
        self.position = Position()
        self.answers: dict[int, int] = {}

    def follow(self, patience: float = PATIENCE) -> str:
        """Come back until the stream has ended; return how. Raises WrongError, also if nothing comes for so long."""
        moved, before = time.monotonic(), -1
        while not self.position.end:
            self.ask()
            if self.position.last != before:
                moved, before = time.monotonic(), self.position.last
            if time.monotonic() - moved > patience:
                raise WrongError(f"it does not go on after {before}: {self.answers}")
        return self.position.end

    def ask(self) -> None:
        """Ask once for what comes next, and take what comes. Raises WrongError."""
        event_id = f"{self.judge.stream}-{self.position.last}"
        if self.chance.random() < 0.5:
            method, target, body = "GET", f"/streams/{self.judge.stream}", None
        else:
            method, target, body = "POST", self.judge.plan.route, self.judge.plan.inputs
        fields = {**self.fields, "Connection": "close"}
        if self.chance.random() < 0.5:
            target += f"?last_event_id={event_id}"
        else:
            fields["Last-Event-ID"] = event_id
        self.position.warned = self.judge.kept is not None
        try:
            with self.connect() as client:
                self.take(client.request(method, target, body, fields, self.version))
        except (OSError, EOFError):
            time.sleep(PAUSE)

    def take(self, response: Response) -> None:
        """Take an answer for what it is. Raises WrongError, OSError, EOFError."""
        self.answers[response.status] = self.answers.get(response.status, 0) + 1
        if response.status == 200:
            self._take_body(response)
        elif response.status == 204:
            self.judge.take_nothing(self.position)
        elif response.status in NOT_NOW:
            time.sleep(PAUSE)
        elif response.status == 404 and self.judge.may_be_unknown:
            self.position.end = "unknown"
        else:
            raise WrongError(f"{response.status} after {self.position.last}: {response.read().body!r}")

    def _take_body(self, response: Response) -> None:
        position, blocks = self.position, Blocks()
        position.began = position.last
        for piece in response.chunks():
            response.body = b""  # not kept: what is long would be copied again and again
            for block in blocks.feed(piece):
                self.judge.take(position, block)
            if self.cut and self.chance.random() < self.cut:
                return
        if response.complete and self.version == "1.1":  # HTTP/1.0 does not tell a whole body from what a crash left
            if blocks.rest:
                raise WrongError(f"a clean end within an event: {shown(blocks.rest)}")
            self.judge.take_clean_end(position)

    def ask_again(self) -> None:
        """Ask once more after the end: nothing follows it, or one more time an interruption. Raises WrongError."""
        cut, self.cut = self.cut, 0
        patience, last, nothing = time.monotonic() + PATIENCE, self.position.last, self.answers.get(204, 0)
        while self.position.last == last and self.answers.get(204, 0) == nothing and self.position.end != "unknown":
            self.ask()
            if time.monotonic() > patience:
                raise WrongError(f"no answer after the end: {self.answers}")
        self.cut = cut


def begin(
    plan: Plan,
    connect: Callable[[], Client],
    chance: random.Random,
    *,
    version: str = "1.1",
    fields: dict[str, str] | None = None,
    cut: float = 0,
    judged: Callable[[Plan, str], Judge] = Judge,
) -> Follower | None:
    """Ask for a stream and take what comes; return its follower, None if its id did not come.

    `judged` gives the judge of a stream, the same one for all its followers. Raises WrongError.
    """
    try:
        with connect() as client:
            own = {**(fields or {}), **plan.fields, "Connection": "close"}
            response = client.request("POST", plan.route, plan.inputs, own, version)
            if response.status in NOT_NOW:
                time.sleep(PAUSE)
                return None
            if response.status != (202 if plan.detached else 200):
                raise WrongError(f"{response.status} for {plan}: {response.read().body!r}")
            judge = judged(plan, response.fields["stream-id"])
            follower = Follower(judge, connect, chance, version=version, fields=fields, cut=cut)
            if not plan.detached:
                try:
                    follower.take(response)
                except (OSError, EOFError):
                    pass  # it is followed on
            return follower
    except (OSError, EOFError):
        time.sleep(PAUSE)
        return None
