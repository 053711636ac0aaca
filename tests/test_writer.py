"""The journal's thread: what is in the files when, what waits for it, and what becomes of streams when it fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from inferless_shim import folder as folder_module
from inferless_shim import writer as writer_module
from inferless_shim.journal import Journal
from inferless_shim.outputs import Answer
from inferless_shim.subscriber import Progress, Subscriber
from tests.journals import JournalTest, Reader, read
from tests.support import MS, eventually

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """Stands for the system's calls: `gate` holds writes and syncs until it is set, `fault` makes them fail."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.fault: OSError | None = None
        self.calls: list[str] = []
        self._write, self._sync = os.write, folder_module.sync_data

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.gate.wait()
        if self.fault is not None:
            raise self.fault

    def write(self, descriptor: int, data: Any) -> int:
        if threading.current_thread().name != "journal":
            return self._write(descriptor, data)
        self._call("write")
        return self._write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._call("sync")
        self._sync(descriptor)


class WriterTest(JournalTest):
    def setUp(self) -> None:
        super().setUp()
        self.disk = Disk()
        for patch in (
            mock.patch("os.write", self.disk.write),
            mock.patch.object(folder_module, "sync_data", self.disk.sync),
        ):
            patch.start()
            self.addCleanup(patch.stop)
        self.addCleanup(self.disk.gate.set)

    def file(self, stream: Any) -> Path:
        return self.folder / f"{stream.id}.log"

    @contextlib.contextmanager
    def says(self, *words: str, level: str = "ERROR") -> Iterator[None]:
        """See that one line is logged, which has these words."""
        with self.assertLogs("inferless_shim.writer", level) as logged:
            yield
        self.assertEqual(len(logged.output), 1, logged.output)
        for word in words:
            self.assertIn(word, logged.output[0])


