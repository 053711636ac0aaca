"""Idempotency keys: what one may be, and whose it is."""

from __future__ import annotations

import unittest

from inferless_shim.errors import BadRequest, UnprocessableContent
from inferless_shim.idempotency import MAX_IDEMPOTENCY_KEY, IdempotencyKey
from tests.support import TestCase


class Keys(TestCase):
    def test_what_one_may_be(self) -> None:
        """1 to 255 printable characters; anything else is the client's fault."""
        for value in ("a", "x" * MAX_IDEMPOTENCY_KEY, "6f9c0e0a-2b1d-4f9e", "ü"):
            IdempotencyKey(value, b"")
        for value in ("", "x" * (MAX_IDEMPOTENCY_KEY + 1), "a\nb", "a\x00"):
            with self.subTest(value), self.assertRaises(BadRequest):
                IdempotencyKey(value, b"")

    def test_whose_it_is(self) -> None:
        """Two owners may use the same value, and two values are never one place, however owner and value are cut."""
        places = [IdempotencyKey(value, b"", owner).place for value, owner in (("k", "a"), ("k", "b"), ("ka", ""))]
        self.assertEqual(len(set(places)), 3)

    def test_another_request(self) -> None:
        """The same value with another route or body is refused."""
        key = IdempotencyKey("k", b"1")
        key.check(b"1")
        with self.assertRaises(UnprocessableContent):
            key.check(b"2")


if __name__ == "__main__":
    unittest.main()
