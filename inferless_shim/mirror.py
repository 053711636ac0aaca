"""A stream that runs in another process, as this one sees it: its frames come from there, and so does its end.

To its subscribers it is a stream like all others. Its producing thread is whoever receives it; nothing here counts,
cancels or retains it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .http1 import chunk
from .outputs import NO_ANSWER, Answer
from .stream import Stream
from .subscriber import Subscriber
from .tally import State


class Mirror(Stream):
    """A stream of another process. A client may be ahead of it: what that process sent it may still be under way here.

    Such a client waits: for the event after the one that it has, or to be told that the stream was interrupted.
    """

    elsewhere = True

    # ---- The thread that receives it

    def receive(self, frames: Sequence[bytes]) -> None:
        """Append whole frames, as they are, and send them to everyone caught up. Does nothing once it has ended."""
        with self.lock:
            if not self.is_open:
                return
            for frame in frames:
                if len(self.log) + len(frame) > self.log.cap:
                    self._send_to_ready()
                self.log.append(frame)
            self.appended = time.monotonic()
            self._send_to_ready()

    def end_as(
        self, state: State, failure: tuple[str, str] | None = None, cause: str = "", answer: Answer = NO_ANSWER
    ) -> None:
        """End it as it has ended there, after its last event was received."""
        with self.lock:
            if self.is_open:
                self.failure, self.cause, self.answer = failure, cause, answer
                self._end(state, None)

    def sever(self) -> None:
        """Break the connections of all who follow it, without an end: they come back, to another process."""
        with self.lock:
            for subscriber in self._subscribers:
                subscriber.broken = True
                subscriber.wake()

    # ---- A handler thread

    def attach(self, subscriber: Subscriber, number: int) -> bool:
        """Follow from the end of event `number` on, also if that has not come yet."""
        with self.lock:
            if not self.is_open or number <= self.log.last:
                position = self._locate(number)
                if position is None:
                    return False
            else:
                position = self.log.end
                subscriber.ahead, subscriber.pulled = number, True
            self._add(subscriber, position)
            return True

    def can_follow(self, number: int) -> bool:
        """Tell what `attach` would return, and raise what it would raise."""
        with self.lock:
            return (self.is_open and number > self.log.last) or self._locate(number) is not None

    # ---- Needs self.lock

    def _read(self, subscriber: Subscriber) -> bytes | bytearray:
        ahead = subscriber.ahead
        if ahead is None:
            return super()._read(subscriber)
        if self.log.last > ahead or (self.log.last == ahead and self.is_open):
            subscriber.ahead = None
            position = self.log.position_after(ahead)
            subscriber.position = subscriber.began = self.log.start if position is None else position
            return super()._read(subscriber)
        subscriber.position = subscriber.began = self.log.end
        told = self.told_past(ahead)
        if told is None:
            return b""
        subscriber.ahead = None
        subscriber.pending = chunk(told) if subscriber.chunked else told
        return subscriber.pending