class Writing(WriterTest):
    def test_everything_is_written_in_order(self) -> None:
        """What a dead process leaves is what its streams had made, however large its batches were."""
        for policy in ("off", "interval", "always"):
            with self.subTest(policy):
                journal = self.journal(self.folder / policy, log_sync=policy)
                streams = [self.stream(journal) for _ in range(4)]
                for size in (1, 50, 3000):
                    for stream in streams:
                        self.add(stream, 100, size)
                for stream in streams:
                    stream.finish()
                for stream in streams:
                    whole = bytes(stream.log.read(0, 1 << 30))
                    self.assertEqual(read(self.ended(journal, stream)), whole)

    def test_what_comes_together_is_one_write(self) -> None:
        """Events that were made while the disk was busy are written at once, a record for each 64 KiB of them."""
        journal = self.journal()
        stream = self.stream(journal)
        self.disk.gate.clear()
        self.add(stream, 1)
        eventually(lambda: self.disk.calls.count("write") == 1)
        self.add(stream, 2000)
        self.disk.gate.set()
        self.written(journal)
        self.assertEqual(self.disk.calls.count("write"), 2)
        self.assertLess(self.file(stream).stat().st_size, stream.log.end + 1000)

    def test_the_model_never_waits(self) -> None:
        """While the disk hangs, events go to the clients; with `always` they wait there, but the model does not."""
        for policy, seen in (("interval", 5), ("always", 0)):
            with self.subTest(policy):
                journal = self.journal(self.folder / policy, log_sync=policy)
                stream = self.stream(journal)
                reader = Reader(stream)
                self.assertIs(stream.advance(reader.subscriber), Progress.CAUGHT_UP)
                self.disk.gate.clear()
                self.add(stream, 5)
                while stream.advance(reader.subscriber) is Progress.MORE:
                    pass
                self.assertEqual(reader.got.count(b"\nid: "), seen)
                self.assertEqual(self.metric(journal, "shim_journal_lag_events"), 5)
                self.disk.gate.set()
                eventually(lambda reader=reader: reader.got.count(b"\nid: ") == 5)  # type: ignore[misc]

    def test_always_shows_nothing_that_is_not_synced(self) -> None:
        """Between a write and the client there is a sync; the journal's thread sends what waited."""
        journal = self.journal(log_sync="always")
        stream = self.stream(journal)
        seen: list[list[str]] = []
        subscriber = Subscriber(lambda data: seen.append(list(self.disk.calls)) or len(data), lambda: None)  # type: ignore[func-returns-value]
        self.assertTrue(stream.attach(subscriber, 0))
        self.assertIs(stream.advance(subscriber), Progress.CAUGHT_UP)
        for _ in range(3):
            self.disk.calls.clear()
            self.add(stream, 1)
            eventually(lambda: seen)
            self.assertEqual(seen, [["write", "sync"]])
            seen.clear()

    def test_interval_syncs_soon_and_off_never(self) -> None:
        """A file is synced after it was written, also if it was closed meanwhile; with `off` never."""
        for policy in ("interval", "off"):
            with self.subTest(policy):
                self.disk.calls.clear()
                journal = self.journal(self.folder / policy, log_sync=policy)
                stream = self.stream(journal, 3)
                stream.finish()
                self.ended(journal, stream)
                if policy == "interval":
                    eventually(lambda: "sync" in self.disk.calls)
                else:
                    time.sleep(5 * writer_module.TICK)  # nothing is to happen, which no condition tells
                self.assertEqual("sync" in self.disk.calls, policy == "interval")
                self.disk.calls.clear()
                self.stream(journal, 1).finish()
                journal.close(30)
                self.assertEqual(self.disk.calls.count("sync"), 1 if policy == "interval" else 0)

    def test_syncs_do_not_hold_up_writes(self) -> None:
        """Once the syncs of many short streams took seconds, in which nothing was written and no file was closed."""
        journal = self.journal()
        order: list[str] = []
        first = threading.Event()

        def slow(descriptor: int) -> None:
            order.append("sync")
            first.set()
            time.sleep(writer_module.SLICE)

        with mock.patch.object(folder_module, "sync_data", slow):
            for _ in range(20):
                self.stream(journal, 1).finish()
            self.assertTrue(first.wait(60))
            late = self.stream(journal, 1)
            late.finish()
            self.ended(journal, late)
            self.assertLess(len(order), 10)
            eventually(lambda: len(order) > 20)

    def test_what_is_found_at_the_start_is_synced(self) -> None:
        """What a dead process had written may be on no disk yet: with `always` it is before anybody is shown it."""
        for policy, first in (("always", True), ("interval", False), ("off", False)):
            with self.subTest(policy):
                self.folder = self.parent / policy
                journal = self.journal(log_sync=policy)
                running, ended = self.stream(journal, 3), self.stream(journal, 1)
                ended.finish()
                self.ended(journal, ended)
                self.written(journal)
                with mock.patch.object(writer_module, "TICK", 50 * MS):
                    journal.close(30)
                    self.disk.calls.clear()
                    life = self.journal(self.folder, log_sync=policy)
                self.assertEqual(self.disk.calls.count("sync"), 2 if first else 0)
                self.assertIsNotNone(life.find(running.id, ""))
                if policy == "interval":
                    eventually(lambda: self.disk.calls.count("sync") == 2)

    def test_a_fault_of_our_own_ends_the_journal(self) -> None:
        """Once it was logged and tried again for ever, and with `always` nobody saw what was made in between."""
        journal = self.journal(log_sync="always")
        stream = self.stream(journal)
        self.written(journal)
        reader = Reader(stream)
        self.assertIs(stream.advance(reader.subscriber), Progress.CAUGHT_UP)
        fault = mock.patch.object(writer_module.records, "header_of", side_effect=KeyError("ours"))
        with self.says("journal in", "KeyError", "Traceback"), fault:
            self.add(stream, 3)
            eventually(lambda: reader.got.count(b"\nid: ") == 3)
        self.assertEqual(self.metric(journal, "shim_journal_up"), 0)

    def test_a_sync_that_fails_ends_the_journal(self) -> None:
        """What the disk may not have is not called safe: the journal is off, and nobody waits for it any more."""
        for policy in ("interval", "always"):
            with self.subTest(policy):
                self.disk.fault = None
                journal = self.journal(self.folder / policy, log_sync=policy)
                stream = self.stream(journal)
                self.written(journal)
                reader = Reader(stream)
                self.assertIs(stream.advance(reader.subscriber), Progress.CAUGHT_UP)
                with (
                    self.says("journal in", "Input/output error", "memory alone"),
                    mock.patch.object(folder_module, "sync_data", side_effect=OSError(errno.EIO, "Input/output error")),
                ):
                    self.add(stream, 3)
                    eventually(lambda reader=reader: reader.got.count(b"\nid: ") == 3)  # type: ignore[misc]
                    eventually(lambda journal=journal: not self.metric(journal, "shim_journal_up"))  # type: ignore[misc]


