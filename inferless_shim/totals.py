"""Sums over streams, for metrics: those that are kept, and those that were forgotten. No locks of its own."""

from __future__ import annotations

from collections import Counter

from .metrics import BILLION, Distribution
from .stream import Stream
from .tally import PAUSES, State

# Seconds: from what a small model on a GPU takes to its first token, to a prompt that fills a large one on a CPU.
FIRST_EVENT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
# Why a stream did not end well, by `Stream.cause`; every other one is the app's: it raised, or changed its schema.
CAUSES = {
    "deleted": "deleted",
    "unfollowed": "unfollowed",
    "bad_request": "client",
    "timeout": "timeout",
    "shutting_down": "shutdown",
}


class Totals:
    """What streams have made. Its owner's lock guards it; a copy is its reader's own."""

    def __init__(self) -> None:
        self.streams = 0
        self.events = 0
        self.logged = 0  # bytes
        self.firsts = Distribution(FIRST_EVENT)  # from the request until its first event
        self.pauses = Distribution(PAUSES)  # between two events
        self.states: Counter[State] = Counter()
        self.cancelled: Counter[str] = Counter()  # by cause

    def add(self, stream: Stream) -> None:
        """Add a stream. Takes its lock, unless it has ended: then nothing of it changes any more."""
        tally = stream.tally()
        self.streams += 1
        self.events += tally.events
        self.logged += tally.logged
        if tally.first is not None:  # else there is no pause either
            self.firsts.observe(tally.first)
            self.pauses.add(tally.pauses, round(tally.paced * BILLION))
        self.states[tally.state] += 1
        if tally.cause:
            self.cancelled[CAUSES.get(tally.cause, "app")] += 1

    def copy(self) -> Totals:
        other = Totals()
        other.streams, other.events, other.logged = self.streams, self.events, self.logged
        other.firsts, other.pauses = self.firsts.copy(), self.pauses.copy()
        other.states, other.cancelled = self.states.copy(), self.cancelled.copy()
        return other
