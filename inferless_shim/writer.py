"""Appends to the files of streams what they have made, on a thread of its own, which alone uses their descriptors.

It is a follower of their logs: nobody waits for it, but those who are to see nothing that is not synced. When the disk
fails it ends for the rest of the process, and the streams go on.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from . import records
from .copies import Batch, CopiedStream, Copy
from .folder import Folder, write_all
from .metrics import Counter, Family, Histogram, gauge
from .recorder import Recorder
from .records import End, Kind
from .shelf import Entry, Shelf
from .stream import READ_SIZE, Stream
from .tally import State

log = logging.getLogger(__name__)

# Seconds between two rounds of writing: the longer, the larger its batches. What is to be synced before clients see it
# is batched by the time that takes.
PAUSE, SYNCED_PAUSE = 0.1, 0.001
# How much is written at once, and how often of one stream before it is the others' turn.
WRITE_SIZE, WRITES = 1024 * 1024, 16
# How often it is seen to what is to be synced, if not in every round, and to be deleted.
TICK = 0.1
# When a file that has grown is synced then, and for how long at once: the thousands that hundreds of short streams a
# second leave must not keep those from being written that come after.
DUE, SLICE = 0.9, 0.05
# A process or a machine that is short of descriptors or memory will have some again.
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
SYNC_TIMES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Writer:
    """Writes to the files of a folder, of which `shelf` knows what they hold.

    `policy` is `--log-sync`, `most` how many bytes all files may have.
    """

    def __init__(self, folder: Folder, shelf: Shelf, *, policy: str, most: int) -> None:
        self.up = True
        self._folder = folder
        self._shelf = shelf
        self._policy = policy
        self._most = most
        pause = SYNCED_PAUSE if policy == "always" else PAUSE
        self._recorder = Recorder(self._write, pause=pause, tick=self._tick, every=TICK, name="journal")
        self._lock = threading.Lock()  # guards _running, and `up` as it changes
        self._running: dict[Copy, Entry] = {}
        self._doomed: deque[str] = deque()  # streams whose files are to be deleted
        # The recorder's thread alone has these, as long as it runs.
        self._unsynced: dict[str, tuple[float, Entry]] = {}  # since when, the oldest first
        self._orphans: list[tuple[Entry, weakref.ref[Stream]]] = []  # what goes on without its journal
        self._warned = False
        self._writes, self._syncs, self._losses = Counter(), Counter(), Counter()
        self._sync_times = Histogram(*SYNC_TIMES)

    # ---- The main thread

    def start(self, found: Iterable[Entry]) -> None:
        """Hold the files to their bound, and begin.

        The disk may lack what a process wrote that has died: with `always`, it has what was `found` before anybody
        sees that.
        """
        self._hold_total()
        self._delete_doomed()
        if self._policy != "off":
            self._unsynced = {entry.id: (0.0, entry) for entry in found}
        if self._policy == "always":
            try:
                self._sync()
            except OSError as error:
                self.give_up(error)
        self._recorder.start()

    def stop(self, timeout: float) -> bool:
        """Write what is not yet, and sync it if ever; return False if there was no time to write. All have ended."""
        deadline = time.monotonic() + timeout
        if not self._recorder.stop(timeout):
            return False
        if self._policy != "off":
            try:
                self._sync(deadline)
            except OSError as error:
                self.give_up(error)
            if self._unsynced:
                log.warning("%d files in %s are written, but not synced", len(self._unsynced), self._folder.path)
        return True

    # ---- Any thread

    def follow(self, stream: CopiedStream, entry: Entry) -> None:
        """Write what a stream makes from now on. Nobody else may know it yet."""
        copy = self._recorder.add(stream, gates=self._policy == "always")
        with self._lock:
            self._running[copy] = entry

    def doom(self, stream_id: str) -> None:
        """Have a file deleted soon."""
        self._doomed.append(stream_id)

    def give_up(self, error: Exception) -> None:
        """End the journal for the rest of the process. Any thread; the recorder's then abandons what runs."""
        with self._lock:
            was_up, self.up = self.up, False
        if was_up:
            log.error(
                "the journal in %s is off: %s. Streams go on in memory alone, and end with this process; what was "
                "written can still be read. Make room or mend the disk, then start the server anew.",
                self._folder.path, getattr(error, "strerror", None) or repr(error),
                exc_info=not isinstance(error, (OSError, MemoryError)),  # then it is our own fault
            )  # fmt: skip

    def count_loss(self, stream: Stream, why: str) -> None:
        """Count a stream that goes on without its journal, and warn of the first."""
        self._losses.add()
        if not self._warned:
            self._warned = True
            log.warning(
                "stream %s… goes on without its journal: %s (said once; shim_journal_lost_total counts)",
                stream.id[:8], why,
            )  # fmt: skip

    def families(self) -> Iterator[Family]:
        """Say what is kept, and how far that is behind."""
        with self._lock:
            running = list(self._running)
        lag = sum(max(0, copy.stream.log.last - copy.number) for copy in running)
        yield gauge("shim_journal_up", "1 while streams are written, 0 once the disk has failed.", self.up)
        yield gauge("shim_journal_bytes", "Bytes that the files which are kept take on the disk.", self._shelf.size)
        yield gauge("shim_journal_streams", "Streams that are kept in files.", len(self._shelf))
        yield gauge("shim_journal_lag_events", "Events not written yet; with --log-sync always, not synced yet.", lag)
        yield self._writes.family("shim_journal_writes_total", "Writes to files.")
        yield self._syncs.family("shim_journal_syncs_total", "Syncs of files.")
        yield self._sync_times.read().family("shim_journal_sync_seconds", "Time that the sync of a file took.")
        yield self._losses.family("shim_journal_lost_total", "Streams that went on without their journal.")

    # ---- The recorder's thread

    def _write(self, copies: Sequence[Copy]) -> None:
        """Write what is new of some streams, and sync it where nobody is to see it before."""
        if not self.up:
            self._abandon()
            return
        written: list[tuple[Copy, Entry, Batch]] = []
        try:
            for copy in copies:
                entry = self._running.get(copy)
                if entry is not None:
                    written.append((copy, entry, self._append(copy, entry)))
            if self._policy == "always":
                self._sync()
        except Exception as error:  # whatever it is: nobody may wait for ever behind a gate
            self.give_up(error)
            self._abandon()
            return
        for copy, entry, batch in written:
            self._settle(copy, entry, batch)
        self._hold_total()
        self._delete_doomed()

    def _append(self, copy: Copy, entry: Entry) -> Batch:
        """Append to a file what its stream has made since the last round; return what was read last."""
        for _ in range(WRITES):
            batch = self._append_once(copy, entry)
            if not batch.data or batch.ended or batch.lost or self._policy == "always":
                break
            copy.stream.copied(copy, batch.last)
        return batch._replace(data=b"")  # a round may have hundreds

    def _append_once(self, copy: Copy, entry: Entry) -> Batch:
        assert entry.descriptor is not None, "running"
        parts: list[bytes | bytearray] = []
        size = 0
        while size < WRITE_SIZE:
            batch = copy.stream.read_new(copy, READ_SIZE)
            if batch.data:
                kind = Kind.LAST_EVENTS if batch.ended else Kind.EVENTS
                parts += (records.header_of(kind, batch.last, batch.data), batch.data)
                size += len(parts[-2]) + len(batch.data)
            if batch.lost:
                parts.append(records.record(Kind.LOST, batch.last))
            elif batch.ended:
                parts.append(records.end_record(end_of(copy.stream), batch.last))
                entry.end_at = entry.size + size
            if batch.lost or batch.ended or not batch.data:
                break
        data = b"".join(parts)
        if data:
            write_all(entry.descriptor, data, entry.size)
            self._writes.add()
            self._shelf.resize(entry, entry.size + len(data))
            self._unsynced.setdefault(entry.id, (time.monotonic(), entry))
        entry.last = batch.last
        return batch

    def _settle(self, copy: Copy, entry: Entry, batch: Batch) -> None:
        """Say that what was read is safe, and let go of a stream that was written to its end."""
        stream = copy.stream
        if batch.lost:
            self._lose(copy, entry)
            self.count_loss(stream, "the disk is too slow")
            return
        stream.copied(copy, batch.last)
        if batch.ended:
            assert stream.ended is not None
            self._let_go(copy, entry)
            claimable = stream.dialect is not None or stream.state is not State.CANCELLED
            self._shelf.end(entry, stream.ended, claimable=claimable)

    def _lose(self, copy: Copy, entry: Entry) -> None:
        """Let a stream go on without its journal."""
        self._let_go(copy, entry)
        entry.lost, entry.stream = True, None
        self._orphans.append((entry, weakref.ref(copy.stream)))

    def _let_go(self, copy: Copy, entry: Entry) -> None:
        copy.stream.end_copy()
        if entry.descriptor is not None:
            os.close(entry.descriptor)
            entry.descriptor = None
        with self._lock:
            self._running.pop(copy, None)

    def _abandon(self) -> None:
        with self._lock:
            running = list(self._running.items())
        for copy, entry in running:
            self._losses.add()
            self._lose(copy, entry)

    def _tick(self) -> None:
        if not self.up:
            self._abandon()
        elif self._policy == "interval":
            now = time.monotonic()
            try:
                self._sync(now + SLICE, grown_before=now - DUE)
            except OSError as error:
                if error.errno not in PASSING:  # else it is tried again
                    self.give_up(error)
                    self._abandon()
        self._end_orphans()
        self._delete_doomed()

    def _sync(self, deadline: float = math.inf, *, grown_before: float = math.inf) -> None:
        """Have the disk take what it was not seen to take yet, the oldest first. Raises OSError."""
        synced = 0
        while self._unsynced and (began := time.monotonic()) < deadline:
            stream_id, (since, entry) = next(iter(self._unsynced.items()))
            if since > grown_before:
                break
            self._folder.sync_file(stream_id, entry.descriptor)
            self._sync_times.observe(time.monotonic() - began)
            self._syncs.add()
            del self._unsynced[stream_id]
            synced += 1
        if synced or not self._unsynced:
            self._folder.sync()

    def _end_orphans(self) -> None:
        """Begin the retention of what has ended, or was forgotten, without its journal."""
        for entry, known in self._orphans:
            stream = known()
            ended = time.monotonic() if stream is None else stream.ended
            if ended is not None:
                self._shelf.end(entry, ended, claimable=False)
        self._orphans = [each for each in self._orphans if each[0].ended is None]

    def _hold_total(self) -> None:
        """Keep within `--log-dir-total`: what ended first goes first; else the longest file keeps its head alone."""
        while self._shelf.size > self._most:
            ended = self._shelf.take_ended(math.inf)
            if ended is not None:
                self._doomed.append(ended.id)
                continue
            with self._lock:
                running = list(self._running.items())
            copy, entry = max(running, key=lambda each: each[1].size, default=(None, None))
            if copy is None or entry is None or entry.descriptor is None:
                return
            lost = records.record(Kind.LOST, 0)
            try:
                os.ftruncate(entry.descriptor, entry.begun)
                write_all(entry.descriptor, lost, entry.begun)
                self._shelf.resize(entry, entry.begun + len(lost))
            except OSError as error:
                self.give_up(error)
            self._lose(copy, entry)
            self.count_loss(copy.stream, "--log-dir-total is used up by streams that run")

    def _delete_doomed(self) -> None:
        while self._doomed:
            stream_id = self._doomed.popleft()
            self._unsynced.pop(stream_id, None)
            self._folder.delete(stream_id)


def end_of(stream: Stream) -> End:
    """Say how a stream has ended, and when by the wall clock."""
    assert stream.ended is not None, "it runs"
    ended = time.time() - (time.monotonic() - stream.ended)
    events = stream.tally().events
    return End(stream.state, ended, events, stream.failure, stream.cause, answer=stream.answer)
