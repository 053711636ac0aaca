"""The fuzzer's invariants hold for the corpus and for what is made of it; and what breaks one is found."""

from __future__ import annotations

import os
import random
import re
import unittest
from unittest import mock

from inferless_shim import http1, strictjson, tensors
from tests import corpus
from tests.corpus import CASES, CLOSES
from tests.fuzz import reference, targets
from tests.fuzz.mutation import MAX_LENGTH, mutated

ROUNDS = 60  # of each target: seconds of this are tests.fuzz's


class Invariants(unittest.TestCase):
    def test_seeds(self) -> None:
        """Every target takes its own seeds."""
        for target in targets.ALL:
            for data in target.seeds:
                target.check(data)

    def test_seeded_mutations(self) -> None:
        """Every target takes what is made of its seeds by accident."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        for target in targets.ALL:
            for _ in range(ROUNDS):
                data = mutated(rng, target.seeds)
                try:
                    target.check(data)
                except Exception as error:
                    self.fail(f"{target.name}, TEST_SEED={seed}, {data!r}: {error!r}")

    def test_mutated_length(self) -> None:
        """Accidents make no input longer than is fuzzed."""
        rng = random.Random(1)
        self.assertLessEqual(max(len(mutated(rng, [b"a" * MAX_LENGTH])) for _ in range(200)), MAX_LENGTH)


class Reference(unittest.TestCase):
    def test_corpus(self) -> None:
        """The second reader finds in every case of the corpus as many requests as its fate says."""
        for case in CASES:
            read, end = reference.read_requests(case.data, 2**60)
            answers = len([status for status in case.answers if status != 100])
            with self.subTest(case.name):
                if case.end is not CLOSES:
                    self.assertEqual((len(read), end), (answers, "incomplete"))
                elif case.answers[-1] in targets.STATUSES:
                    self.assertEqual(len(read), answers - 1)
                else:  # whatever comes behind the last one; of that, only the head may have been looked at
                    self.assertGreaterEqual(len(read), answers - (end == "incomplete"))


class Findings(unittest.TestCase):
    def assert_found(self, name: str, data: bytes) -> None:
        (target,) = (each for each in targets.ALL if each.name == name)
        with self.assertRaises(AssertionError):
            target.check(data)

    def test_lenient_readers_are_found(self) -> None:
        """What is taken that should not be is seen by the reference, in each of the ways to smuggle a request."""
        head = b"POST /infer HTTP/1.1\r\nHost: a\r\n"
        for name, lenient, data in [
            ("LENGTH", re.compile(r"\+?[0-9]{1,19}"), head + b"Content-Length: +5\r\n\r\nhello"),
            (
                "CHUNK_LINE",
                re.compile(r"([0-9A-Fa-f]+)[ ;].*"),
                head + corpus.CHUNKED + b"\r\n0 \r\n\r\n",
            ),
            ("FIELD", re.compile(r"([!-9;-~]+) ?:([\t -~]*)"), head + b"X : a\r\n\r\n"),
            ("HOST", re.compile(r".*"), b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
            ("SINGLE", (), head + b"Origin: http://a\r\nOrigin: http://b\r\n\r\n"),
        ]:
            with self.subTest(name), mock.patch.object(http1, name, lenient):
                self.assert_found("requests", data)

    def test_cuts_are_found(self) -> None:
        """A reader for which it matters how the bytes come is found."""

        def bytewise(data: bytes) -> list[bytes]:
            return [data[at : at + 1] for at in range(len(data))]

        def forgetful(buffer: bytearray, searched: int = 0) -> int | None:
            end = buffer.find(b"\r\n\r\n", searched)
            return end + 4 if end >= 0 else None

        with mock.patch.object(targets, "find_head", forgetful), mock.patch.object(targets, "cut", bytewise):
            self.assert_found("requests", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

    def test_lenient_json_is_found(self) -> None:
        """JSON that is read differently is found, by value or by being read at all."""
        with mock.patch.object(strictjson, "_nests_too_deep", lambda body: False):
            self.assert_found("json", b"[" * 65 + b"]" * 65)
        with mock.patch.object(strictjson, "loads", lambda body: 1.0):
            self.assert_found("json", b"1")

    def test_tensors_that_are_not_written_back_are_found(self) -> None:
        """A tensor that is read as another one is found."""
        with mock.patch.object(tensors, "read", lambda *arguments: [7]):
            self.assert_found("tensor", b"\0\1\1\5")


if __name__ == "__main__":
    unittest.main()
