"""Several at once: each request's text is the one that it gets alone, whatever becomes of the others.

models/smollm2 with one streamer for all its requests, and a tiny model with streamers kept in all sorts of places
(tests/e2e/keeping). It runs under the same Python as test_smollm2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from tests.e2e.test_smollm2 import LOAD, UNMODIFIED, WATCHED, model_python, text_of, wait_until_idle
from tests.e2e.wire import TestCase, served
from tests.support import Client, ServerProcess, ask, eventually

KEEPING = Path(__file__).with_name("keeping")
SEEDS = range(8)
CANCELLED, GONE, RAISING = (1, 4), 6, 3  # what becomes of these eight; the others are to have their whole text
WHOLE = [seed for seed in SEEDS if seed not in (*CANCELLED, GONE, RAISING)]


def question(seed: int, **more: Any) -> dict[str, Any]:
    return {
        "TEXT": "Write a story about a lighthouse.",
        "MAX_NEW_TOKENS": 16,
        "SEED": seed,
        "SAMPLING": json.dumps({"temperature": 0.9}),
        **more,
    }


def asked(port: int, body: dict[str, Any]) -> str:
    """Ask alone; return the whole text."""
    events = ask(port, "POST", "/infer", body).events
    assert events[-1].event == "done", events[-1]
    return text_of(events)


class Asker(threading.Thread):
    """A client of its own: it reads until the end, or until `leave_after` events; `events` are what has come."""

    def __init__(self, port: int, body: dict[str, Any], leave_after: int | None = None) -> None:
        super().__init__()
        self.port, self.body, self.leave_after = port, body, leave_after
        self.events: list[Any] = []
        self.stream = ""
        self.start()

    def run(self) -> None:
        with Client(self.port, timeout=LOAD) as client:
            response = client.request("POST", "/infer", self.body)
            self.stream = response.fields["stream-id"]
            for _ in response.chunks():
                self.events = response.events
                if self.leave_after is not None and len(self.events) >= self.leave_after:
                    return

    @property
    def text(self) -> str:
        return text_of(self.events)


def all_at_once(port: int, bodies: Iterable[dict[str, Any]]) -> list[Asker]:
    askers = [Asker(port, body) for body in bodies]
    for asker in askers:
        asker.join()
    return askers


def has_ended(port: int, stream: str) -> bool:
    """Tell without following: an event far ahead is 400 while it may still come, 204 once none can."""
    return ask(port, "HEAD", f"/streams/{stream}", fields={"Last-Event-ID": f"{stream}-99999"}).status == 204


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def serve(stack: ExitStack, model: Path, *flags: str, **environment: str) -> ServerProcess:
    with mock.patch.object(sys, "executable", model_python()):
        return stack.enter_context(served(model, *flags, patience=LOAD, **environment))


@unittest.skipUnless(Path("/proc/self/task").exists(), "needs Linux's /proc")
class SmolLM2Test(TestCase):
    """Served with --concurrency 8; a request of TEXT "RAISE" has its generate thread raise (tests/e2e/watched)."""

    def test_eight_at_once(self) -> None:
        """With eight seeds each gets the text that it gets alone, here and at concurrency 1.

        Then two are cancelled midway, one client vanishes, one generate thread raises: the others never notice, nothing
        is left running after, and the next text is exact.
        """
        with ExitStack() as stack:
            notes = Path(stack.enter_context(tempfile.TemporaryDirectory()), "notes")
            one = serve(stack, UNMODIFIED)
            want = {seed: asked(one.port, question(seed)) for seed in SEEDS}
            one.__exit__()
            self.assertEqual(len(set(want.values())), len(SEEDS))

            server = serve(
                stack, WATCHED, "--concurrency", "8", "--linger", "1s", "--infer-timeout", f"{LOAD:.0f}s",
                WATCH_NOTES=str(notes),
            )  # fmt: skip
            for seed in (0, RAISING):
                self.assertEqual(asked(server.port, question(seed)), want[seed])
            askers = all_at_once(server.port, map(question, SEEDS))
            self.assertEqual({seed: asker.text for seed, asker in enumerate(askers)}, want)
            self.assertEqual({asker.events[-1].event for asker in askers}, {"done"})
            wait_until_idle(server.process.pid)
            threads = threads_of(server.process.pid)

            self.check_storm(server, want, notes)
            wait_until_idle(server.process.pid)
            eventually(lambda: threads_of(server.process.pid) <= threads, what="the threads have ended")
            self.assertLessEqual(notes.read_text().count("late"), 2 * len([*CANCELLED, GONE]))
            self.assertEqual(asked(server.port, question(5)), want[5])
            self.assertNotIn("outlived", server.log)

    def check_storm(self, server: ServerProcess, want: dict[int, str], notes: Path) -> None:
        """Run eight at once, of which four end badly; read what each has got."""
        askers: dict[int, Asker] = {}
        for seed in SEEDS:
            more: dict[str, Any] = {"MAX_NEW_TOKENS": 2000} if seed in (*CANCELLED, GONE) else {}
            more |= {"TEXT": "RAISE"} if seed == RAISING else {}
            askers[seed] = Asker(server.port, question(seed, **more), leave_after=4 if seed == GONE else None)
        for seed in CANCELLED:
            eventually(lambda seed=seed: len(askers[seed].events) >= 3, LOAD, f"request {seed} is under way")
            self.assertEqual(ask(server.port, "DELETE", f"/streams/{askers[seed].stream}").status, 204)
        for asker in askers.values():
            asker.join()
        eventually(lambda: has_ended(server.port, askers[GONE].stream), LOAD, "nobody has come back within linger")
        gone = ask(server.port, "GET", f"/streams/{askers[GONE].stream}").events

        self.assertEqual({seed: askers[seed].text for seed in WHOLE}, {seed: want[seed] for seed in WHOLE})
        self.assertEqual({askers[seed].events[-1].event for seed in WHOLE}, {"done"})
        for seed in (*CANCELLED, GONE):
            got = text_of(gone) if seed == GONE else askers[seed].text
            self.assertTrue(got.startswith(want[seed]) or want[seed].startswith(got), (got, want[seed]))
        for seed in CANCELLED:
            self.assertEqual(askers[seed].events[-1].data["code"], "cancelled")
        self.assertEqual(gone[-1].data["code"], "cancelled")
        self.assertEqual(askers[RAISING].events[-1].data["code"], "app_error")
        self.assertIn("made to raise", askers[RAISING].events[-1].data["error"])
        self.assertEqual(notes.read_text().count("raise "), 1)


class KeepingTest(TestCase):
    """A tiny model whose app keeps streamers on self, in a pipeline, a partial, a dict, or makes one a request."""

    KINDS = ("torch.manual_seed", "set_seed", "custom", "own", "pipeline", "partial", "kwargs", "stopping")

    def test_each_kind_at_once_is_as_alone(self) -> None:
        """Six requests of each kind, then some of all kinds at once."""
        with ExitStack() as stack:
            server = serve(stack, KEEPING, "--concurrency", "6")
            want = {
                (kind, seed): asked(server.port, {"TEXT": "bam den", "KIND": kind, "SEED": seed})
                for kind in self.KINDS
                for seed in range(6)
            }
            self.assertEqual(want["set_seed", 1], want["torch.manual_seed", 1])
            self.assertEqual(len({want["set_seed", seed] for seed in range(6)}), 6)
            self.assertEqual(want["stopping", 2].split(), want["set_seed", 2].split()[:5])
            for kind in self.KINDS:
                with self.subTest(kind):
                    self.check(server, want, [(kind, seed) for seed in range(6)])
            mixed = [(kind, seed) for seed, kind in enumerate(self.KINDS[:6])]
            self.check(server, want, mixed)

    def check(self, server: ServerProcess, want: dict[tuple[str, int], str], asking: list[tuple[str, int]]) -> None:
        askers = all_at_once(server.port, ({"TEXT": "bam den", "KIND": kind, "SEED": seed} for kind, seed in asking))
        self.assertEqual([asker.text for asker in askers], [want[each] for each in asking])
        self.assertEqual({asker.events[-1].event for asker in askers}, {"done"})


class SeedsTest(TestCase):
    def test_what_a_request_draws_is_what_torch_draws(self) -> None:
        """After the same seed, in all the ways to draw; under a default device and torch.compile, too."""
        script = Path(__file__).with_name("torch_seeds.py")
        ran = subprocess.run([model_python(), str(script)], capture_output=True, text=True, timeout=LOAD, check=False)
        self.assertEqual(ran.returncode, 0, ran.stderr)


if __name__ == "__main__":
    unittest.main()
