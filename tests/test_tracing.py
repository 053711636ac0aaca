"""W3C's traceparent, read as Trace Context §3.2 says: to the letter, or not at all."""

from __future__ import annotations

import unittest

from inferless_shim.tracing import Trace, read_traceparent
from tests.support import TestCase

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


class ReadTraceparent(TestCase):
    def test_valid(self) -> None:
        """Version 00 passes as it came; of a later one the first four fields count, and the one flag that is known."""
        cases = [
            (VALID, VALID),
            (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
            (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-ff"),
            (f"01-{TRACE}-{PARENT}-01", VALID),
            (f"cc-{TRACE}-{PARENT}-01-what the future will be like", VALID),
            (f"fe-{TRACE}-{PARENT}-fe", f"00-{TRACE}-{PARENT}-00"),
            (f"01-{TRACE}-{PARENT}-03-", VALID),
        ]
        for value, passed_on in cases:
            with self.subTest(value):
                self.assertEqual(read_traceparent(value), Trace(TRACE, passed_on))

    def test_invalid_is_none(self) -> None:
        """Anything else is as good as no field."""
        cases = [
            None,
            "",
            "00",
            VALID.upper(),
            VALID[:-1],
            VALID + "0",
            VALID + "-",
            VALID + "-00",
            VALID + "\n",
            " " + VALID,
            f"{VALID}, {VALID}",
            f"ff-{TRACE}-{PARENT}-01",
            f"01-{TRACE}-{PARENT}-011",
            f"01-{TRACE}-{PARENT}-01.x",
            f"00-{'0' * 32}-{PARENT}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"0-{TRACE}-{PARENT}-01",
            f"00-{TRACE[:-1]}-{PARENT}-01",
            f"00-{TRACE}g-{PARENT}-01",
            f"00-{TRACE}-{PARENT}-0x",
            f"00_{TRACE}_{PARENT}_01",
            f"٠٠-{TRACE}-{PARENT}-01",
        ]
        for value in cases:
            with self.subTest(value):
                self.assertIsNone(read_traceparent(value))


if __name__ == "__main__":
    unittest.main()
