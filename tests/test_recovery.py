"""What is found in a journal's folder: whatever became of a file, only what was written to it is ever told."""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from inferless_shim import folder as folder_module
from inferless_shim import records
from inferless_shim.archived import Archived, read_ends
from inferless_shim.records import MAGIC, VERSION, Kind, record
from inferless_shim.recovery import Found, recover
from inferless_shim.tally import State
from tests.journals import ID, NOW, finished, frame, frames, head, journal_bytes, read
from tests.support import TestCase, about

LATER = NOW + 60


class RecoveryTest(TestCase):
    def setUp(self) -> None:
        parent = tempfile.TemporaryDirectory()
        self.addCleanup(parent.cleanup)
        self.folder = Path(parent.name)
        self.file = self.folder / f"{ID}.log"

    def recover(self, data: bytes | None = None, *, quietly: bool = True) -> Found | None:
        """Write the file, and return what is found in it."""
        if data is not None:
            self.file.write_bytes(data)
        if not quietly:
            return next(recover(self.folder, LATER), None)
        with mock.patch("inferless_shim.recovery.log"):
            return next(recover(self.folder, LATER), None)

    def served(self, found: Found) -> bytes:
        """Return what a client is sent of what was found."""
        told, end = read_ends(self.file, found.end_at, None if found.written else found.end)
        self.assertEqual((told, end), (found.head, found.end))
        stream = Archived(told, end, self.file, last=found.last, end_at=found.end_at, damaged=self.fail)
        return read(stream) if found.last else b""


class Ended(RecoveryTest):
    def test_a_stream_that_ended_is_left_as_it_is(self) -> None:
        """Its file does not change, however often a process begins."""
        data = journal_bytes([2, 3, 7], end=finished(6))
        for _ in range(2):
            found = self.recover(data)
            assert found is not None
            self.assertEqual((found.head, found.end, found.last, found.fresh), (head(), finished(6), 7, False))
            self.assertEqual(self.served(found), frames(1, 7))
            self.assertEqual(self.file.read_bytes(), data)
            self.assertEqual(found.size, len(data))

    def test_a_stream_without_an_end_was_interrupted(self) -> None:
        """It gets one, once: after what was kept comes the error, and the next start changes nothing."""
        for batches, dialect in itertools.product(([], [1], [2, 3, 7]), ("native", "generate")):
            with self.subTest(batches=batches, dialect=dialect):
                of, kept = head(dialect=dialect), max(batches, default=0)
                found = self.recover(journal_bytes(batches, of=of))
                assert found is not None
                self.assertTrue(found.fresh)
                self.assertEqual((found.end.state, found.end.cause), (State.FAILED, "interrupted"))
                self.assertEqual((found.last, found.end.kept, found.end.ended), (kept + 1, kept, LATER))
                self.assertEqual(self.served(found), frames(1, kept) + found.end.frame)
                self.assertIn(b"\r\nid: %b-%d\n" % (ID.encode(), kept + 1), found.end.frame)
                data = self.file.read_bytes()
                self.assertEqual(self.recover(), found._replace(fresh=False))
                self.assertEqual(self.file.read_bytes(), data)

    def test_a_stream_that_lost_its_end_alone_is_whole(self) -> None:
        """If its last event is there, it had ended: it is no other than before, and may be claimed by its key."""
        whole = journal_bytes([2, 5], end=finished(4))
        begun = len(journal_bytes([2, 5]))
        for size in range(begun, len(whole)):
            found = self.recover(whole[:size])
            assert found is not None
            self.assertEqual((found.last, found.fresh, found.end.kept), (5, False, None))
            self.assertEqual(self.served(found), frames(1, 5))
            self.assertEqual(self.recover(), found)
        self.assertEqual(self.recover(whole[:begun] + record(Kind.EVENTS, 6, frames(6, 6))), found)

    def test_an_answer_without_an_end_was_never_made(self) -> None:
        """Nobody knows of it: its file goes, and a retry begins anew."""
        self.assertIsNone(self.recover(journal_bytes([], of=head(dialect="", key="k"))))
        self.assertFalse(self.file.exists())

    def test_a_stream_that_lost_its_journal_ends_there(self) -> None:
        """What follows the marker is not told, whatever it is."""
        data = journal_bytes([4]) + record(Kind.LOST, 4)
        for rest in (b"", b"\0", record(Kind.EVENTS, 9, frames(8, 9))):
            found = self.recover(data + rest)
            assert found is not None
            self.assertEqual((found.end.kept, self.served(found)), (4, frames(1, 4) + found.end.frame))


