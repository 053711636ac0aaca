"""The streams that run here, and how the store has each of them."""

from __future__ import annotations

import threading
import time
import weakref
from enum import Enum, auto

from ...copies import CopiedStream, Copy
from .heads import Head


class Standing(Enum):
    """How the store has a stream of ours."""

    OPENING = auto()  # a handler thread is telling it
    APART = auto()  # not at all, or nobody knows how far
    SHARED = auto()  # up to what was copied
    DONE = auto()  # to its end


class Share:
    """A stream of ours. The recorder's thread has it, once it is no longer OPENING.

    Once DONE it does not hold its stream: that is the store's of this process to keep.
    """

    __slots__ = ("_stream", "copy", "head", "id", "seen", "standing")

    def __init__(self, stream: CopiedStream, head: Head) -> None:
        self.id = stream.id
        self.head = head
        self.standing = Standing.OPENING
        self.copy: Copy | None = None
        self.seen = time.monotonic()  # when the store last said how far it has it, or it was begun
        self._stream = weakref.ref(stream)

    @property
    def stream(self) -> CopiedStream | None:
        """The stream, as long as this process keeps it."""
        copy = self.copy  # read once: the recorder's thread may finish meanwhile
        return copy.stream if copy is not None else self._stream()

    @property
    def lag(self) -> int:
        """How many of its events the store does not have. Any thread, without the stream's lock."""
        copy = self.copy
        return max(0, copy.stream.log.last - copy.number) if copy is not None else 0

    def finish(self) -> None:
        """Note that the store has its end. What appends nothing any more needs no copy."""
        self.standing = Standing.DONE
        self.copy = None


class Shares:
    """All streams that run here or are still kept. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _shares
        self._shares: dict[str, Share] = {}

    def add(self, share: Share) -> None:
        with self._lock:
            self._shares[share.id] = share

    def get(self, stream_id: str) -> Share | None:
        return self._shares.get(stream_id)

    def remove(self, stream_id: str) -> None:
        with self._lock:
            self._shares.pop(stream_id, None)

    def all(self) -> list[Share]:
        """Return those that are kept here; the others are forgotten."""
        with self._lock:
            self._shares = {share.id: share for share in self._shares.values() if share.stream is not None}
            return list(self._shares.values())

    def let_go(self) -> None:
        """Leave it to this process whether ended streams that the store does not have are kept: it is away."""
        for share in self.all():
            copy = share.copy
            if copy is not None and share.standing is not Standing.OPENING and not copy.stream.is_open:
                share.copy = None
                share.standing = Standing.APART
                copy.stream.end_copy()


def left(stream: CopiedStream, retention: float, least: float) -> float:
    """Return for how many more seconds an ended stream is kept: `least` at least, so that readers learn of its end."""
    ended = stream.ended
    return max(least, retention - (time.monotonic() - ended if ended is not None else 0.0))
