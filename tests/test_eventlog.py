"""A stream's log against a plain list of frames: positions, trimming, what is read from where."""

from __future__ import annotations

import random
import sys
import tracemalloc
import unittest

from inferless_shim.eventlog import EventLog
from tests.support import TestCase


def frame(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def filled(sizes: list[int], cap: int) -> tuple[EventLog, list[bytes]]:
    """Return a log of frames with payloads of these sizes, and the frames."""
    log = EventLog(cap)
    frames = [frame(bytes([97 + number % 26]) * size) for number, size in enumerate(sizes)]
    for each in frames:
        log.append(each)
    return log, frames


def random_payload(chance: random.Random) -> bytes:
    # Payloads with line ends inside, which must not be taken for those of the framing.
    return bytes(chance.choice(b"ab\r\n0") for _ in range(chance.choice([1, 2, 9, 16, 40, 300])))


class Reference:
    """All frames there ever were; what of them must be kept follows from the log's `first`."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.ends = [0]
        self.bytes = bytearray()

    def append(self, payload: bytes) -> bytes:
        made = frame(payload)
        self.payloads.append(payload)
        self.bytes += made
        self.ends.append(len(self.bytes))
        return made


class EventLogTest(TestCase):
    def check(self, log: EventLog, reference: Reference) -> None:
        """Compare all that a log tells with the reference."""
        self.assertEqual(log.last, len(reference.payloads))
        self.assertEqual(log.end, reference.ends[-1])
        self.assertEqual(log.start, reference.ends[log.first - 1])
        self.assertEqual(len(log), log.end - log.start)
        self.assertTrue(1 <= log.first <= max(1, log.last))
        for number, end in enumerate(reference.ends):
            expected = end if number >= log.first - 1 else None
            self.assertEqual(log.position_after(number), expected)
        self.assertEqual(log.read(log.start, sys.maxsize), reference.bytes[log.start :])

    def test_empty(self) -> None:
        """A new log starts and ends at 0, and event 1 is the next."""
        for cap in (0, 1, 1000):
            log = EventLog(cap)
            self.check(log, Reference())
            log.trim()
            self.check(log, Reference())
            self.assertEqual(log.read(0, 10), b"")
            self.assertEqual(log.read_payloads(0, 10), (b"", 0))
            self.assertRaises(IndexError, log.position_after, 1)

    def test_append(self) -> None:
        """What is appended is kept byte by byte, and each event ends where its frame ends."""
        log, frames = filled([1, 2, 300], cap=1000)
        self.assertEqual([log.position_after(number) for number in range(4)], [0, 6, 13, 320])
        self.assertEqual(log.read(0, 1000), b"".join(frames))
        self.assertEqual((log.first, log.last, log.start, log.end, len(log)), (1, 3, 0, 320, 320))

    def test_position_after_unwritten(self) -> None:
        """An event that is not written yet has no end."""
        log, _ = filled([5, 5], cap=1000)
        for number in (3, 4, 10**20):
            with self.subTest(number), self.assertRaises(IndexError):
                log.position_after(number)

    def test_read(self) -> None:
        """Any kept range can be read, as a copy that keeps nothing of the log's memory."""
        log, frames = filled([3] * 10, cap=50)
        whole = b"".join(frames)
        for position in range(log.start, log.end + 1):
            for limit in (0, 1, 7, 10_000):
                with self.subTest(position=position, limit=limit):
                    data = log.read(position, limit)
                    self.assertEqual(data, whole[position : position + limit])
        view = memoryview(log.read(log.start, 10))
        log.append(frame(b"x"))  # a bytearray with a view of its own out would refuse to grow
        view.release()

    def test_read_payloads(self) -> None:
        """Payloads come without framing until the limit is reached, from an event's end or from the middle of one."""
        log, _ = filled([3, 300, 2, 1], cap=10_000)
        payloads = b"aaa" + b"b" * 300 + b"ccd"
        for limit in (1, 2, 3, 4, 5, 100, 302, 303, 304, 305, 306, 10_000):
            for number, begin in ((0, 0), (1, 3), (2, 303), (3, 305), (4, 306)):
                with self.subTest(number=number, limit=limit):
                    position, read = log.position_after(number) or 0, b""
                    while position < log.end:
                        part, position = log.read_payloads(position, limit)
                        self.assertTrue(len(part) == limit or position == log.end)
                        read += part
                    self.assertEqual(read, payloads[begin:])
        self.assertEqual(log.read_payloads(0, 0), (b"", 0))
        self.assertEqual(log.read_payloads(0, 3), (b"aaa", log.position_after(1)))

    def test_trim_table(self) -> None:
        """Past the cap the oldest events go; the newest is kept whole, however large."""
        table = [  # payload sizes (a frame has 5 bytes more below 16), cap -> numbers of the events kept
            ([11], 0, [1]),
            ([11, 11], 0, [2]),
            ([11, 11, 11], 1, [3]),
            ([11, 11], 16, [2]),
            ([11, 11], 32, [1, 2]),
            ([11, 11, 11, 11], 49, [2, 3, 4]),
            ([11] * 8, 128, [1, 2, 3, 4, 5, 6, 7, 8]),
            ([300, 11], 100, [2]),
            ([11, 11, 300], 100, [3]),
            ([11, 11, 300, 11], 100, [4]),
            ([100_000, 11, 11], 100_030, [2, 3]),
            ([11, 11, 100_000], 50_000, [3]),
        ]
        for sizes, cap, kept in table:
            with self.subTest(sizes=sizes, cap=cap):
                log, frames = filled(sizes, cap)
                self.assertEqual(list(range(log.first, log.last + 1)), kept)
                self.assertEqual(log.read(log.start, 200_000), b"".join(frames[kept[0] - 1 :]))

    def test_random_appends(self) -> None:
        """Whatever is appended under whatever cap: positions never change, the bound holds, and little is cut off."""
        for seed in range(60):
            chance = random.Random(seed)
            cap = chance.choice([0, 1, 17, 100, 333, 2000, 4000])
            log, reference = EventLog(cap), Reference()
            for _ in range(chance.randrange(1, 150)):
                before = log.first
                log.append(made := reference.append(random_payload(chance)))
                self.assertLessEqual(len(log), max(cap, cap // 8 + len(made)))
                if log.first > before:
                    self.assertGreater(len(log), cap - cap // 8 - 2 * 306)  # 306: the largest frame
            with self.subTest(seed=seed):
                self.check(log, reference)

    def test_random_caps(self) -> None:
        """A cap that is lowered on the way holds from the next trim on."""
        for seed in range(60):
            chance = random.Random(seed)
            log, reference = EventLog(10_000), Reference()
            for _ in range(chance.randrange(1, 150)):
                log.append(reference.append(random_payload(chance)))
                if chance.random() < 0.05:
                    log.cap = chance.choice([9000, 1000, 100, 0])
                    before = len(log)
                    log.trim()
                    self.assertLessEqual(len(log), max(log.cap, min(before, 10_000 // 8 + 306)))
            with self.subTest(seed=seed):
                self.check(log, reference)

    def test_random_reads(self) -> None:
        """Reading on from any kept event, in any steps, gives every byte, or every payload, once."""
        for seed in range(60):
            chance = random.Random(seed)
            log, reference = EventLog(chance.choice([100, 1000, 100_000])), Reference()
            for _ in range(chance.randrange(1, 100)):
                log.append(reference.append(random_payload(chance)))
            number = chance.randrange(log.first - 1, log.last + 1)
            begin = position = log.position_after(number) or 0
            data = bytearray()
            while position < log.end:
                part = log.read(position, chance.randrange(1, 100))
                data += part
                position += len(part)
            payloads, position = bytearray(), begin
            while position < log.end:
                before = position
                limit = chance.randrange(1, 400)
                chunk, position = log.read_payloads(position, limit)
                self.assertGreater(position, before)
                self.assertTrue(len(chunk) == limit or position == log.end)
                payloads += chunk
            with self.subTest(seed=seed):
                self.assertEqual(data, reference.bytes[begin:])
                self.assertEqual(payloads, b"".join(reference.payloads[number:]))

    def test_random_large(self) -> None:
        """The same for a log of megabytes with events of very different sizes."""
        chance = random.Random(5)
        log, reference = EventLog(400_000), Reference()
        for _ in range(400):
            log.append(reference.append(b"x" * chance.choice([1, 100, 5_000, 60_000, 65_530, 65_536, 70_000])))
            position = chance.randrange(log.start, log.end + 1)
            limit = chance.choice([1, 1000, 65_536, 200_000])
            self.assertEqual(log.read(position, limit), reference.bytes[position : position + limit])
        self.check(log, reference)

    def test_memory(self) -> None:
        """What a log takes of memory is bounded by its cap, however much went through it."""
        line = frame(b"x" * 60)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            log = EventLog(1_000_000)
            for _ in range(60_000):
                log.append(line)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        self.assertGreater(len(log), 800_000)
        self.assertLess(peak, 1.5 * log.cap)

    def test_trim_is_rare(self) -> None:
        """At the cap, most appends cut nothing off: what goes goes in strides."""
        log = EventLog(100_000)
        firsts = set()
        for _ in range(10_000):
            log.append(frame(b"x" * 60))
            firsts.add(log.first)
        self.assertLess(len(firsts), 100)


if __name__ == "__main__":
    unittest.main()
