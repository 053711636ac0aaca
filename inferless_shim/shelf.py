"""Which streams a journal's folder holds: by id, by Idempotency-Key, by their end. No payloads, no I/O.

`Shelf.lock` guards it all; nothing else is done under it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from .copies import CopiedStream
from .records import End

# What file systems give out at once, most of them.
BLOCK = 4096


@dataclass(eq=False, slots=True)
class Entry:
    """A stream in a file of `size` bytes, with events up to `last`.

    `stream` is itself, until its end is written; from then on `end_at` is where in the file that is, and `ended` when
    it was (time.monotonic). One that is `lost` went on without its journal. `end` is an end that could not be written.
    """

    id: str
    owner: str
    is_answer: bool = False  # of which no client knows the id
    key: str = ""
    fingerprint: str = ""
    stream: CopiedStream | None = None
    descriptor: int | None = None  # while it is written: the recorder's thread alone uses it
    begun: int = 0  # how many bytes its head has
    size: int = 0
    last: int = 0
    end_at: int = 0
    ended: float | None = None
    end: End | None = None
    lost: bool = False


class Shelf:
    """The streams of a folder. Any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._keys: dict[str, Entry] = {}
        self._by_end: list[tuple[float, str]] = []  # a heap
        self._taken: list[tuple[str, str]] = []  # ids and owners of those that were taken away, and not told yet
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """How many bytes their files take on the disk."""
        return self._size

    def add(self, entry: Entry) -> None:
        """Add a stream; its key leads to it from now on."""
        with self.lock:
            self._entries[entry.id] = entry
            self._size += taken(entry.size)
            if entry.key:
                self._keys[entry.key] = entry
            if entry.ended is not None:
                heapq.heappush(self._by_end, (entry.ended, entry.id))

    def get(self, stream_id: str) -> Entry | None:
        with self.lock:
            return self._entries.get(stream_id)

    def by_key(self, key: str) -> Entry | None:
        with self.lock:
            return self._keys.get(key)

    def holds(self, entry: Entry) -> bool:
        with self.lock:
            return self._entries.get(entry.id) is entry

    def resize(self, entry: Entry, size: int) -> None:
        """Note how large a file is now."""
        with self.lock:
            if self._entries.get(entry.id) is entry:
                self._size += taken(size) - taken(entry.size)
            entry.size = size

    def end(self, entry: Entry, ended: float, *, claimable: bool) -> None:
        """Note that a stream has ended; unless it is `claimable`, its key leads to it no more."""
        with self.lock:
            entry.ended = ended
            entry.stream = None
            if self._entries.get(entry.id) is entry:
                heapq.heappush(self._by_end, (ended, entry.id))
                if not claimable:
                    self._give_up_key(entry)

    def remove(self, entry: Entry) -> None:
        """Forget a stream whose file is gone."""
        with self.lock:
            self._remove(entry)

    def take(self, entry: Entry) -> None:
        """Forget a stream, and tell whose it was."""
        with self.lock:
            self._take(entry)

    def take_ended(self, before: float) -> Entry | None:
        """Remove and return the stream that ended first, if that was before a time of `time.monotonic`."""
        with self.lock:
            while self._by_end and self._by_end[0][0] <= before:
                entry = self._entries.get(heapq.heappop(self._by_end)[1])
                if entry is not None:
                    self._take(entry)
                    return entry
            return None

    def told(self) -> Iterable[tuple[str, str]]:
        """Return the ids and owners of those that were taken since the last call."""
        with self.lock:
            taken, self._taken = self._taken, []
            return taken

    # ---- Needs self.lock

    def _take(self, entry: Entry) -> None:
        if self._entries.get(entry.id) is entry:
            self._remove(entry)
            self._taken.append((entry.id, entry.owner))

    def _remove(self, entry: Entry) -> None:
        if self._entries.get(entry.id) is entry:
            del self._entries[entry.id]
            self._size -= taken(entry.size)
            self._give_up_key(entry)

    def _give_up_key(self, entry: Entry) -> None:
        if self._keys.get(entry.key) is entry:
            del self._keys[entry.key]


def taken(size: int) -> int:
    """Return what a file of `size` bytes takes on the disk: so a bound on that bounds the number of files, too."""
    return -(-size // BLOCK) * BLOCK
