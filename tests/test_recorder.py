"""The thread that follows logs: whom it calls, how often, and how it ends."""

from __future__ import annotations

import threading
import time
import unittest
from collections.abc import Callable, Sequence
from unittest import mock

from inferless_shim.copies import CopiedStream, Copy
from inferless_shim.outputs import Native
from inferless_shim.recorder import Recorder
from tests.support import MS, TestCase, eventually
from tests.test_copies import numbers


class Recorded:
    """What was written, by stream; `gate` holds each round until it is set."""

    def __init__(self) -> None:
        self.data: dict[CopiedStream, bytes] = {}
        self.rounds: list[list[CopiedStream]] = []
        self.gate = threading.Event()
        self.gate.set()

    def write(self, copies: Sequence[Copy]) -> None:
        self.rounds.append([copy.stream for copy in copies])
        self.gate.wait()
        for copy in copies:
            batch = copy.stream.read_new(copy, 1 << 16)
            self.data[copy.stream] = self.data.get(copy.stream, b"") + batch.data
            copy.stream.copied(copy, batch.last)
            if batch.ended:
                copy.stream.end_copy()


class Rounds(TestCase):
    def recorder(self, write: Callable[[Sequence[Copy]], None], pause: float = 0.0, **options: object) -> Recorder:
        recorder = Recorder(write, pause=pause, **options)  # type: ignore[arg-type]
        recorder.start()
        self.addCleanup(recorder.stop, 60)
        return recorder

    def stream(self) -> CopiedStream:
        return CopiedStream(Native(), log_cap=1 << 20, retry=1.0)

    def test_writes_all_of_all_streams(self) -> None:
        """However many events and streams there are, each is written in order, to its end."""
        recorded = Recorded()
        recorder = self.recorder(recorded.write)
        streams = [self.stream() for _ in range(5)]
        for stream in streams:
            recorder.add(stream)
        for _ in range(50):
            for stream in streams:
                stream.append(b"data: {}\n\n")
        for stream in streams:
            stream.finish()
        self.assertTrue(recorder.stop(60))
        for stream in streams:
            self.assertEqual(numbers(recorded.data[stream]), [*range(1, 52)])

    def test_each_once_a_round(self) -> None:
        """Whatever comes while a round is written is in the next one, and no stream is in one twice."""
        recorded = Recorded()
        recorder = self.recorder(recorded.write)
        streams = [self.stream() for _ in range(3)]
        for stream in streams:
            recorder.add(stream)
        recorded.gate.clear()
        streams[0].append(b"data: {}\n\n")
        eventually(lambda: recorded.rounds)
        for stream in streams * 4:
            stream.append(b"data: {}\n\n")
        recorded.gate.set()
        eventually(lambda: all(len(numbers(recorded.data.get(stream, b""))) >= 4 for stream in streams))
        self.assertEqual(recorded.rounds[0], streams[:1])
        for each in recorded.rounds:
            self.assertEqual(len(each), len(set(each)))

    def test_pause_makes_batches(self) -> None:
        """Between two rounds there is a pause, which gathers what comes meanwhile: one event is not one round."""
        recorded = Recorded()
        recorder = self.recorder(recorded.write, pause=20 * MS)
        stream = self.stream()
        recorder.add(stream)
        done = threading.Event()

        def produce() -> None:
            for _ in range(40):
                stream.append(b"data: {}\n\n")
                done.wait(1 * MS)

        producer = threading.Thread(target=produce)
        producer.start()
        producer.join()
        eventually(lambda: len(numbers(recorded.data.get(stream, b""))) == 40)
        self.assertLess(len(recorded.rounds), 40)

    def test_ticks_without_events_and_after_failures(self) -> None:
        """The tick goes on when nothing is written, and when it or a round raises, which is logged."""
        ticks: list[None] = []

        def tick() -> None:
            ticks.append(None)
            raise RuntimeError("tick")

        def write(copies: Sequence[Copy]) -> None:
            for copy in copies:
                copy.idle = True
            raise RuntimeError("write")

        with self.assertLogs("inferless_shim.recorder", "ERROR") as logged:
            recorder = self.recorder(write, tick=tick, every=5 * MS, name="writer")
            stream = self.stream()
            recorder.add(stream)
            stream.append(b"data: {}\n\n")
            eventually(lambda: len(ticks) >= 3 and any("write" in line for line in logged.output))
        self.assertIn("writer failed", logged.output[0])

    def test_round_that_fails_is_not_repeated_at_once(self) -> None:
        """What raises in each round raises once in REST seconds, not as often as the log can take."""
        calls: list[float] = []

        def write(copies: Sequence[Copy]) -> None:
            calls.append(time.monotonic())
            if len(calls) == 3:
                for copy in copies:
                    copy.stream.end_copy()
            raise RuntimeError("write")

        with mock.patch("inferless_shim.recorder.REST", 40 * MS), self.assertLogs("inferless_shim.recorder", "ERROR"):
            recorder = self.recorder(write)
            stream = self.stream()
            recorder.add(stream)
            stream.append(b"data: {}\n\n")
            eventually(lambda: len(calls) == 3)
        self.assertGreaterEqual(calls[2] - calls[0], 80 * MS)

    def test_end_that_takes_too_long_is_told(self) -> None:
        """`stop` returns False if a round does not end in time."""
        recorded = Recorded()
        recorder = self.recorder(recorded.write)
        stream = self.stream()
        recorder.add(stream)
        recorded.gate.clear()
        stream.append(b"data: {}\n\n")
        eventually(lambda: recorded.rounds)
        self.assertFalse(recorder.stop(10 * MS))
        recorded.gate.set()
        self.assertTrue(recorder.stop(60))


if __name__ == "__main__":
    unittest.main()
