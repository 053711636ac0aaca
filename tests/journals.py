"""What the tests of the journal share: files as they were written, journals that live and die, who follows a stream."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from inferless_shim import records, writer
from inferless_shim.config import Settings
from inferless_shim.copies import CopiedStream
from inferless_shim.idempotency import IdempotencyKey
from inferless_shim.journal import Journal
from inferless_shim.metrics import exposition
from inferless_shim.outputs import Native
from inferless_shim.records import End, Head, Kind
from inferless_shim.stream import Stream
from inferless_shim.subscriber import Progress, Subscriber
from inferless_shim.tally import State
from tests.support import MS, TestCase, eventually, read_metrics

ID = "0123456789abcdef" * 2
NOW = 1_700_000_000.0  # by the wall clock


def head(stream: str = ID, **fields: Any) -> Head:
    made = {"created": NOW, "owner": "", "dialect": "native", "model": "m", "detached": False, "retry": 2.0}
    return Head(stream, **{**made, **fields})


def frame(number: int, stream: str = ID, size: int = 8) -> bytes:
    """One event as it goes over the wire."""
    event = b"id: %b-%d\ndata: %b\n\n" % (stream.encode(), number, b"x" * size)
    return b"%x\r\n%b\r\n" % (len(event), event)


def frames(first: int, last: int, stream: str = ID, size: int = 8) -> bytes:
    return b"".join(frame(number, stream, size) for number in range(first, last + 1))


def journal_bytes(batches: list[int], *, of: Head | None = None, end: End | None = None, size: int = 8) -> bytes:
    """A file with as many records of events as there are `batches`, each up to that event."""
    of = of or head()
    parts, first = [records.head_record(of)], 1
    for last in batches:
        kind = Kind.LAST_EVENTS if end is not None and last == batches[-1] else Kind.EVENTS
        parts.append(records.record(kind, last, frames(first, last, of.stream, size)))
        first = last + 1
    return b"".join([*parts, *([] if end is None else [records.end_record(end, first - 1)])])


def finished(events: int, ended: float = NOW) -> End:
    return End(State.FINISHED, ended, events)


class Reader:
    """Who follows a stream, on a socket that takes at most `most` bytes at once, and now and then none."""

    def __init__(self, stream: Stream, number: int = 0, *, most: int = 1 << 30, seed: int | None = None, **how: Any):
        self.stream = stream
        self.got = b""
        self.most = most
        self.random = random.Random(seed) if seed is not None else None
        self.subscriber = Subscriber(self.send, lambda: None, **how)
        self.attached = stream.attach(self.subscriber, number)

    def send(self, data: Any) -> int:
        most = self.most
        if self.random is not None:
            if self.random.random() < 0.3:
                raise BlockingIOError
            most = self.random.randint(1, most)
        taken = bytes(data[:most])
        self.got += taken
        return len(taken)

    def follow(self) -> Progress:
        """Do what a handler thread does until there is no more."""
        while (progress := self.stream.advance(self.subscriber)) in (Progress.MORE, Progress.LAGGING):
            pass
        self.stream.detach(self.subscriber)
        return progress

    def follow_now(self) -> int:
        """Take what is there now; return how many events that was."""
        while self.stream.advance(self.subscriber) is Progress.MORE:
            pass
        self.stream.detach(self.subscriber)
        return self.got.count(b"\nid: ")


def read(stream: Stream, number: int = 0) -> bytes:
    """Return all that follows an event, and see that it ends well."""
    reader = Reader(stream, number)
    assert reader.attached
    assert reader.follow() is Progress.ENDED
    return reader.got


class JournalTest(TestCase):
    """Journals in a folder that is gone after the test."""

    def setUp(self) -> None:
        parent = tempfile.TemporaryDirectory()
        self.addCleanup(parent.cleanup)
        self.parent = Path(parent.name)
        self.folder = self.parent / "journal"
        for name, seconds in (("TICK", 10 * MS), ("DUE", 0.0), ("PAUSE", MS)):
            patch = mock.patch.object(writer, name, seconds)
            patch.start()
            self.addCleanup(patch.stop)

    def journal(self, folder: Path | None = None, **settings: Any) -> Journal:
        """Begin a life. What is still open at the test's end is ended then."""
        made = Journal(Settings(log_dir=folder or self.folder, **settings), "m")
        made.start()
        self.addCleanup(made.close, 30)
        return made

    def after_death(self, **settings: Any) -> Journal:
        """Begin the next life, as if the one before it had died just now."""
        folder = self.parent / f"life{len(list(self.parent.iterdir()))}"
        shutil.copytree(self.folder, folder)
        return self.journal(folder, **settings)

    def stream(
        self, journal: Journal, events: int = 0, *, key: IdempotencyKey | None = None, dialect: Any = Native, **how: Any
    ) -> CopiedStream:
        """Open a stream that is journaled."""
        how = {"log_cap": 1 << 20, "retry": 2.0, "owner": key.owner if key else "", "keyed": key is not None, **how}
        stream = CopiedStream(dialect() if dialect else None, **how)
        journal.open(stream, key)
        self.add(stream, events)
        return stream

    def add(self, stream: CopiedStream, events: int, size: int = 10) -> None:
        for _ in range(events):
            stream.append(b"data: %b\n\n" % (b"x" * size))

    def written(self, journal: Journal) -> None:
        """Wait until nothing is left to write."""
        eventually(lambda: not self.metric(journal, "shim_journal_lag_events"), what="all is written")

    def ended(self, journal: Journal, stream: Stream) -> Stream:
        """Wait until a stream's end is written; return it as the file has it."""
        return eventually(lambda: (found := journal.find(stream.id, stream.owner)) is not stream and found)

    def metric(self, journal: Journal, name: str) -> float:
        return read_metrics(exposition(journal.families()).decode())[name].value()
