"""What a journal's folder holds as a process begins: files are cut where they were half written, and what ran is ended.

A file is read record by record, and no payload is kept, so that memory is bounded by the largest event. A second start
finds nothing left to do.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import records
from .archived import Reader
from .folder import named, write_all
from .records import ANY_MAGIC, EVENTS, MAGIC, VERSION, Damaged, End, Head, Kind
from .tally import State

log = logging.getLogger(__name__)

NAME = re.compile(r"([0-9a-f]{32})\.log")


class Found(NamedTuple):
    """A stream that is kept in a file of `size` bytes: its events up to `last`, and its END, which begins at `end_at`.

    `fresh`: it was found to be interrupted. `written` is False if there was no room for the one that it was given.
    """

    head: Head
    end: End
    last: int
    end_at: int
    size: int
    fresh: bool = False
    written: bool = True


class Foreign(Exception):
    """A file that is not ours to touch; the message says why."""


class Scan:
    """What a file holds: whole records up to `size`, and the `fault` there, if there is one.

    What follows a LOST is not looked at: the stream is to end with what was kept.
    """

    def __init__(self, descriptor: int, stream: str, size: int) -> None:
        self.head: Head | None = None
        self.end: End | None = None
        self.last = self.end_at = self.size = 0
        self.whole = False  # whether it has all events
        self.fault = ""
        self._stream = stream
        reader = Reader(descriptor, size)
        try:
            for kind, last, payload in reader:
                if kind == Kind.LOST:
                    break
                self._take(kind, last, payload, reader.place)
        except Damaged as damage:
            self.fault = str(damage)
        self.size = reader.place

    def _take(self, kind: int, last: int, payload: bytes, place: int) -> None:
        """Take in a record, which begins at `place`. Raises Damaged if it is not one that can stand there."""
        over = self.end is not None or (self.whole and kind in EVENTS)
        if over or (self.head is None) != (kind == Kind.HEAD):
            raise Damaged("a record is where it cannot be")
        if kind == Kind.HEAD:
            head = records.read_head(payload)
            records.dialect(head)
            if head.stream != self._stream:
                raise Damaged("it is another stream's")
            self.head = head
        elif kind in EVENTS:
            if len(records.frame_ends(payload, self._stream, self.last + 1)) != last - self.last:
                raise Damaged("events are missing")
            self.last, self.whole = last, kind == Kind.LAST_EVENTS
        elif kind == Kind.END:
            end = records.read_end(payload)
            if last != self.last + bool(end.frame):
                raise Damaged("events are missing")
            self.end, self.end_at, self.last = end, place, last
        else:
            raise Damaged("a record is of no known kind")


def recover(folder: Path, now: float) -> Iterator[Found]:
    """Bring all files in order, and yield what they hold; `now` is the wall clock's time. Raises OSError."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if NAME.fullmatch(entry.name))
    for name in names:
        try:
            found = recover_file(folder / name, now)
        except Foreign as foreign:
            log.warning("%s %s: it is left as it is", named(folder / name), foreign)
        except OSError as error:
            log.error("%s cannot be read, and is left as it is: %s", named(folder / name), error.strerror)
        else:
            if found is not None:
                yield found


def recover_file(path: Path, now: float) -> Found | None:
    """Bring a file in order and return what it holds; None if that was nothing, and it was removed.

    Raises Foreign, OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        size = examine(descriptor)
        scan = Scan(descriptor, path.stem, size)
        if scan.head is None:
            log.warning(
                "%s does not say what it is a journal of (%s), and is removed",
                named(path), scan.fault or "it is empty",
            )  # fmt: skip
        elif scan.end is None and not scan.head.dialect:  # an answer that never came, of which nobody knows
            log.info("%s is of an answer that was never made, and is removed", named(path))
        else:
            return bring_in_order(descriptor, path, scan, scan.head, size, now)
    finally:
        os.close(descriptor)
    path.unlink()
    return None


def examine(descriptor: int) -> int:
    """Return the size of a file that was begun here, whole or not. Raises Foreign."""
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        raise Foreign("is not a file")
    begins = os.pread(descriptor, 2 * len(MAGIC), 0)
    match = ANY_MAGIC.match(begins)
    # A file that lost its beginning with the machine's power is short, or holds zeros.
    if match is None and not MAGIC.startswith(begins) and begins.strip(b"\0"):
        raise Foreign("is no journal of ours")
    if match is not None and int(match[1]) != VERSION:
        raise Foreign(f"is of format {int(match[1])}, and this version knows {VERSION}")
    return about.st_size if match is not None else 0


def bring_in_order(descriptor: int, path: Path, scan: Scan, head: Head, size: int, now: float) -> Found:
    """Cut what is not whole off a file, and end a stream that has no end."""
    if scan.size < size:
        if scan.fault:
            log.warning("%s: cut at byte %d of %d: %s", named(path), scan.size, size, scan.fault)
        os.ftruncate(descriptor, scan.size)
    if scan.end is not None:
        return Found(head, scan.end, scan.last, scan.end_at, scan.size)
    if scan.whole:  # how it ended is in its last event; when, nobody knows any more
        end = End(State.FINISHED, now, scan.last)
    else:
        end = records.interrupted(head, scan.last, now)
    record = records.end_record(end, scan.last)
    last = scan.last + bool(end.frame)
    found = Found(head, end, last, scan.size, scan.size + len(record), fresh=not scan.whole)
    try:
        write_all(descriptor, record, scan.size)
    except OSError as error:
        log.error("%s: that it was interrupted could not be written: %s", named(path), error.strerror)
        return found._replace(size=scan.size, written=False)
    return found
