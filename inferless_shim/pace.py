"""How slowly a client may take what waits for it. No I/O."""

from __future__ import annotations

import time

# Bytes a second. Far below what anybody reads at (a modem took 5 KiB/s, and text on a screen is read at 20 bytes/s, in
# events of 100), and enough for 4 MiB, a whole log, to hold a thread for an hour at most. Apache's mod_reqtimeout asks
# for 500 of a request.
MIN_RATE = 1024.0


class Pace:
    """The time that a client has left to take something, while bytes wait for it.

    It has `stall` seconds, and gains those that what it takes is worth at MIN_RATE, but never has more than `stall`: a
    byte now and then does not hold a thread for long, and what it took fast is no credit to be slow later.
    """

    def __init__(self, stall: float) -> None:
        self.stall = stall
        self.deadline = time.monotonic() + stall

    @property
    def left(self) -> float:
        """Seconds; at most 0 once it was too slow."""
        return self.deadline - time.monotonic()

    def took(self, count: int) -> None:
        """Note that the client has taken `count` bytes."""
        self.deadline = min(time.monotonic() + self.stall, self.deadline + count / MIN_RATE)
