"""Run every seeded test again and again, each time with a new seed: python -m tests.fuzz.again [SECONDS] [SEED]

The invariants stand in the tests themselves: every subscriber is sent exactly the log, the same verdict however the
bytes are cut. A failure names its seed; TEST_SEED=<seed> runs the test with it again.
"""

from __future__ import annotations

import os
import random
import re
import sys
import time
import unittest
from collections.abc import Iterator

from tests.support import ROOT

SEEDED = re.compile(r"mutated|random|seeded|schedule")


def seeded_tests() -> unittest.TestSuite:
    """Find the tests whose name says that they draw from TEST_SEED."""
    found = unittest.defaultTestLoader.discover(str(ROOT / "tests"), top_level_dir=str(ROOT))
    return unittest.TestSuite(test for test in flattened(found) if SEEDED.search(test.id().rpartition(".")[2]))


def flattened(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flattened(test)
        else:
            yield test


def main(seconds: float = 60.0, seed: float | None = None) -> int:
    """Run rounds until the time is over or one fails; return the exit status."""
    seeds = random.Random(seed)
    deadline = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < deadline:
        os.environ["TEST_SEED"] = str(seeds.randrange(2**32))
        result = unittest.TextTestRunner(stream=sys.stderr, verbosity=0).run(seeded_tests())
        if not result.wasSuccessful():
            print(f"failed with TEST_SEED={os.environ['TEST_SEED']}", file=sys.stderr)
            return 1
        rounds += 1
    print(f"{rounds} rounds of {result.testsRun} tests, each with its own seed: nothing found")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*map(float, sys.argv[1:])))
