"""Promises of the event loop that each infer thread keeps."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable
from typing import Any

from inferless_shim import loops
from tests.support import PATIENCE, ROOT, TestCase


def on_a_thread(function: Callable[[], Any]) -> Any:
    """Run `function` on a new thread, as an infer thread would; return what it returns, raise what it raises."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((True, function()))
        except BaseException as error:
            results.append((False, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    well, result = results[0]
    if not well:
        raise result
    return result


class LoopTest(TestCase):
    def test_event_loop_is_one_for_each_thread(self):
        """A thread gets the same loop again, which is the one that asyncio gives it; another thread gets another."""

        def get() -> Any:
            loop = loops.event_loop()
            self.addCleanup(loop.close)
            self.assertIs(loops.event_loop(), loop)
            self.assertIs(asyncio.get_event_loop(), loop)
            return loop

        self.assertIsNot(on_a_thread(get), on_a_thread(get))

    def test_event_loop_that_was_closed_or_taken_away_is_made_anew(self):
        """`asyncio.run` in infer takes the thread's loop away, an app may close it: the next request gets another."""

        def get() -> None:
            for end in (lambda loop: loop.close(), lambda loop: asyncio.run(asyncio.sleep(0)),
                        lambda loop: asyncio.set_event_loop(None)):  # fmt: skip
                loop = loops.event_loop()
                self.addCleanup(loop.close)
                end(loop)
                again = loops.event_loop()
                self.addCleanup(again.close)
                self.assertFalse(again.is_closed())
                self.assertEqual(again.run_until_complete(asyncio.sleep(0, "works")), "works")

        on_a_thread(get)

    def test_ensure_event_loop_lets_initialize_get_one(self):
        """Off the main thread `asyncio.get_event_loop` raises, but not in `initialize`."""

        def get() -> Any:
            loops.ensure_event_loop()
            loop = asyncio.get_event_loop()
            self.addCleanup(loop.close)
            return loop

        self.assertIsInstance(on_a_thread(get), asyncio.AbstractEventLoop)

    def test_close_event_loop_ends_async_generators(self):
        """What was left in the middle is ended on the loop that it began on."""
        ended = []

        async def generator() -> Any:
            try:
                yield 1
                yield 2
            finally:
                ended.append(asyncio.get_running_loop())

        left = generator()

        async def begin() -> Any:
            return await left.__anext__()

        def use() -> Any:
            loop = loops.event_loop()
            self.assertEqual(loop.run_until_complete(begin()), 1)
            loops.close_event_loop()
            return loop

        loop = on_a_thread(use)
        self.assertTrue(loop.is_closed())
        self.assertEqual(ended, [loop])

    def test_without_asyncio_nothing_is_imported(self):
        """An app that does not use asyncio does not pay for it."""
        program = (
            "import sys\nfrom inferless_shim import loops\n"
            "loops.ensure_event_loop()\nloops.close_event_loop()\nprint('asyncio' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("False\n", ""))


if __name__ == "__main__":
    unittest.main()
