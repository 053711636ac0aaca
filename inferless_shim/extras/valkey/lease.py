"""When a replica is called dead. No I/O; the times are those of one monotonic clock.

A replica's lease is a key that expires. A reader calls the replica dead only after it saw that key absent at every look
of a whole period, at looks that were never far apart, and with the store reachable throughout.
"""

from __future__ import annotations

import math

# Shares of --log-lease. A replica that dies right after it has renewed its lease is called dead after TERM, one look,
# a WATCH, and another look: all of --log-lease.
TERM, WATCH, LOOK = 0.45, 0.45, 0.05
# How often in a term the lease is renewed.
RENEWALS = 3


class Watch:
    """Which replicas were absent, and since when. One thread's."""

    def __init__(self, lease: float) -> None:
        self.period = lease * WATCH
        self._patience = lease * WATCH / 2  # between two looks; a reader that was stopped for longer has seen nothing
        self._absent: dict[str, float] = {}  # since when
        self._looked: dict[str, float] = {}  # when last

    def see(self, replica: str, present: bool, now: float) -> bool:
        """Note a look at a lease; return whether the replica is dead."""
        if present or now - self._looked.get(replica, now) > self._patience:
            self._absent.pop(replica, None)
        self._looked[replica] = now
        if present:
            return False
        return now - self._absent.setdefault(replica, now) >= self.period

    def blink(self) -> None:
        """Note that the store could not be reached: every period begins anew."""
        self._absent.clear()
        self._looked.clear()

    def only(self, replicas: set[str]) -> None:
        """Forget all but these."""
        for replica in self._looked.keys() - replicas:
            del self._looked[replica]
            self._absent.pop(replica, None)


class Pulse:
    """Whether this process slept for longer than its lease lives. One thread beats, another asks.

    The one that beats waits for nothing but the clock: else a store that does not answer would pass for sleep.
    """

    def __init__(self, lease: float) -> None:
        self._limit = lease * TERM
        self._beat: float | None = None
        self._woke = -math.inf

    def beat(self, now: float) -> None:
        """Note that it is awake. Call this several times a second."""
        self._woke = self.woke(now)
        self._beat = now

    def woke(self, now: float) -> float:
        """Return when it woke from such a sleep last; long ago if it never did."""
        beat = self._beat  # read once
        return now if beat is not None and now - beat > self._limit else self._woke
