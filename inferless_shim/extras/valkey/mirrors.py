"""Streams of other replicas that are followed here, each once however many follow it.

The handler thread that opens a mirror reads what there is in pages; from then on the reader's thread feeds it. One that
nobody follows is dropped after a while, and read anew when somebody comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from ...errors import Unavailable
from ...eventlog import EventLog
from ...mirror import Mirror
from ...store import level
from ...subscriber import Subscriber
from . import entries
from .commands import command
from .heads import Head
from .names import Names
from .wire import Away, Reach

log = logging.getLogger(__name__)

PAGE = 16  # entries, of 64 KiB at most as a rule
UNFOLLOWED = 5.0  # seconds until a mirror that nobody follows is dropped
LOADING = 30.0  # seconds that others wait for the thread that loads a mirror


class Gap(Exception):
    """Events that come next are not in the store any more."""


class StoreMirror(Mirror):
    """A stream of another replica. `last_id` is the last entry that was received; one thread at a time receives."""

    def __init__(self, mirrors: Mirrors, stream_id: str, head: Head, *, log_cap: int, retry: float) -> None:
        dialect = head.dialect(mirrors.model)
        super().__init__(dialect, id=stream_id, log_cap=log_cap, retry=retry, owner=head.owner, keyed=bool(head.place))
        self.replica = head.replica
        self.last_id = b"0-0"
        self.loaded = threading.Event()
        self._mirrors = mirrors

    @property
    def is_fed(self) -> bool:
        """Whether the reader's thread feeds it."""
        return self.is_open and self.loaded.is_set()

    # ---- A handler thread

    def attach(self, subscriber: Subscriber, number: int) -> bool:
        """Follow it; the replica that runs it is told so."""
        attached = super().attach(subscriber, number)
        if attached:
            self._mirrors.followed(self)
        return attached

    def fail(self, code: str, message: str, *, cause: str = "", if_unfollowed_since: float | None = None) -> bool:
        """Ask the replica that runs it to cancel it; its end comes from there. Raises Unavailable (503).

        Return False if it has ended.
        """
        if not self.is_open:
            return False
        try:
            self._mirrors.cancel(self)
        except Away:
            raise Unavailable("The store that the replicas share does not answer; try again shortly.") from None
        return True

    # ---- Who receives

    def take(self, entry_id: bytes, fields: Sequence[bytes]) -> None:
        """Take the next entry. Raises Gap, ValueError for one that makes no sense."""
        entry = entries.read(entry_id, entries.paired(fields))
        if isinstance(entry, entries.Events):
            self._take_events(entry)
        elif isinstance(entry, entries.End):
            if entry.last != self.log.last:
                raise Gap
            self.end_as(entry.state, entry.failure, entry.cause, entry.answer)
        elif isinstance(entry, entries.Interrupted):
            self.interrupt(entry.kept)
        self.last_id = entry_id

    def _take_events(self, entry: entries.Events) -> None:
        last = self.log.last
        if entry.last <= last:  # written again, after the store had lost it
            return
        if entry.first > last + 1:
            if self.loaded.is_set():
                raise Gap
            # Nobody follows it yet: what came before is forgotten everywhere, or was never written.
            with self.lock:
                self.log = EventLog(self.log.cap)
                self.log.begin(entry.first)
            last = entry.first - 1
        frames = entries.split(entry.data)
        if len(frames) != entry.last - entry.first + 1:
            raise ValueError("an entry has not the events that it says")
        self.receive(frames[last + 1 - entry.first :])


class Mirrors:
    """The mirrors, by id. `lock` guards the dict; nothing under it takes a stream's lock."""

    def __init__(self, reach: Reach, names: Names, model: str, *, log_cap: int, retry: float) -> None:
        self.reach = reach
        self.names = names
        self.model = model
        self._log_cap = log_cap
        self._retry = retry
        self.lock = threading.Lock()
        self._mirrors: dict[str, StoreMirror] = {}
        # The reader's: look at them again; have the replica that runs one cancel it.
        self.changed: Callable[[], None] = lambda: None
        self.cancel: Callable[[StoreMirror], None] = lambda mirror: None

    def __len__(self) -> int:
        return len(self._mirrors)

    def all(self) -> list[StoreMirror]:
        with self.lock:
            return list(self._mirrors.values())

    # ---- A handler thread

    def known(self, stream_id: str) -> StoreMirror | None:
        """Return a mirror that is loaded."""
        mirror = self._mirrors.get(stream_id)
        return mirror if mirror is not None and mirror.loaded.is_set() else None

    def open(self, stream_id: str, head: Head) -> StoreMirror:
        """Return the mirror of a stream, with all that the store has of it. Raises Away, ValueError."""
        made = StoreMirror(self, stream_id, head, log_cap=self._log_cap, retry=self._retry)
        with self.lock:
            mirror = self._mirrors.setdefault(stream_id, made)
        if mirror is not made:
            if not mirror.loaded.wait(LOADING) or self._mirrors.get(stream_id) is not mirror:
                raise Away("the stream could not be read")
            return mirror
        try:
            self._load(mirror)
        except BaseException:
            self.drop(mirror)
            raise
        finally:
            mirror.loaded.set()
        return mirror

    def _load(self, mirror: StoreMirror) -> None:
        """Read what the store has, page by page."""
        name = self.names.stream(mirror.id)
        while True:
            page = self.reach.ask(command("XRANGE", name, b"(" + mirror.last_id, "+", "COUNT", PAGE))[0]
            for entry_id, fields in page:
                mirror.take(entry_id, fields)
            if len(page) < PAGE:
                return

    def followed(self, mirror: StoreMirror) -> None:
        """Note that somebody follows it: it is fed again, if it was about to be dropped."""
        with self.lock:
            fed = self._mirrors.setdefault(mirror.id, mirror)
        if fed is not mirror:  # it was dropped, and read anew for another client: this one comes back
            mirror.sever()
        elif mirror.is_open:
            self.changed()

    # ---- The reader's thread

    def drop(self, mirror: StoreMirror) -> None:
        with self.lock:
            if self._mirrors.get(mirror.id) is mirror:
                del self._mirrors[mirror.id]

    def drop_unfollowed(self) -> None:
        """Drop what nobody has followed for a while."""
        since = time.monotonic() - UNFOLLOWED
        for mirror in self.all():
            if mirror.loaded.is_set() and mirror.unfollowed_since(since):
                self.drop(mirror)
                if mirror.unfollowed is None:  # somebody came just now
                    self.followed(mirror)

    def hold(self, total: int) -> None:
        """Keep within so many bytes: first go mirrors that nobody follows, then the longest lose their beginning."""
        mirrors = self.all()
        if sum(mirror.kept for mirror in mirrors) <= total:
            return
        for mirror in mirrors:
            if mirror.unfollowed is not None and mirror.loaded.is_set():
                self.drop(mirror)
        mirrors = self.all()
        largest = level((mirror.kept for mirror in mirrors), total)
        for mirror in mirrors:
            mirror.shrink(largest)

    def sever(self, mirror: StoreMirror) -> None:
        """Let go of those who follow it: they come back, and it is read anew."""
        self.drop(mirror)
        mirror.sever()
