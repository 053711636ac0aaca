"""Which streams a journal's folder holds: who is found by what, and who goes first."""

from __future__ import annotations

import math
import random
import unittest

from inferless_shim.shelf import BLOCK, Entry, Shelf
from tests.support import TestCase


class ShelfTest(TestCase):
    def test_found_by_id_and_by_key(self) -> None:
        """A key leads to the newest stream that it made; what is removed is found by neither."""
        shelf = Shelf()
        old, new = Entry("a", "", key="k"), Entry("b", "", key="k")
        shelf.add(old)
        self.assertIs(shelf.by_key("k"), old)
        shelf.add(new)
        self.assertIs(shelf.by_key("k"), new)
        shelf.remove(old)
        self.assertIsNone(shelf.get("a"))
        self.assertIs(shelf.by_key("k"), new)
        shelf.remove(new)
        self.assertIsNone(shelf.by_key("k"))
        self.assertEqual(len(shelf), 0)

    def test_a_stream_that_is_not_claimable_gives_up_its_key(self) -> None:
        """It is still found by its id."""
        shelf = Shelf()
        for claimable in (True, False):
            entry = Entry("a", "", key="k")
            shelf.add(entry)
            shelf.end(entry, 1.0, claimable=claimable)
            self.assertIs(shelf.by_key("k"), entry if claimable else None)
            self.assertIs(shelf.get("a"), entry)

    def test_the_first_to_end_goes_first(self) -> None:
        """In whatever order they ended and were added, and only those that ended by then; each is told once."""
        shelf, dice = Shelf(), random.Random(1)
        entries = [Entry(str(n), f"owner of {n}") for n in range(50)]
        for entry in entries:
            shelf.add(entry)
        ended = {entry: dice.random() for entry in entries[:40]}
        for entry, when in ended.items():
            shelf.end(entry, when, claimable=True)
        for entry in entries[:5]:
            shelf.remove(entry)
            del ended[entry]
        taken = []
        while (entry := shelf.take_ended(0.5)) is not None:
            taken.append(entry)
        self.assertEqual(taken, [each for each in sorted(ended, key=ended.__getitem__) if ended[each] <= 0.5])
        self.assertEqual(list(shelf.told()), [(each.id, each.owner) for each in taken])
        self.assertEqual(list(shelf.told()), [])
        while shelf.take_ended(math.inf) is not None:
            pass
        self.assertEqual(len(shelf), 10)  # those that run
        self.assertEqual(len(list(shelf.told())), 35 - len(taken))
        for _ in range(2):
            shelf.take(entries[-1])
        self.assertEqual(list(shelf.told()), [("49", "owner of 49")])

    def test_size_is_that_of_what_is_there(self) -> None:
        """Whatever grows, shrinks or goes, in whole blocks of the disk's; what is gone already changes nothing."""
        shelf = Shelf()
        one, two = Entry("1", "", size=10), Entry("2", "", size=2 * BLOCK)
        shelf.add(one)
        shelf.add(two)
        self.assertEqual(shelf.size, 3 * BLOCK)
        shelf.resize(one, BLOCK + 1)
        self.assertEqual(shelf.size, 4 * BLOCK)
        shelf.remove(one)
        shelf.remove(one)
        shelf.resize(one, 1000)
        self.assertEqual((shelf.size, one.size), (2 * BLOCK, 1000))
        shelf.end(one, 0.0, claimable=True)
        self.assertIsNone(shelf.take_ended(math.inf))


if __name__ == "__main__":
    unittest.main()
