"""models/smollm2, served: a cut stream is the same text, one that nobody reads stops, a thread that dies says so.

It runs under the Python that SMOLLM2_PYTHON names, else under this one if that has the model's packages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from tests.e2e.wire import TestCase, need, served
from tests.support import MS, ROOT, Client, Event, ask, eventually, parse_events

UNMODIFIED = ROOT / "models" / "smollm2"
WATCHED = Path(__file__).with_name("watched")
LOAD = 600.0  # seconds that the model may take to load: the first time its weights are converted
CUTS = 10
CUT_SEED = random.SystemRandom().randrange(10**6)
# The seed matters: with a temperature, without it the text is another one every time.
QUESTION = {
    "TEXT": "Write a story about a lighthouse.",
    "MAX_NEW_TOKENS": 40,
    "SEED": 7,
    "SAMPLING": json.dumps({"temperature": 0.9}),
}
LONG = {"TEXT": "Tell me about the Roman Empire, century by century.", "MAX_NEW_TOKENS": 2000}


def model_python() -> str:
    """Return the Python that has torch and transformers, or skip the test."""
    if os.environ.get("SMOLLM2_PYTHON"):
        return os.environ["SMOLLM2_PYTHON"]
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    need(not missing, f"{' and '.join(missing)} missing: set SMOLLM2_PYTHON to a Python with models/smollm2's packages")
    return sys.executable


def text_of(events: list[Event]) -> str:
    return "".join(event.data["OUT"] for event in events if event.event is None)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, all threads together (proc(5), /proc/<pid>/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(pid: int) -> float:
    """Wait until a process uses no processor time; return what it has used by then."""

    def used() -> float | None:
        before = cpu_seconds(pid)
        time.sleep(250 * MS)
        return before if cpu_seconds(pid) == before else None

    return float(eventually(used, what="the process is idle"))


class SmolLM2TestCase(TestCase):
    """`answer` is what a fresh server answers to QUESTION: the first thing that it is asked."""

    model = UNMODIFIED

    @classmethod
    def setUpClass(cls) -> None:
        cls.notes = Path(cls.hold_for_class(tempfile.TemporaryDirectory()), "notes")
        server = served(cls.model, "--linger", "1s", patience=LOAD, WATCH_NOTES=str(cls.notes))
        with mock.patch.object(sys, "executable", model_python()):
            cls.server = cls.hold_for_class(server)
        cls.answer = ask(cls.server.port, "POST", "/infer", QUESTION).events

    def setUp(self) -> None:
        self.notes.write_text("")

    def check_answer(self) -> None:
        """The server answers as a fresh one does: nothing of an earlier request's text, prompt or seed is left."""
        events = ask(self.server.port, "POST", "/infer", QUESTION).events
        self.assertEqual([event.data for event in events[:-1]], [event.data for event in self.answer[:-1]])
        self.assertEqual(events[-1].event, "done")

    def is_cancelled(self, stream: str) -> bool:
        """Tell without following: an event far ahead is 400 while it may still come, 204 once none can."""
        response = ask(self.server.port, "HEAD", f"/streams/{stream}", fields={"Last-Event-ID": f"{stream}-99999"})
        return response.status == 204

    def leave(self, after: int) -> tuple[str, float]:
        """Start LONG, leave after some events for good; return the stream's id and what an event cost to make."""
        with Client(self.server.port) as client:
            response = client.request("POST", "/infer", LONG)
            chunks = response.chunks()
            while len(response.events) < 2:
                next(chunks)
            count, used = len(response.events), cpu_seconds(self.server.process.pid)
            while len(response.events) < after:
                next(chunks)
            cost = (cpu_seconds(self.server.process.pid) - used) / (len(response.events) - count)
        return response.fields["stream-id"], cost


