"""A thread that follows the logs of streams, and has what is new written to where it outlives the process.

A copy wakes it when its stream has something new. It goes round at most once in `pause` seconds, and each round writes
what all streams have made since the last one: the faster they are, the larger the batches.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from .copies import CopiedStream, Copy

log = logging.getLogger(__name__)

# Seconds from a round that raised until the next: what fails again and again is not to fill the log.
REST = 1.0


class Recorder:
    """Calls `write` with the copies that have something new, each once; one that is not idle then comes again.

    `tick` is called about every `every` seconds. Both run on the recorder's own thread, and are not expected to raise:
    that is logged, and the next round comes REST seconds later.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Copy]], None],
        *,
        pause: float,
        tick: Callable[[], None] = lambda: None,
        every: float = 1.0,
        name: str = "recorder",
    ) -> None:
        self._write = write
        self._pause = pause
        self._tick = tick
        self._every = every
        self._woken: queue.SimpleQueue[Copy | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, stream: CopiedStream, *, gates: bool = False) -> Copy:
        """Follow a stream that nobody else knows yet."""
        copy = Copy(stream, self._woken.put, gates=gates)
        stream.copy_to(copy)
        return copy

    def wake(self, copy: Copy) -> None:
        """Have a copy looked at in the next round, whether there is anything new or not."""
        self._woken.put(copy)

    def stop(self, timeout: float) -> bool:
        """Write until nothing is new, and end. Return False if that took too long. Streams must have ended."""
        self._stopping.set()
        self._woken.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- The recorder's thread

    def _run(self) -> None:
        left: dict[Copy, None] = {}  # in the order in which they came
        ticked = began = time.monotonic()
        while left or not (self._stopping.is_set() and self._woken.empty()):
            if not left and (woken := self._wait(ticked + self._every)) is not None:
                left[woken] = None
            rest = began + self._pause - time.monotonic()
            if left and rest > 0:
                time.sleep(rest)
            while not self._woken.empty():  # nobody else takes from it
                if (woken := self._woken.get()) is not None:
                    left[woken] = None
            if left:
                began = time.monotonic()
                if not self._call(partial(self._write, list(left))):
                    began += REST
                left = {copy: None for copy in left if not copy.idle}
            if time.monotonic() - ticked >= self._every:
                ticked = time.monotonic()
                self._call(self._tick)

    def _wait(self, until: float) -> Copy | None:
        try:
            return self._woken.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def _call(self, do: Callable[[], None]) -> bool:
        """Return False if it raised: the thread must live on."""
        try:
            do()
        except Exception:
            log.exception("%s failed", self._thread.name)
            return False
        return True
