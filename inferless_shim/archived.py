"""A stream of an earlier life, or one that memory has let go of: it has ended, and is sent from its file.

Its handler thread reads the file, through a window of bounded size and with no lock held: the stream has ended, so
nothing of it changes. Each record's checksum is looked at before a byte of it is sent; where the file is not what was
written, the connection breaks, and what was sent until then is true.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from . import records
from .errors import Gone, Unavailable
from .records import EVENTS, HEADER, PIECE, Damaged, End, Head, Kind, checksum
from .stream import READ_SIZE, Stream
from .subscriber import Progress, Subscriber
from .tally import PAUSES, Tally

log = logging.getLogger(__name__)

# A record of a stream that hurries has 64 KiB, and is not to be read twice for its header.
WINDOW = 2 * READ_SIZE


class Reader:
    """Iterates over the records of a file, from `at` to `end`: kind, last event and payload. Raises Damaged, OSError.

    `place` is where the newest record begins, or the damage, or the end. Reads WINDOW bytes at once, or a record that
    is longer.
    """

    def __init__(self, descriptor: int, end: int, at: int = len(records.MAGIC)) -> None:
        self.descriptor = descriptor
        self.end = end
        self.place = self._next = at
        self._window, self._at = b"", 0  # what was read last, and where in it the next record begins

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> tuple[int, int, bytes]:
        self.place = self._next
        if self.place >= self.end:
            raise StopIteration
        if self._at + HEADER.size > len(self._window):
            self._read(WINDOW)
        kind, last, length, crc = records.read_header(self._window, self._at)
        if self._at + HEADER.size + length > len(self._window):
            self._read(max(WINDOW, HEADER.size + length))
        start = self._at + HEADER.size
        payload = self._window[start : start + length]
        if len(payload) < length:
            raise Damaged("half a record")
        if (crc32(payload) if length <= PIECE else checksum(payload)) != crc:
            raise Damaged("a record is not what was written")
        self._at = start + length
        self._next += HEADER.size + length
        return kind, last, payload

    def rest(self) -> None:
        """Hold no memory until the next record is wanted."""
        self._window, self._at = b"", 0

    def _read(self, size: int) -> None:
        self._window, self._at = os.pread(self.descriptor, min(size, self.end - self._next), self._next), 0


class Archived(Stream):
    """An ended stream in the file at `path`, with events up to `last` before its END record, which is at `end_at`.

    `damaged` is called if the file turns out not to be what was written. Made for one request.
    """

    elsewhere = True

    def __init__(
        self, head: Head, end: End, path: Path, *, last: int, end_at: int, damaged: Callable[[Exception], None]
    ) -> None:
        dialect = records.dialect(head)
        super().__init__(
            dialect, id=head.stream, log_cap=0, retry=head.retry, owner=head.owner, keyed=bool(head.key),
            detached=head.detached,
        )  # fmt: skip
        self.state, self.failure, self.cause, self.answer = end.state, end.failure, end.cause, end.answer
        self.kept_events = end.kept
        self.started = self.ended = self.created
        self._made = Tally(end.events, None, (0,) * (len(PAUSES) + 1), 0.0)
        self._path = path
        self._last = last
        self._end_at = end_at
        self._frame = end.frame  # of the last event, if that is not among the others
        self._damaged = damaged
        self._reader: Reader | None = None  # while it is followed
        self._passed = 0  # up to which event it was read
        self._rest = b""  # of the record in the middle of which its client goes on
        self._unsent = memoryview(b"")

    # ---- Its handler thread, all of it without the lock

    def attach(self, subscriber: Subscriber, number: int) -> bool:
        """Follow from the end of event `number` on. Raises Gone (410), Unavailable (503)."""
        if not self.can_follow(number):
            return False
        self._reader = Reader(opened(self._path), self._end_at)
        try:
            self._pass(self._reader, number)
        except (Damaged, OSError) as error:
            self.detach(subscriber)
            self._damaged(error)
            raise Gone("What was kept of this stream is damaged; start a new request.") from None
        return True

    def can_follow(self, number: int) -> bool:
        return number < self._last

    def detach(self, subscriber: Subscriber) -> None:
        if self._reader is not None:
            os.close(self._reader.descriptor)
            self._reader, self._unsent = None, memoryview(b"")

    def lags(self, subscriber: Subscriber) -> bool:
        return self._reader is not None

    @property
    def hurries(self) -> bool:
        return False

    def interject(self, subscriber: Subscriber, frame: bytes, *, only_before_first: bool = False) -> bool:
        return False

    def advance(self, subscriber: Subscriber) -> Progress:
        """Send once. A client whose file is damaged is left without an end: its return is answered 410."""
        try:
            if not subscriber.pending and not self._unsent:
                self._unsent = memoryview(self._read_on(chunked=subscriber.chunked))
        except (Damaged, OSError) as error:
            self._damaged(error)
            subscriber.broken = True
            return Progress.BROKEN
        data = (subscriber.pending or self._unsent)[:READ_SIZE]
        if not data:
            return Progress.ENDED
        try:
            sent = subscriber.send(data)
        except BlockingIOError:
            if self._reader is not None:
                self._reader.rest()  # who takes little for long is to cost little
            return Progress.LAGGING
        except OSError:
            subscriber.broken = True
            return Progress.BROKEN
        self._note(subscriber, sent)
        return Progress.MORE if sent == len(data) else Progress.LAGGING

    def _note(self, subscriber: Subscriber, sent: int) -> None:
        """Note what was sent."""
        aside = bool(subscriber.pending)
        if aside:
            subscriber.pending = subscriber.pending[sent:]
        else:
            self._unsent = self._unsent[sent:]
        if aside or not subscriber.chunked:
            subscriber.aside += sent
        else:
            subscriber.position += sent

    def _pass(self, reader: Reader, number: int) -> None:
        """Go to the end of event `number`."""
        while self._passed < number and (record := next(reader, None)) is not None:
            kind, last, payload = record
            if kind in EVENTS:
                if last > number:
                    ends = records.frame_ends(payload, self.id, self._passed + 1)
                    self._rest = payload[ends[number - self._passed - 1] :]
                self._passed = last

    def _read_on(self, *, chunked: bool) -> bytes:
        """Read what comes next, about 64 KiB of whole frames; nothing at the end."""
        found = [self._rest]
        size, self._rest = len(self._rest), b""
        assert self._reader is not None, "attached"
        while size < READ_SIZE and (record := next(self._reader, None)) is not None:
            kind, last, payload = record
            if kind in EVENTS:
                found.append(payload)
                size += len(payload)
                self._passed = last
        if size < READ_SIZE and self._frame:
            found.append(self._frame)
            self._frame = b""
            self._passed += 1
        data = b"".join(found)
        if not data and self._passed < self._last:
            raise Damaged("events are missing")
        return data if chunked else records.payloads(data)


def opened(path: Path) -> int:
    """Open a file to read it. Raises Gone (410) if it was deleted a moment ago, Unavailable (503) if that passes."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would block for ever
    except FileNotFoundError:
        raise Gone("This stream is no longer kept; start a new request.") from None
    except OSError as error:
        log.error("a stream cannot be read from disk: %s", error.strerror)
        raise Unavailable("The stream cannot be read from disk just now; try again shortly.") from None


def read_ends(path: Path, end_at: int, end: End | None = None) -> tuple[Head, End]:
    """Read what a file says of its stream: its first record, and the one at `end_at`.

    An `end` that is known already is not in the file. Raises Damaged, OSError, Gone, Unavailable.
    """
    descriptor = opened(path)
    try:
        size = os.fstat(descriptor).st_size
        head = records.read_head(_record(Reader(descriptor, size), Kind.HEAD))
        return head, end or records.read_end(_record(Reader(descriptor, size, end_at), Kind.END))
    finally:
        os.close(descriptor)


def _record(reader: Reader, expected: Kind) -> bytes:
    kind, _, payload = next(reader, (0, 0, b""))
    if kind != expected:
        raise Damaged("a record is not where it was written")
    return payload
