"""What requests may take of the memory together (`--body-total`): bodies, inputs made of them, answers on their way.

A request has a Hold on the budget, which grows with what has come of the body, then to what its values weigh while they
are made (`weights`), and shrinks to what the inputs keep until their job is over. What does not fit now is told 503,
what never will 413; an answer, which is made already, is only counted. Whoever has a Hold releases it, whatever ends
the request.
"""

from __future__ import annotations

import threading

from .allocator import Freed
from .errors import ContentTooLarge, Unavailable
from .weights import Weight

# Holds up to this size may take all of the budget; larger ones leave a part of it, one in LEFT, to these. So a few who
# send large bodies, or slowly, don't keep out everybody else.
SMALL = 64 * 1024
LEFT = 4
NOTHING = Weight(0, 0)


class Budget:
    """`total` bytes, of which `held` are taken."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self.freed = Freed()  # by large holds
        self.lock = threading.Lock()  # guards what is held; no other lock is taken under it

    def hold(self) -> Hold:
        return Hold(self)

    def give_back(self, hold: Hold) -> None:
        with self.lock:
            size, hold.size = hold.size, 0
            self.held -= size
        if size > SMALL:
            self.freed.add(size)

    @property
    def largest(self) -> int:
        """How large a hold may be."""
        return self.total - self.total // LEFT

    def room(self, size: int) -> int:
        """Return how much may be held in all, for a hold of `size` bytes to be among it. Raises ContentTooLarge."""
        room = self.total if size <= SMALL else self.largest
        if size > room:
            raise ContentTooLarge(
                f"The body would take {size:,} bytes of memory, of which requests have {room:,} here "
                "(--body-total bounds them); send fewer values."
            )
        return room


class Hold:
    """One request's part of a budget, in bytes. One thread at a time has it."""

    def __init__(self, budget: Budget) -> None:
        self.size = 0
        self._budget = budget
        self._weight = NOTHING

    def require(self, size: int) -> None:
        """Raise what `cover` would raise now, and take nothing."""
        with self._budget.lock:
            self._check(size)

    def cover(self, size: int) -> None:
        """Take what is lacking to `size` bytes. Raises Unavailable (503), ContentTooLarge (413) if it never fits."""
        if size <= self.size:
            return
        with self._budget.lock:
            self._check(size)
            self._budget.held += size - self.size
            self.size = size

    def weigh(self, weight: Weight) -> None:
        """Take what values weigh that are about to be made, beside those weighed before. Raises as `cover` does."""
        self._weight += weight
        self.cover(self._weight.peak)

    def cover_answer(self, size: int) -> None:
        """Count an answer of `size` bytes until its client has it, whether there is room or not: it is made already."""
        with self._budget.lock:
            self._budget.held += size - self.size
            self.size = size

    def hand_over(self) -> Hold:
        """Return a hold of what the values keep, for whoever has them from now on; the rest stays with this one."""
        kept = Hold(self._budget)
        with self._budget.lock:
            kept.size = min(self._weight.kept, self.size)
            self.size -= kept.size
        return kept

    def release(self) -> None:
        """Give everything back. More than once does nothing."""
        if self.size:
            self._budget.give_back(self)

    def _check(self, size: int) -> None:
        """Needs the budget's lock."""
        if self._budget.held + size - self.size > self._budget.room(size):
            raise Unavailable("Other requests take the memory for this one (--body-total); try again shortly.")