class Damage(RecoveryTest):
    def check(self, data: bytes, whole: bytes, wholly: int) -> None:
        """See that what is found is a prefix of `whole` and that it was interrupted, or all of it with its true end."""
        found = self.recover(data)
        if found is None:
            return
        served = self.served(found)
        if found.end.kept is not None and found.end.frame:
            self.assertTrue(served.endswith(found.end.frame))
            served = served[: -len(found.end.frame)]
            self.assertEqual(served, frames(1, found.end.kept))
        else:
            self.assertEqual(found.last, wholly)
        self.assertTrue(whole.startswith(served))
        again = self.recover()
        self.assertEqual(again, found._replace(fresh=False), "a second start finds the same")

    def files(self) -> list[tuple[bytes, bytes, int]]:
        """Files of a few records: what ran, what ended, what was found interrupted; with what each has to tell."""
        ran = journal_bytes([1, 3])
        self.recover(ran)
        return [
            (ran, frames(1, 3), -1),
            (journal_bytes([2, 3], end=finished(2)), frames(1, 3), 3),
            (self.file.read_bytes(), frames(1, 3), -1),
        ]

    def test_every_cut(self) -> None:
        """A file that ends after any of its bytes tells a prefix, and never half an event."""
        for data, whole, wholly in self.files():
            for size in range(len(data)):
                with about(size=size):
                    self.check(data[:size], whole, wholly)
                    if size % 9 == 0:  # as a file system leaves it that lost its power
                        self.check(data[:size] + bytes(40), whole, wholly)

    def test_every_flipped_byte(self) -> None:
        """A file with any of its bytes changed tells a prefix, and nothing that was not written."""
        dice = random.Random(5)
        for data, whole, wholly in self.files():
            for place in range(len(data)):
                other = bytearray(data)
                other[place] ^= dice.randint(1, 255)
                with about(place=place, byte=other[place]):
                    self.check(bytes(other), whole, wholly)

    def test_what_cannot_follow_is_cut(self) -> None:
        """A record that is whole by itself is no better than a damaged one where it cannot stand."""
        begun = journal_bytes([3])
        cut = {
            "a gap": record(Kind.EVENTS, 5, frames(5, 5)), "again": record(Kind.EVENTS, 3, frames(3, 3)),
            "too few": record(Kind.EVENTS, 5, frames(4, 4)), "too many": record(Kind.EVENTS, 4, frames(4, 5)),
            "another stream's": record(Kind.EVENTS, 4, frames(4, 4, "f" * 32)),
            "no chunk": record(Kind.EVENTS, 4, frame(4) + b"x"), "a head": records.head_record(head())[len(MAGIC) :],
            "an end of more": records.end_record(finished(9), 9), "no end": record(Kind.END, 3, b"{}"),
            "of no kind": record(9, 3, b""),  # type: ignore[arg-type]
            "half a record": record(Kind.EVENTS, 4, frames(4, 4))[:-1],
        }  # fmt: skip
        for name, more in cut.items():
            with self.subTest(name), self.assertLogs("inferless_shim.recovery", "WARNING") as logged:
                found = self.recover(begun + more + record(Kind.EVENTS, 4, frames(4, 4)), quietly=False)
                assert found is not None
                self.assertEqual(found.end.kept, 3)
                self.assertIn(f"cut at byte {len(begun)} of", logged.output[0])
                self.assertNotIn(found.head.stream, logged.output[0])  # who reads the log may not follow the stream

    def test_what_follows_the_end_is_cut(self) -> None:
        """A stream that has ended never grows again."""
        data = journal_bytes([3], end=finished(2))
        for more in (b"garbage", record(Kind.EVENTS, 4, frames(4, 4)), records.end_record(finished(3), 3)):
            found = self.recover(data + more)
            assert found is not None
            self.assertEqual((found.last, found.fresh, self.file.read_bytes()), (3, False, data))

    def test_a_file_without_its_head_is_removed(self) -> None:
        """Nothing is known of what is in it, and a line of the log says that it is gone."""
        data = journal_bytes([1])
        headless = {
            "empty": b"", "half the first line": data[:9], "zeros": bytes(4096), "no head": MAGIC + data[-60:],
            "half a head": data[:60], "of another stream": journal_bytes([], of=head("f" * 32)),
        }  # fmt: skip
        for name, each in headless.items():
            with self.subTest(name), self.assertLogs("inferless_shim.recovery", "WARNING") as logged:
                self.assertIsNone(self.recover(each, quietly=False))
                self.assertFalse(self.file.exists())
                self.assertIn("removed", logged.output[0])

    def test_memory_is_bounded_by_what_is_there(self) -> None:
        """A length that nobody wrote is not believed: no more is read than there is."""
        data = bytearray(journal_bytes([3]))
        data[len(journal_bytes([])) + 9 : len(journal_bytes([])) + 13] = b"\xff\xff\xff\x7f"
        sizes: list[int] = []
        real = os.pread
        with mock.patch("os.pread", lambda *arguments: sizes.append(arguments[1]) or real(*arguments)):  # type: ignore[func-returns-value]
            self.recover(bytes(data))
        self.assertLessEqual(max(sizes), len(data))


