"""Queries in, as tables; no HTTP."""

from __future__ import annotations

import os
import random
import unittest

from inferless_shim.errors import BadRequest
from inferless_shim.protocol import Call
from inferless_shim.queries import read_query, reserved_query
from tests.bad_bodies import text_of
from tests.support import about
from tests.test_protocol import APP, assert_read_or_refused, mutated, schema_of


class ReadQuery(unittest.TestCase):
    def test_read_query_values(self) -> None:
        """A query's text is read as each input's datatype says; a list is JSON text."""
        table: list[tuple[str, dict[str, object]]] = [
            ("TEXT=hello", {"TEXT": "hello"}),
            ("TEXT=", {"TEXT": ""}),
            ("TEXT", {"TEXT": ""}),
            ("&TEXT=a&&", {"TEXT": "a"}),
            ("TEXT=a+b%20c%2B", {"TEXT": "a b c+"}),
            ("TEXT=caf%C3%A9%F0%9F%98%80", {"TEXT": "café\U0001f600"}),
            ("TEXT=a=b", {"TEXT": "a=b"}),
            ("%54EXT=x", {"TEXT": "x"}),
            ("TEXT=5", {"TEXT": "5"}),
            ('TEXT=["x"]', {"TEXT": '["x"]'}),
            ("TEXT=x&MAX_NEW_TOKENS=064", {"TEXT": "x", "MAX_NEW_TOKENS": 64}),
            ("TEXT=x&MAX_NEW_TOKENS=-5", {"TEXT": "x", "MAX_NEW_TOKENS": -5}),
            ("TEXT=x&TEMPERATURE=5", {"TEXT": "x", "TEMPERATURE": 5.0}),
            ("TEXT=x&TEMPERATURE=-.5e1", {"TEXT": "x", "TEMPERATURE": -5.0}),
            ("TEXT=x&TEMPERATURE=5.", {"TEXT": "x", "TEMPERATURE": 5.0}),
            ("TEXT=x&SAMPLE=true", {"TEXT": "x", "SAMPLE": True}),
            ("TEXT=x&SAMPLE=1", {"TEXT": "x", "SAMPLE": True}),
            ("TEXT=x&SAMPLE=false", {"TEXT": "x", "SAMPLE": False}),
            ("TEXT=x&SAMPLE=0", {"TEXT": "x", "SAMPLE": False}),
            ("TEXT=x&STOP=%5B%22a%22%2C%22b%22%5D", {"TEXT": "x", "STOP": ["a", "b"]}),
            ("TEXT=x&STOP=a", {"TEXT": "x", "STOP": ["a"]}),
            ("TEXT=x&SIZE=[640,480]", {"TEXT": "x", "SIZE": [640, 480]}),
        ]
        for query, inputs in table:
            with self.subTest(query=query):
                self.assertEqual(read_query(query, APP), (Call(None, inputs), {}))

    def test_read_query_reserved(self) -> None:
        """`last_event_id`, `token` and `progress` are not inputs, unless the schema declares them."""
        query = "TEXT=x&last_event_id=ab-5&token=t%20k&progress=1"
        reserved = {"last_event_id": "ab-5", "token": "t k", "progress": "1"}
        self.assertEqual(read_query(query, APP), (Call(None, {"TEXT": "x"}), reserved))
        own = schema_of(token="STRING", progress="INT32")
        self.assertEqual(
            read_query("token=a&progress=1&last_event_id=b", own),
            (Call(None, {"token": "a", "progress": 1}), {"last_event_id": "b"}),
        )

    def test_read_query_bad(self) -> None:
        """Text that is no value of the datatype, a repeated or unknown name and bad encoding are 400."""
        table: list[tuple[str, tuple[str, ...]]] = [
            ("", ("TEXT is required",)),
            ("TEXT=a&TEXT=b", ('"TEXT"', "more than once")),
            ("TEXT=a&token=1&token=2", ('"token"', "more than once")),
            ("TEXT=a&TXT=b", ("did you mean TEXT?",)),
            ("TEXT=a&id=b", ('"id" is not an input',)),
            ("TEXT=a&MAX_NEW_TOKENS=ten", ("MAX_NEW_TOKENS must be an integer", '"ten"')),
            ("TEXT=a&MAX_NEW_TOKENS=5.0", ("MAX_NEW_TOKENS must be an integer",)),
            ("TEXT=a&MAX_NEW_TOKENS=%2B5", ("MAX_NEW_TOKENS must be an integer",)),
            ("TEXT=a&MAX_NEW_TOKENS=5_0", ("MAX_NEW_TOKENS must be an integer",)),
            ("TEXT=a&MAX_NEW_TOKENS=%D9%A5", ("MAX_NEW_TOKENS must be an integer",)),
            ("TEXT=a&MAX_NEW_TOKENS=", ("MAX_NEW_TOKENS must be an integer",)),
            ("TEXT=a&MAX_NEW_TOKENS=" + "9" * 5000, ("MAX_NEW_TOKENS must be an integer",)),
            ("TEXT=a&TEMPERATURE=nan", ("TEMPERATURE must be a number",)),
            ("TEXT=a&TEMPERATURE=Infinity", ("TEMPERATURE must be a number",)),
            ("TEXT=a&TEMPERATURE=1e999", ("TEMPERATURE must be a number", "inf")),
            ("TEXT=a&TEMPERATURE=0x5", ("TEMPERATURE must be a number",)),
            ("TEXT=a&TEMPERATURE=.", ("TEMPERATURE must be a number",)),
            ("TEXT=a&SAMPLE=True", ("SAMPLE must be true or false",)),
            ("TEXT=a&SAMPLE=yes", ("SAMPLE must be true or false",)),
            ("TEXT=a&SAMPLE", ("SAMPLE must be true or false",)),
            ("TEXT=a&SIZE=5", ("a list of 2 integers", "the integer 5")),
            ("TEXT=a&SIZE=[1,2", ("SIZE is not valid JSON", "ends too early")),
            ("TEXT=a&STOP=[NaN]", ("STOP has NaN",)),
            ("TEXT=a&STOP=[1]", ("a list of strings", "the integer 1")),
            ("TEXT=%", ("stray %",)),
            ("TEXT=100%&SAMPLE=1", ("stray %",)),
            ("TEXT=%zz", ("stray %",)),
            ("TEXT=%C3", ("not UTF-8",)),
            ("TEXT=%ED%A0%80", ("not UTF-8",)),
            ("TEXT=é", ("outside ASCII",)),
        ]
        for query, words in table:
            with self.subTest(query=query[:60]):
                with self.assertRaises(BadRequest) as caught:
                    read_query(query, APP)
                for word in words:
                    self.assertIn(word, text_of(caught.exception.body()))

    def test_read_query_all_faults(self) -> None:
        """A query's faults are told at once."""
        with self.assertRaises(BadRequest) as caught:
            read_query("SAMPLE=yes&SIZE=[1&COLOUR=red&progress=1&progress=2", APP)
        named = [fault["input"] for fault in caught.exception.faults]
        self.assertEqual(named, ["SIZE", "progress", "TEXT", "SAMPLE", "COLOUR"])

    def test_reserved_query_names(self) -> None:
        """Of a route without inputs, only the reserved names are read."""
        table: list[tuple[str, dict[str, str]]] = [
            ("", {}),
            ("progress=1", {"progress": "1"}),
            ("x=1&last_event_id=a-5&x=2&token=", {"last_event_id": "a-5", "token": ""}),
        ]
        for query, reserved in table:
            with self.subTest(query=query):
                self.assertEqual(reserved_query(query), reserved)
        for query in ("token=a&token=b", "token=%ff"):
            with self.subTest(query=query), self.assertRaises(BadRequest):
                reserved_query(query)

    def test_read_query_mutated(self) -> None:
        """Whatever is done to a good query, it is read as the schema says, or refused with BadRequest."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        source = (
            b"TEXT=a%20b+%C3%A9&MAX_NEW_TOKENS=5&SAMPLE=1&TEMPERATURE=.5&STOP=[%22a%22]&SIZE=[1,2]&token=x&progress=1"
        )
        for _ in range(3000):
            query = mutated(rng, source).decode("latin-1")
            with about(TEST_SEED=seed, query=query):
                assert_read_or_refused(self, lambda query=query: read_query(query, APP)[0])


if __name__ == "__main__":
    unittest.main()
