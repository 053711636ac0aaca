"""Streams survive the process: each has a file in `--log-dir`, written behind its events by a thread of its own.

A handler thread makes the file before a client is told of its stream; everything after that is appended by the
recorder's thread, which alone uses a file's descriptor. What has ended is read from its file on handler threads. When
the disk fails, the journal ends for the rest of the process, and streams go on without it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Iterator

from . import records
from .archived import Archived, read_ends
from .config import Settings
from .copies import CopiedStream
from .errors import Gone
from .folder import Folder
from .idempotency import IdempotencyKey
from .metrics import Counter, Family
from .records import Damaged, Head
from .recovery import Found, recover
from .shelf import Entry, Shelf
from .stream import Stream
from .tally import State
from .writer import PASSING, Writer

log = logging.getLogger(__name__)


class Journal:
    """The Archive in a folder. `model` is the app's name, which is in the events of some dialects."""

    def __init__(self, settings: Settings, model: str) -> None:
        assert settings.log_dir is not None, "--log-dir"
        self._model = model
        self._retention = settings.retention
        self._retry = settings.retry
        self._folder = Folder(settings.log_dir)
        self._shelf = Shelf()
        self._writer = Writer(self._folder, self._shelf, policy=settings.log_sync, most=settings.log_dir_total)
        self._interruptions = Counter()

    # ---- The main thread

    def start(self) -> None:
        """Take the folder, bring its files in order, and begin to write. Raises StartupError."""
        self._folder.lock()
        began = time.monotonic()
        entries = [self._add_found(found) for found in recover(self._folder.path, time.time())]
        if len(self._shelf):
            interrupted = self._interruptions.read().get((), 0)
            log.info(
                "%s holds %d streams of %d bytes, %d of them interrupted (read in %.1f s)",
                self._folder.path, len(self._shelf), self._shelf.size, interrupted, time.monotonic() - began,
            )  # fmt: skip
        self._writer.start(entries)

    def _add_found(self, found: Found) -> Entry:
        """Put a stream of an earlier life on the shelf. Its retention goes on from when it ended by the wall clock.

        Where that clock went backwards meanwhile, from now.
        """
        head, end = found.head, found.end
        ended = time.monotonic() - max(0.0, time.time() - end.ended)
        is_answer = not head.dialect
        claimable = end.kept is None and not (is_answer and end.state is State.CANCELLED)
        self._interruptions.add(by=int(found.fresh))
        entry = Entry(
            head.stream,
            head.owner,
            is_answer,
            head.key if claimable else "",
            head.fingerprint,
            size=found.size,
            last=found.last,
            end_at=found.end_at,
            ended=ended,
            end=None if found.written else end,
        )
        self._shelf.add(entry)
        return entry

    def close(self, timeout: float) -> None:
        """Write and sync what is not yet, whatever the policy, and let go of the folder."""
        if not self._writer.stop(timeout):
            log.error("not all of the streams in %s could be written in time", self._folder.path)
        self._folder.unlock()

    # ---- A handler thread

    def open(self, stream: CopiedStream, key: IdempotencyKey | None) -> None:
        """Make a stream's file. If that fails, the stream goes on without one."""
        if not self._writer.up:
            return
        dialect = stream.dialect.kind if stream.dialect is not None else ""
        head = Head(
            stream.id,
            time.time(),
            stream.owner,
            dialect,
            self._model,
            stream.unfollowed is None,
            self._retry,
            key_hash(key),
            key.fingerprint.hex() if key is not None else "",
        )
        data = records.head_record(head)
        try:
            descriptor = self._folder.create(stream.id, data)
        except OSError as error:
            if error.errno in PASSING:
                self._writer.count_loss(stream, error.strerror or "")
            else:
                self._writer.give_up(error)
            return
        entry = Entry(
            stream.id, stream.owner, not dialect, head.key, head.fingerprint, stream, descriptor, len(data), len(data)
        )
        self._shelf.add(entry)
        self._writer.follow(stream, entry)

    def claimed(self, key: IdempotencyKey) -> Stream | None:
        """Return the stream that `key` has made, unless that was interrupted or lost. Raises UnprocessableContent."""
        entry = self._shelf.by_key(key_hash(key))
        if entry is None or entry.lost:
            return None
        key.check(bytes.fromhex(entry.fingerprint))
        stream = entry.stream
        if stream is not None and stream.dialect is None and stream.state is State.CANCELLED:
            return None
        try:
            return stream or self._read(entry)
        except Gone:  # then it is made anew
            return None

    def find(self, stream_id: str, owner: str) -> Stream | None:
        """Return a stream of this owner's: itself until its end is written, from its file afterwards. Raises Gone."""
        entry = self._shelf.get(stream_id)
        if entry is None or entry.owner != owner or entry.is_answer:
            return None
        stream = entry.stream  # read once: the recorder takes it away
        if stream is not None:
            return stream
        return None if entry.lost else self._read(entry)

    def vouch(self, stream: Stream) -> None:
        """Nobody else can say anything of what runs here."""

    def owner(self, stream_id: str) -> str | None:
        entry = self._shelf.get(stream_id)
        return None if entry is None or entry.is_answer else entry.owner

    def delete(self, stream: Stream) -> None:
        """Delete an ended stream's file, whether its end is written or not."""
        entry = self._shelf.get(stream.id)
        if entry is not None:
            self._shelf.remove(entry)
            self._folder.delete(entry.id)
            self._writer.doom(entry.id)  # the recorder's thread may know it still

    def _read(self, entry: Entry) -> Archived:
        """Open a stream that has ended. Raises Gone if its file is gone or damaged, Unavailable if that may pass."""
        give_up = functools.partial(self._give_up, entry)
        path = self._folder.file(entry.id)
        try:
            head, end = read_ends(path, entry.end_at, entry.end)
            return Archived(head, end, path, last=entry.last, end_at=entry.end_at, damaged=give_up)
        except (Damaged, OSError) as error:
            give_up(error)
            raise Gone("What was kept of this stream is damaged; start a new request.") from None

    def _give_up(self, entry: Entry, error: Exception) -> None:
        """Give up a stream that cannot be read: what is damaged is deleted, else the file is left to the next start."""
        if self._shelf.holds(entry):  # else it was deleted meanwhile
            log.error("the file of stream %s… is given up: %s", entry.id[:8], error)
            self._shelf.take(entry)
            if isinstance(error, Damaged):
                self._writer.doom(entry.id)

    def families(self) -> Iterator[Family]:
        yield from self._writer.families()
        text = "Streams whose process had died, found at the start."
        yield self._interruptions.family("shim_journal_interrupted_total", text)

    # ---- The accept thread

    def sweep(self, now: float) -> Iterable[tuple[str, str]]:
        """Take away what is past its retention; the recorder's thread deletes the files."""
        while (entry := self._shelf.take_ended(now - self._retention)) is not None:
            self._writer.doom(entry.id)
        return self._shelf.told()

    def sever(self) -> None:
        """Nobody follows another process here."""


def key_hash(key: IdempotencyKey | None) -> str:
    """Return what the disk may know of an Idempotency-Key and its owner."""
    if key is None:
        return ""
    import hashlib  # OpenSSL, 3 MB, which only this needs

    return hashlib.sha256("\0".join(key.place).encode()).hexdigest()
