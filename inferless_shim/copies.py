"""A stream whose log is copied to where it outlives the process, behind the events and by a thread of its own.

Whoever makes the copy reads the log in batches, and is woken once whenever it had read everything: a copy is no
subscriber, and nobody waits for it. Where it `gates`, subscribers see the log only up to what is safe, and that it has
ended when the copy was given up; the model's thread goes on all the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from .stream import Stream


class Batch(NamedTuple):
    """Events `first` to `last`, whole frames as they are sent; `last` is `first - 1` if there are none.

    `ended`: these are the last ones, and nothing of the stream changes any more. `lost`: what comes next was forgotten
    before it was copied.
    """

    first: int
    last: int
    data: bytes | bytearray
    ended: bool = False
    lost: bool = False


class Copy:
    """How far a stream was copied: events up to `number` are safe, those up to `read` were read. Its lock guards it.

    `wake` is called, under that lock, when there is something new and the copy was `idle`.
    """

    __slots__ = ("gates", "idle", "number", "read", "stream", "wake")

    def __init__(self, stream: CopiedStream, wake: Callable[[Copy], None], *, gates: bool = False) -> None:
        self.stream = stream
        self.wake = wake
        self.gates = gates
        self.number = self.read = 0
        self.idle = True


class CopiedStream(Stream):
    """A stream that runs here and outlives the process. Its methods take its lock for a moment; any thread may call."""

    _copy: Copy | None = None
    _followed_elsewhere = False

    def copy_to(self, copy: Copy) -> None:
        """Have a copy made from now on: before anybody else knows the stream, or anew of one that has ended."""
        with self.lock:
            self._copy = copy
            self.log.copied = 0
            self._gate = 0 if copy.gates else None

    def read_new(self, copy: Copy, limit: int) -> Batch:
        """Read what is new to a copy, as much as lies together, up to `limit` bytes but at least one event.

        When there is nothing, the copy is idle.
        """
        with self.lock:
            first = copy.read + 1
            if first < self.log.first:
                return Batch(first, copy.read, b"", lost=True)
            data, copy.read = self.log.read_after(copy.read, limit)
            ended = not self.is_open and copy.read == self.log.last
            copy.idle = not data and not ended
            return Batch(first, copy.read, data, ended)

    def copied(self, copy: Copy, number: int) -> None:
        """Note that all events up to `number` are safe: the log may lose them, and the gate lets them out."""
        with self.lock:
            if self._copy is not copy:
                return
            copy.number = self.log.copied = number
            if self._gate is not None:
                position = self.log.position_after(number)
                self._open_gate(self.log.start if position is None else position)
            self.log.trim()

    def read_again(self, copy: Copy, number: int) -> None:
        """Have a copy go on after event `number`, the last one there; or as soon after that as the log still has it."""
        with self.lock:
            copy.read = min(max(number, self.log.first - 1), self.log.last)

    def park(self, copy: Copy) -> None:
        """Let a copy wait, whatever there is to read, until something new comes or its recorder is told to look."""
        with self.lock:
            copy.idle = True

    def end_copy(self) -> None:
        """Give the copy up, made to the end or not: the log is trimmed by its cap alone, and all of it is shown."""
        with self.lock:
            if self._copy is not None:
                self._copy.idle = True
                self._copy = None
            self.log.copied = sys.maxsize
            if self._gate is not None:
                self._open_gate(None)
            self.log.trim()

    def followed_elsewhere(self, followed: bool) -> None:
        """Note whether somebody follows it through another process: then it has somebody to run for."""
        with self.lock:
            self._followed_elsewhere = followed
            if followed:
                self.followed = True
                self.unfollowed = None
            elif not self._subscribers and self.unfollowed is None and self.followed:
                self.unfollowed = time.monotonic()

    # ---- Needs self.lock

    def _changed(self) -> None:
        copy = self._copy
        if copy is not None and copy.idle:
            copy.idle = False
            copy.wake(copy)

    def _left(self) -> None:
        if not self._followed_elsewhere:
            super()._left()

    def _open_gate(self, position: int | None) -> None:
        """Show the log up to there to those who follow; None: all of it, from now on."""
        self._gate = position
        self._send_to_ready()
        if not self.is_open and position is None:
            for subscriber in self._subscribers:
                subscriber.wake()  # to find that this was all
