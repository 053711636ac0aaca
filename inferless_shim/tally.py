"""A stream's state, and for the metrics what it has made: how many events, at what pace, and how it ended. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum, auto
from typing import NamedTuple

# Seconds between two events that hurry (see stream.HURRY_EVENTS).
HURRY_INTERVAL = 0.002
# Seconds between two events, for the metrics. Gaps under the first are not counted one by one: their number is that of
# the events less one and less the gaps that were counted; the sum of all is the last event's time less the first's.
PAUSES = (HURRY_INTERVAL, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class State(Enum):
    OPEN = auto()
    FINISHED = auto()
    FAILED = auto()
    CANCELLED = auto()


class Tally(NamedTuple):
    """What a stream has made. The last event, which tells how it ended, is not the app's: only `logged` counts it."""

    events: int
    first: float | None  # seconds from the request until the first event
    pauses: tuple[int, ...]  # between two events, how many up to each of PAUSES, and above
    paced: float  # their sum, in seconds
    logged: int = 0  # bytes
    state: State = State.OPEN
    cause: str = ""  # why it failed or was cancelled


class Timing:
    """When a stream's events were made. Its stream's lock guards it; times are those of `time.monotonic`."""

    __slots__ = ("_began", "_first", "_pauses")

    def __init__(self, began: float) -> None:
        self._began = self._first = began
        self._pauses = [0] * (len(PAUSES) + 1)  # but those under HURRY_INTERVAL

    def begin(self, now: float) -> None:
        """Note when the first event was made."""
        self._first = now

    def pause(self, seconds: float) -> None:
        """Note a gap between two events, of at least HURRY_INTERVAL."""
        self._pauses[bisect_left(PAUSES, seconds)] += 1

    def tally(self, events: int, last: float) -> Tally:
        """Sum up what was noted of so many events, the last of which was made then."""
        if not events:
            return Tally(0, None, (0,) * len(self._pauses), 0.0)
        fast = events - 1 - sum(self._pauses)
        paced = last - self._first if events > 1 else 0.0
        return Tally(events, self._first - self._began, (self._pauses[0] + fast, *self._pauses[1:]), paced)