class Failing(WriterTest):
    def fail_disk(self, journal: Journal, stream: Any) -> None:
        with self.says("is off", "No space left", str(self.folder), "start the server anew"):
            self.disk.fault = DISK_FULL
            self.add(stream, 1)
            eventually(lambda: not journal._writer._running, what="the journal gives up")
        self.disk.fault = None

    def test_disk_full(self) -> None:
        """The journal is off, loudly and for good; what was written is served, and streams go on from memory."""
        for policy in ("interval", "always"):
            with self.subTest(policy):
                self.folder = self.parent / policy
                journal = self.journal(log_sync=policy)
                over, running = self.stream(journal, 3), self.stream(journal, 3)
                over.finish()
                archived = self.ended(journal, over)
                self.written(journal)
                self.fail_disk(journal, running)
                self.assertEqual(self.metric(journal, "shim_journal_up"), 0)
                self.assertEqual(self.metric(journal, "shim_journal_lost_total"), 1)
                self.add(running, 2)
                self.assertEqual(Reader(running).follow_now(), 6)
                self.assertEqual(read(archived), bytes(over.log.read(0, 1 << 20)))
                late = self.stream(journal, 2)
                self.assertEqual(Reader(late).follow_now(), 2)
                self.assertFalse(self.file(late).exists())
                journal.delete(over)
                self.assertFalse(self.file(over).exists())
                after = self.after_death()  # with what was written before
                kept = after.find(running.id, "")
                assert kept is not None
                self.assertEqual(kept.kept_events, 3)

    def test_no_room_for_a_new_file(self) -> None:
        """A stream that begins on a full disk goes on without its journal, and so do those that run."""
        journal = self.journal(log_sync="always")
        running = self.stream(journal, 1)
        self.written(journal)
        with self.says("is off"), mock.patch.object(folder_module.Folder, "create", side_effect=DISK_FULL):
            self.stream(journal, 1)
        self.add(running, 1)
        eventually(lambda: Reader(running).follow_now() == 2)

    def test_no_descriptors_left(self) -> None:
        """That passes: one stream goes without its journal, which is counted, and the next has one again."""
        journal = self.journal()
        error = OSError(errno.EMFILE, "Too many open files")
        with (
            self.says("Too many open files", level="WARNING"),
            mock.patch.object(folder_module.Folder, "create", side_effect=error),
        ):
            stream = self.stream(journal, 1)
        self.assertIsNone(journal.find(stream.id, ""))
        self.assertEqual(self.metric(journal, "shim_journal_lost_total"), 1)
        other = self.stream(journal, 1)
        self.assertIs(journal.find(other.id, ""), other)

    def test_no_descriptor_to_sync_with(self) -> None:
        """A file that was closed is opened again for its sync; if that cannot be just now, it is tried again."""
        journal = self.journal()
        self.disk.fault = OSError(errno.EMFILE, "Too many open files")
        with mock.patch("os.write", self.disk._write):
            stream = self.stream(journal, 1)
            stream.finish()
            self.ended(journal, stream)
            eventually(lambda: self.disk.calls.count("sync") > 2)
        self.assertEqual(self.metric(journal, "shim_journal_up"), 1)
        self.disk.fault = None
        eventually(lambda: self.metric(journal, "shim_journal_syncs_total") == 1)

    def test_too_slow_a_disk(self) -> None:
        """A stream that is twice its cap ahead of the disk goes on without its journal, which ends with a marker."""
        journal = self.journal()
        stream = self.stream(journal, log_cap=10_000)
        with self.says("too slow", stream.id[:8], level="WARNING"):
            self.disk.gate.clear()
            self.add(stream, 3)
            eventually(lambda: self.disk.calls)
            self.add(stream, 500)
            self.disk.gate.set()
            eventually(lambda: self.metric(journal, "shim_journal_lost_total") == 1)
        self.assertEqual(self.metric(journal, "shim_journal_up"), 1)
        self.assertIsNone(journal.find(stream.id, ""))
        stream.finish()
        life = self.after_death()
        kept = life.find(stream.id, "")
        assert kept is not None
        self.assertLessEqual(1, kept.kept_events or 0)
        self.assertLessEqual(kept.kept_events or 0, 3)

    def test_what_went_on_without_its_journal_is_deleted_in_time(self) -> None:
        """Its file is kept for its retention, from its end, or from when memory let go of it."""
        journal = self.journal()
        ends, goes = self.stream(journal, 1), self.stream(journal, 1)
        self.written(journal)
        self.fail_disk(journal, ends)
        list(journal.sweep(time.monotonic() + 1e6))
        self.assertTrue(self.file(ends).exists() and self.file(goes).exists())
        ends.finish()
        paths = self.file(ends), self.file(goes)
        del goes
        gc.collect()

        def gone() -> bool:
            list(journal.sweep(time.monotonic() + 1e6))
            return not any(path.exists() for path in paths)

        eventually(gone)


