"""Streams that are served from their files: byte for byte, from any event on, and never anything else."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import tracemalloc
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from inferless_shim import records
from inferless_shim.archived import WINDOW, Archived
from inferless_shim.errors import Gone, Unavailable
from inferless_shim.recovery import recover
from inferless_shim.stream import READ_SIZE
from inferless_shim.subscriber import Progress
from tests.journals import ID, NOW, Reader, finished, frame, frames, head, journal_bytes, read
from tests.support import TestCase, about


class ArchivedTest(TestCase):
    def setUp(self) -> None:
        parent = tempfile.TemporaryDirectory()
        self.addCleanup(parent.cleanup)
        self.folder = Path(parent.name)
        self.file = self.folder / f"{ID}.log"
        self.damages: list[Exception] = []

    def archived(self, data: bytes | None = None) -> Archived:
        """Return what is found in a file of these bytes."""
        if data is not None:
            self.file.write_bytes(data)
        (found,) = recover(self.folder, NOW)
        self.damages.clear()
        return Archived(
            found.head, found.end, self.file, last=found.last, end_at=found.end_at, damaged=self.damages.append
        )

    def file_of(self, events: int, each: int, size: int = 8) -> bytes:
        """A file of an ended stream, `each` events in a record."""
        return journal_bytes([*range(each, events, each), events], end=finished(events - 1), size=size)


class Reading(ArchivedTest):
    def test_from_every_event_on(self) -> None:
        """Wherever a client is, it gets what follows: in chunks as they were sent, or without them over HTTP/1.0."""
        for each in (1, 3, 20):
            self.file.write_bytes(self.file_of(20, each))
            for number in range(20):
                with about(each=each, number=number):
                    whole = frames(number + 1, 20)
                    self.assertEqual(read(self.archived(), number), whole)
                    plain = Reader(self.archived(), number, chunked=False)
                    self.assertIs(plain.follow(), Progress.ENDED)
                    self.assertEqual(plain.got, records.payloads(whole))

    def test_nothing_follows_the_last_event(self) -> None:
        """At or past it nobody is attached: that is for 204."""
        stream = self.archived(self.file_of(4, 2))
        for number in (4, 5, 10**19):
            self.assertFalse(stream.can_follow(number))
            self.assertFalse(Reader(stream, number).attached)
            self.assertIsNone(stream.told_past(number))

    def test_interrupted(self) -> None:
        """Its error comes after what was kept; a client that has seen more is told by a number of its own."""
        for kept in ([], [2, 5]):
            stream = self.archived(journal_bytes(kept))
            last = max(kept, default=0)
            for number in range(last + 1):
                got = read(self.archived(), number)
                self.assertTrue(got.startswith(frames(number + 1, last)))
                (error,) = records.frame_ends(got[len(frames(number + 1, last)) :], ID, last + 1)
                self.assertEqual(len(frames(number + 1, last)) + error, len(got))
            self.assertFalse(stream.can_follow(last + 1))
            told = stream.told_past(last + 1)
            assert told is not None
            self.assertTrue(told.startswith(b"id: %b-%d\nevent: error\n" % (ID.encode(), last + 2)))

    def test_slow_sockets_lose_nothing(self) -> None:
        """However little a socket takes, and however often nothing, what arrives is whole, the head before it."""
        sizes = random.Random(3)
        data = journal_bytes([5, 6, 300], size=2000, end=finished(299))
        for seed in range(12):
            number = sizes.choice([0, 0, 5, 150, 299])
            for chunked in (True, False):
                with about(seed=seed, number=number, chunked=chunked):
                    most = sizes.choice([100, 5000, READ_SIZE])
                    how = {"most": most, "seed": seed, "head": b"HEAD", "chunked": chunked}
                    reader = Reader(self.archived(data), number, **how)  # type: ignore[arg-type]
                    self.assertIs(reader.follow(), Progress.ENDED)
                    whole = frames(number + 1, 300, size=2000)
                    self.assertEqual(reader.got, b"HEAD" + (whole if chunked else records.payloads(whole)))
                    self.assertEqual(reader.subscriber.sent, len(reader.got))

    def test_events_of_any_size(self) -> None:
        """One that is longer than all that is read at once is sent whole, between its neighbours."""
        sizes = [1, WINDOW - 200, 10, 3 * WINDOW, READ_SIZE, 1]
        data, whole = records.head_record(head()), b""
        for number, size in enumerate(sizes, 1):
            data += records.record(records.Kind.EVENTS, number, frame(number, size=size))
            whole += frame(number, size=size)
        self.assertEqual(read(self.archived(data + records.end_record(finished(5), 6))), whole)

    def test_memory_does_not_grow_with_the_stream(self) -> None:
        """To send ten times as many events takes no more memory."""

        class Sink(Reader):
            def send(self, data: Any) -> int:
                return len(data)

        peaks = []
        for events in (2_000, 20_000):
            stream = self.archived(self.file_of(events, 100, size=100))
            tracemalloc.start()
            self.assertIs(Sink(stream).follow(), Progress.ENDED)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        self.assertLess(peaks[1], peaks[0] * 1.2)
        self.assertLess(peaks[1], 8 * WINDOW)

    def test_is_a_stream_that_has_ended(self) -> None:
        """It is neither cancelled nor counted here, has its end's figures, and takes no heartbeat."""
        stream = self.archived(self.file_of(4, 2))
        reader = Reader(stream)
        self.assertTrue(stream.elsewhere)
        self.assertFalse(stream.is_open or stream.hurries or stream.fail("cancelled", "…"))
        self.assertFalse(stream.interject(reader.subscriber, b"4\r\n: ka\r\n"))
        self.assertTrue(stream.lags(reader.subscriber))
        self.assertEqual((stream.tally().events, stream.kept), (3, 0))
        self.assertIs(reader.follow(), Progress.ENDED)
        self.assertFalse(stream.lags(reader.subscriber))