class Foreign(RecoveryTest):
    def test_what_is_not_ours_is_left_alone(self) -> None:
        """Files of other names or contents, other versions, links and folders stay as they are."""
        for name in ("notes.txt", f"{ID}.log.bak", f"{ID.upper()}.log", "lock"):
            (self.folder / name).write_bytes(b"mine")
        (self.folder / f"{'1' * 32}.log").mkdir()
        (self.folder / f"{'2' * 32}.log").symlink_to(self.folder / "notes.txt")
        (self.folder / f"{'3' * 32}.log").write_bytes(b"a log of somebody else's\n" * 9)
        newer = journal_bytes([1]).replace(b" %d\n" % VERSION, b" %d\n" % (VERSION + 1), 1)
        (self.folder / f"{'4' * 32}.log").write_bytes(newer)
        os.mkfifo(self.folder / f"{'5' * 32}.log")
        before = sorted(self.folder.iterdir())
        with self.assertLogs("inferless_shim.recovery", "WARNING") as logged:
            self.assertEqual(list(recover(self.folder, LATER)), [])
        self.assertEqual(sorted(self.folder.iterdir()), before)
        self.assertEqual((self.folder / "notes.txt").read_bytes(), b"mine")
        self.assertEqual(len(logged.output), 5)
        self.assertIn(f"is of format {VERSION + 1}", logged.output[3])

    def test_a_file_that_cannot_be_read_hinders_no_other(self) -> None:
        """It is named in the log, and the others are found."""
        other = "e" * 32
        (self.folder / f"{other}.log").write_bytes(journal_bytes([1], of=head(other)))
        self.file.write_bytes(journal_bytes([1]))
        real = os.open

        def fails(path: Any, *arguments: Any, **keywords: Any) -> int:
            if Path(path) == self.file:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path, *arguments, **keywords)

        with mock.patch("os.open", fails), self.assertLogs("inferless_shim.recovery", "ERROR"):
            self.assertEqual([found.head.stream for found in recover(self.folder, LATER)], [other])

    def test_no_room_for_an_end(self) -> None:
        """Where the disk is full, what was interrupted is served all the same, and its file is as long as before."""
        data = journal_bytes([2, 3])

        def full(descriptor: int, data: Any) -> int:
            if len(data) > 10:
                return os.pwrite(descriptor, bytes(data[:10]), os.fstat(descriptor).st_size)  # half of it fits
            raise OSError(errno.ENOSPC, "No space left on device")

        written = iter([full])
        with mock.patch.object(folder_module.os, "write", side_effect=lambda *each: next(written, fail_full)(*each)):
            found = self.recover(data)
        assert found is not None
        self.assertFalse(found.written)
        self.assertEqual(self.file.read_bytes(), data)
        self.assertEqual(self.served(found), frames(1, 3) + found.end.frame)


def fail_full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


if __name__ == "__main__":
    unittest.main()