class Total(WriterTest):
    def test_what_ended_first_goes_first(self) -> None:
        """Past the bound the oldest files are deleted, and the store is told whose they were."""
        journal = self.journal(log_dir_total=12_288)
        streams = []
        for number in range(6):
            streams.append(self.stream(journal, 20, owner=f"owner {number}"))
            streams[-1].finish()
            eventually(
                lambda: journal._shelf.get(streams[-1].id) is None or streams[-1].id not in self.running(journal)
            )
            eventually(lambda: self.metric(journal, "shim_journal_bytes") <= 12_288)
        left = [stream for stream in streams if journal.find(stream.id, stream.owner) is not None]
        self.assertEqual(left, streams[-len(left) :])
        self.assertTrue(0 < len(left) < 6)
        gone = streams[: -len(left)]
        self.assertEqual(list(journal.sweep(0.0)), [(stream.id, stream.owner) for stream in gone])
        eventually(lambda: not any(self.file(stream).exists() for stream in gone))

    def running(self, journal: Journal) -> list[str]:
        return [entry.id for entry in list(journal._writer._running.values())]

    def test_what_runs_is_too_much(self) -> None:
        """Then the longest one's journal ends, and its file keeps its head alone; the others go on."""
        journal = self.journal(log_dir_total=20_000)
        small, large = self.stream(journal, 20), self.stream(journal)
        with self.says("--log-dir-total", level="WARNING"):
            while not self.metric(journal, "shim_journal_lost_total"):
                self.add(large, 10)
                self.written(journal)
        self.assertLess(self.file(large).stat().st_size, 1000)
        self.add(small, 20)
        self.written(journal)
        life = self.after_death()
        self.assertEqual([life.find(each.id, "").kept_events for each in (small, large)], [40, 0])  # type: ignore[union-attr]

    def test_at_the_start(self) -> None:
        """A smaller bound than in the life before is kept at once."""
        journal = self.journal()
        for _ in range(4):
            stream = self.stream(journal, 50)
            stream.finish()
            self.ended(journal, stream)
        life = self.after_death(log_dir_total=12_288)
        self.assertLessEqual(self.metric(life, "shim_journal_bytes"), 12_288)
        self.assertIsNotNone(life.find(stream.id, ""))


class Deleted(WriterTest):
    def test_while_its_end_is_not_written(self) -> None:
        """A stream that is deleted before the disk has its end is gone all the same, and leaves nothing open."""
        journal = self.journal()
        stream = self.stream(journal, 3)
        self.disk.gate.clear()
        self.add(stream, 1)
        eventually(lambda: self.disk.calls)
        stream.finish()
        journal.delete(stream)
        self.assertIsNone(journal.find(stream.id, ""))
        self.assertFalse(self.file(stream).exists())
        self.disk.gate.set()
        eventually(lambda: not journal._writer._running)
        self.assertEqual(self.metric(journal, "shim_journal_streams"), 0)
        self.assertEqual(self.metric(journal, "shim_journal_bytes"), 0)
        self.assertEqual(list(journal.sweep(1e12)), [])

    def test_an_answer_has_its_end_alone(self) -> None:
        """An answer that is no stream is written when it is made."""
        journal = self.journal()
        stream = self.stream(journal, dialect=None)
        stream.finish(Answer(b"{}", "text/x", (("X", "y"),)))
        eventually(lambda: not journal._writer._running)
        self.assertEqual(self.disk.calls.count("write"), 1)


if __name__ == "__main__":
    unittest.main()
