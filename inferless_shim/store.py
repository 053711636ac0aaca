"""Streams by id: what is kept, for how long, and what is forgotten first.

`Store.lock` guards the dict of streams and the idempotency keys; nothing under it takes a stream's lock. Memory is
bounded by `--max-streams` and `--log-total`: the oldest finished stream goes first. What is not here may still be in
the archive, which is asked without the lock.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable

from .allocator import Freed
from .archive import Archive
from .config import Settings
from .copies import CopiedStream
from .errors import Gone, NotFound, Unavailable
from .idempotency import IdempotencyKey
from .outputs import Dialect
from .stream import INTERRUPTED, Stream
from .tally import State
from .totals import Totals

# How many forgotten ids are still answered 410 rather than 404: 1 MB of ids.
FORGOTTEN_KEPT = 10_000
# How long a new stream waits for the client that asked for it, which attaches at once, even where linger is shorter.
FIRST_FOLLOWER = 10.0


class Store:
    """Every stream that can be followed or replayed; with an `archive`, also those of other processes."""

    def __init__(self, settings: Settings, archive: Archive | None = None) -> None:
        self.settings = settings
        self.archive = archive
        self.archive_started = archive is None  # the main thread says when
        self.lock = threading.Lock()
        self._streams: dict[str, Stream] = {}  # in the order of creation
        self._opening = 0  # how many are about to be in there
        self._keys: dict[tuple[str, str], tuple[IdempotencyKey, Stream]] = {}  # by place
        self._key_of: dict[str, tuple[str, str]] = {}  # stream id -> place of its key
        self._claimed: set[tuple[str, str]] = set()  # places of keys whose streams are being opened
        self._claim_ended = threading.Condition(self.lock)
        self._by_end: deque[str] = deque()  # ids of ended streams, the oldest end first
        self._forgotten: OrderedDict[str, str] = OrderedDict()  # id -> owner
        self._leaving: weakref.WeakSet[Stream] = weakref.WeakSet()  # forgotten, but somebody still reads them
        self._totals = Totals()  # of what is forgotten
        self._given_up = 0  # bytes that were kept of that, and are not in `freed` yet
        self.freed = Freed()

    def __len__(self) -> int:
        return len(self._streams)

    def open(
        self, dialect: Dialect | None, key: IdempotencyKey | None = None, *, owner: str = "", detached: bool = False
    ) -> Stream:
        """Make a stream; a `key` that was claimed leads to it from now on.

        Return it; or, if the key has made one in another process meanwhile, that one, which is `elsewhere`.
        Raises Unavailable (503) when `--max-streams` streams are all running, and what `Archive.open` raises.
        """
        make = Stream if self.archive is None else CopiedStream
        stream = make(
            dialect,
            log_cap=self.settings.log_cap,
            retry=self.settings.retry,
            owner=owner,
            keyed=key is not None,
            detached=detached,
        )
        self._take_place()
        elsewhere: Stream | None = None
        opened = False
        try:
            # An answer that nobody can ask for again ends with its request.
            if self.archive is not None and isinstance(stream, CopiedStream) and (dialect is not None or key):
                elsewhere = self.archive.open(stream, key)
            opened = elsewhere is None
        finally:
            with self.lock:  # in one step, so that there is never one too many
                self._opening -= 1
                if opened:
                    self._add(stream, key)
        return elsewhere or stream

    def _take_place(self) -> None:
        """Have room for one more stream. Raises Unavailable (503)."""
        with self.lock:
            if len(self._streams) + self._opening >= self.settings.max_streams:
                oldest = self._oldest_ended()
                if oldest is None:
                    raise Unavailable(
                        f"All {self.settings.max_streams} streams are running; try again shortly "
                        "(--max-streams bounds them)."
                    )
                self._forget(oldest)
            self._opening += 1

    def claim(self, key: IdempotencyKey) -> Stream | None:
        """Return the stream that `key` made; if none did, the key is the caller's until it has let go of it.

        Whoever comes with it meanwhile waits until the caller has opened a stream or was refused, which takes two other
        locks and what the archive is asked: so of two at once, one starts something and the other finds it. Raises
        UnprocessableContent (422), Unavailable (503).
        """
        self._check_archive()
        with self._claim_ended:
            while key.place in self._claimed:
                self._claim_ended.wait()
            known = self._find(key)
            if known is None:
                self._claimed.add(key.place)
        if known is not None and self.archive is not None:
            self.archive.vouch(known)
        elif self.archive is not None:
            try:
                known = self.archive.claimed(key)
            except BaseException:
                self.let_go(key)
                raise
            if known is not None:
                self.let_go(key)
        return known

    def let_go(self, key: IdempotencyKey) -> None:
        """Give up a claim, after the stream was opened, or because none was."""
        with self._claim_ended:
            self._claimed.discard(key.place)
            self._claim_ended.notify_all()

    def owner(self, stream_id: str) -> str | None:
        """Return whose stream this is, as long as it is kept; else None. Raises Unavailable (503)."""
        with self.lock:
            stream = self._streams.get(stream_id)
            if stream is not None and stream.dialect is not None:
                return stream.owner
        self._check_archive()
        return self.archive.owner(stream_id) if self.archive is not None else None

    def get(self, stream_id: str, owner: str = "") -> Stream:
        """Return the stream of this owner; another's is unknown, kept or forgotten.

        Raises Gone (410) if it was forgotten lately, NotFound (404) if it is unknown, Unavailable (503) if only other
        processes know and cannot be asked.
        """
        with self.lock:
            stream = self._streams.get(stream_id)
            if stream is not None and (stream.dialect is None or stream.owner != owner):
                stream = None
        self._check_archive()
        # Of one that others took for dead, they tell the end.
        if (stream is None or stream.cause == INTERRUPTED) and self.archive is not None:
            stream = self.archive.find(stream_id, owner) or stream
        if stream is not None:
            if self.archive is not None and not stream.elsewhere:
                self.archive.vouch(stream)
            return stream
        with self.lock:
            if self._forgotten.get(stream_id) == owner:
                raise Gone("This stream is no longer kept; start a new request (--retention says how long one is).")
        raise NotFound("There is no such stream; start a new request.")

    def whole(self, stream: Stream) -> Stream | None:
        """Return the same stream with all its events, if the archive has those that memory has lost."""
        if self.archive is None or stream.elsewhere or stream.is_open:
            return None
        return self.archive.find(stream.id, stream.owner)

    def delete(self, stream: Stream) -> None:
        """Drop an ended stream, wherever it is kept; its id answers 410 from here on."""
        self.forget(stream)
        if self.archive is not None:
            self.archive.delete(stream)
            self._remember_forgotten([(stream.id, stream.owner)])

    def forget(self, stream: Stream) -> None:
        """Drop an ended stream from memory now; its id answers 410 from here on, unless the archive keeps it."""
        with self.lock:
            self._forget(stream)

    def running(self) -> list[Stream]:
        """Return the streams that have not ended."""
        with self.lock:
            return [stream for stream in self._streams.values() if stream.is_open]

    def read(self) -> tuple[list[Stream], list[Stream], Totals]:
        """Return the streams that are kept, those that are forgotten but still read, and the totals of all forgotten.

        In one step, so that each stream is in the first or in the last.
        """
        with self.lock:
            return list(self._streams.values()), list(self._leaving), self._totals.copy()

    def sweep(self, now: float | None = None) -> None:
        """Cancel what nobody has followed for `linger`, forget what is past `retention`, and hold the total down.

        Called by the accept thread, several times a second.
        """
        now = time.monotonic() if now is None else now
        with self.lock:
            streams = list(self._streams.values())
        for stream in streams:
            linger = self.settings.linger if stream.followed else max(self.settings.linger, FIRST_FOLLOWER)
            if stream.is_open and stream.unfollowed_since(now - linger):
                message = "Nobody followed the stream any more, so it was cancelled."
                stream.fail("cancelled", message, cause="unfollowed", if_unfollowed_since=now - linger)
        with self.lock:
            for stream in streams:
                if stream.ended is not None and now - stream.ended >= self.settings.retention:
                    self._forget(stream)
        self._hold_total()
        if self.archive is not None and self.archive_started:
            self._remember_forgotten(self.archive.sweep(now))
        with self.lock:
            given_up, self._given_up = self._given_up, 0
        self.freed.add(given_up)

    def _hold_total(self) -> None:
        """Keep within `--log-total`: first goes what is forgotten but still read, then what ended, the oldest first.

        If what runs is too much by itself, the longest logs lose their beginning.
        """
        with self.lock:
            total = sum(stream.kept for stream in self._streams.values())
            leaving = list(self._leaving)
            if total + sum(stream.kept for stream in leaving) <= self.settings.log_total:
                return
            while total > self.settings.log_total and (oldest := self._oldest_ended()) is not None:
                total -= oldest.kept
                self._forget(oldest)
            running = list(self._streams.values())
        for stream in leaving:
            stream.shrink(0)
        if total > self.settings.log_total:
            largest = level((stream.kept for stream in running), self.settings.log_total)
            for stream in running:
                stream.shrink(largest)

    def _check_archive(self) -> None:
        """Raise Unavailable (503) as long as nobody knows what an earlier process has left."""
        if not self.archive_started:
            raise Unavailable("The streams of before are still being read; try again shortly.")

    def _remember_forgotten(self, forgotten: Iterable[tuple[str, str]]) -> None:
        with self.lock:
            for stream_id, owner in forgotten:
                stream = self._streams.get(stream_id)
                if stream is not None and not stream.is_open:  # another process has deleted it
                    self._forget(stream)
                self._remember(stream_id, owner)

    # ---- Needs self.lock

    def _add(self, stream: Stream, key: IdempotencyKey | None) -> None:
        self._streams[stream.id] = stream
        if key is not None:
            self._keys[key.place] = (key, stream)
            self._key_of[stream.id] = key.place

    def _find(self, key: IdempotencyKey) -> Stream | None:
        known = self._keys.get(key.place)
        if known is None:
            return None
        key.check(known[0].fingerprint)
        stream = known[1]
        if stream.cause == INTERRUPTED or (stream.dialect is None and stream.state is State.CANCELLED):
            # Others took us for dead; or its client had gone, and nothing can be replayed: the retry begins anew.
            self._forget(stream)
            return None
        return stream

    def _oldest_ended(self) -> Stream | None:
        """Return the stream that ended first of all that are kept; None if all are running.

        The queue is filled only when it is used up: what ends later than all in it comes after them anyway.
        """
        while self._by_end and self._by_end[0] not in self._streams:
            self._by_end.popleft()
        if not self._by_end:
            ended = [(each.ended, each.id) for each in self._streams.values() if each.ended is not None]
            self._by_end.extend(stream_id for _, stream_id in sorted(ended))
        return self._streams[self._by_end[0]] if self._by_end else None

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.id, None) is None:
            return
        self._leaving.add(stream)
        self._given_up += stream.kept
        self._totals.add(stream)  # takes no lock: it has ended
        place = self._key_of.pop(stream.id, None)
        if place is not None:
            del self._keys[place]
        if stream.dialect is not None:  # no client was ever told the id of an answer
            self._remember(stream.id, stream.owner)

    def _remember(self, stream_id: str, owner: str) -> None:
        self._forgotten[stream_id] = owner
        while len(self._forgotten) > FORGOTTEN_KEPT:
            self._forgotten.popitem(last=False)


def level(sizes: Iterable[int], room: int) -> int:
    """Return what the largest of `sizes` must be cut down to so that all fit into `room`."""
    ascending = sorted(sizes)
    for index, size in enumerate(ascending):
        share = room // (len(ascending) - index)
        if size > share:
            return share
        room -= size
    return ascending[-1] if ascending else room