class Damage(ArchivedTest):
    def test_no_byte_is_sent_that_was_not_written(self) -> None:
        """A file that changes after it was found: what a client gets is a prefix, and then its connection breaks."""
        data = self.file_of(6, 2)
        whole = frames(1, 6)
        begin = len(journal_bytes([]))
        for place in range(begin, len(data)):
            with about(place=place):
                stream = self.archived(data)
                changed = bytearray(data)
                changed[place] ^= 0x15
                self.file.write_bytes(bytes(changed))
                reader = Reader(stream, chunked=True)
                progress = reader.follow()
                self.assertTrue(whole.startswith(reader.got))
                if progress is Progress.ENDED:
                    self.assertEqual(reader.got, whole)  # only the record of its end has changed
                    self.assertGreaterEqual(place, len(journal_bytes([2, 4, 6])))
                else:
                    self.assertEqual((progress, len(self.damages)), (Progress.BROKEN, 1))

    def test_a_file_that_was_cut_breaks_the_connection(self) -> None:
        """What is missing does not look like an end."""
        data = self.file_of(6, 2)
        stream = self.archived(data)
        os.truncate(self.file, len(journal_bytes([2, 4])))
        reader = Reader(stream)
        self.assertIs(reader.follow(), Progress.BROKEN)
        self.assertEqual((reader.got, len(self.damages)), (frames(1, 4), 1)) if reader.got else None
        self.assertEqual(len(self.damages), 1)

    def test_damage_before_the_clients_event_is_gone(self) -> None:
        """Where it goes on cannot be found any more: 410, and the descriptor is closed."""
        data = bytearray(self.file_of(6, 2))
        stream = self.archived(bytes(data))
        data[len(journal_bytes([2])) + 40] ^= 1
        self.file.write_bytes(bytes(data))
        with self.assertRaises(Gone):
            Reader(stream, 5)
        self.assertEqual(len(self.damages), 1)
        self.assertIsNone(stream._reader)

    def test_deleted(self) -> None:
        """Before a client is attached that is 410; a client that is attached gets the rest."""
        data = self.file_of(2000, 50)
        stream, other = self.archived(data), self.archived()
        reader = Reader(stream)
        self.file.unlink()
        self.assertIs(reader.follow(), Progress.ENDED)
        self.assertEqual(reader.got, frames(1, 2000))
        with self.assertRaises(Gone):
            Reader(other)

    def test_no_descriptors_left(self) -> None:
        """That passes: 503, and the file is not given up."""
        stream = self.archived(self.file_of(6, 2))
        error = OSError(errno.EMFILE, "Too many open files")
        with (
            mock.patch("os.open", side_effect=error),
            self.assertLogs("inferless_shim.archived", "ERROR"),
            self.assertRaises(Unavailable),
        ):
            Reader(stream)
        self.assertEqual(self.damages, [])
        self.assertEqual(read(stream), frames(1, 6))

    def test_descriptors_are_closed(self) -> None:
        """However it ends, none is left; and none is taken before somebody follows."""
        stream = self.archived(self.file_of(6, 2))
        self.assertTrue(stream.can_follow(0))
        self.assertIsNone(stream._reader)
        reader = Reader(stream, 3)
        assert stream._reader is not None
        descriptor = stream._reader.descriptor
        stream.detach(reader.subscriber)
        with self.assertRaises(OSError):
            os.fstat(descriptor)
        stream.detach(reader.subscriber)  # twice does no harm

    def test_a_client_that_is_gone(self) -> None:
        """A socket that fails breaks its own connection alone."""

        class Gone(Reader):
            def send(self, data: Any) -> int:
                raise ConnectionResetError

        self.assertIs(Gone(self.archived(self.file_of(6, 2))).follow(), Progress.BROKEN)
        self.assertEqual(self.damages, [])


if __name__ == "__main__":
    unittest.main()