class UnmodifiedTest(SmolLM2TestCase):
    def test_answer_is_english(self) -> None:
        """The model writes words, and the stream ends with `done`."""
        self.assertRegex(text_of(self.answer), r"\b(the|of|a)\b.*\b(the|and|was|in)\b")
        self.assertEqual(self.answer[-1].event, "done")
        self.assertEqual(self.answer[-1].data["events"], len(self.answer) - 1)

    def test_stream_cut_ten_times_is_the_same_text(self) -> None:
        """Cut at ten random bytes while the model writes, then resumed, a stream is what it is uncut."""
        print(f"\nseed {CUT_SEED}")
        choose = random.Random(CUT_SEED)
        whole = ask(self.server.port, "POST", "/infer", QUESTION).body
        body, stream = b"", ""
        for cut in [*sorted(choose.sample(range(1, whole.index(b"event: done")), CUTS)), None]:
            version = choose.choice(["1.0", "1.1"])
            with Client(self.server.port) as client:
                if not stream:
                    response = client.request("POST", "/infer", QUESTION, version=version)
                    stream = response.fields["stream-id"]
                else:
                    number = body.count(b"\n\n")
                    fields = {"Last-Event-ID": f"{stream}-{number}"}
                    response = client.request("GET", f"/streams/{stream}", fields=fields, version=version)
                self.assertEqual(response.status, 200)
                for _ in response.chunks():
                    if cut is not None and len(body) + len(response.body) >= cut:
                        break
            received = body + response.body if cut is None else (body + response.body)[:cut]
            # A client drops a block that is not whole; a cut in the first one leaves it with nothing.
            body = received[: received.rfind(b"\n\n") + 2] if b"\n\n" in received else b""

        events = parse_events(body.decode())
        self.assertEqual([event.number for event in events], list(range(1, len(self.answer) + 1)))
        self.assertEqual([event.data for event in events[:-1]], [event.data for event in self.answer[:-1]])
        self.assertEqual(text_of(events), text_of(self.answer))
        self.assertEqual(events[-1].event, "done")

    @unittest.skipUnless(Path("/proc/self/stat").exists(), "needs Linux's /proc")
    def test_generation_stops_when_nobody_returns(self) -> None:
        """After linger the processor is idle within two tokens, and the next answer is as on a fresh server."""
        stream, cost = self.leave(after=12)
        eventually(lambda: self.is_cancelled(stream), what="the stream is cancelled")
        used = cpu_seconds(self.server.process.pid)
        used = wait_until_idle(self.server.process.pid) - used
        # An event is a token or more; the clock ticks a hundred times a second, and a probe is answered for some ticks.
        self.assertLess(used, 2 * cost + 50 * MS, f"an event costs {cost:.3f} s")
        events = ask(self.server.port, "GET", f"/streams/{stream}").events
        self.assertEqual(events[-1].data["code"], "cancelled")
        self.check_answer()


class WatchedTest(SmolLM2TestCase):
    """With tests/e2e/watched around the app: it notes what goes on in the model, and makes it raise."""

    model = WATCHED

    def test_generation_stops_within_two_tokens(self) -> None:
        """Once nobody has returned within linger, the generate thread begins two more tokens at most."""
        stream, _ = self.leave(after=5)
        eventually(lambda: self.is_cancelled(stream), what="the stream is cancelled")
        self.check_answer()  # which waits until that thread is over
        self.assertLessEqual(self.notes.read_text().count("late"), 2)

    def test_thread_that_raises_ends_its_stream(self) -> None:
        """A generate thread that raises ends its stream with an error event within a second; the next one is well."""
        with Client(self.server.port) as client:
            response = client.request("POST", "/infer", {"TEXT": "RAISE"})
            chunks = response.chunks()
            while not response.events or response.events[-1].event is None:
                self.assertIsNotNone(next(chunks, None), "the stream ended without an error event")
            came = time.monotonic()
            response.read()
        self.assertTrue(response.complete)
        self.assertEqual(response.events[-1].event, "error")
        self.assertEqual(response.events[-1].data["code"], "app_error")
        self.assertIn("made to raise", response.events[-1].data["error"])
        _, raised = self.notes.read_text().split()
        self.assertLess(came - float(raised), 1)
        self.check_answer()


del SmolLM2TestCase  # it has no tests

if __name__ == "__main__":
    unittest.main()
