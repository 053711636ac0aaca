"""What the strict reader takes and what it refuses, as tables of bytes."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
import unittest
from typing import Any
from unittest import mock

from inferless_shim import strictjson
from inferless_shim.errors import BadRequest
from inferless_shim.strictjson import describe, loads, measure, nearest, nest, quoted
from tests.support import about

GOOD: list[tuple[bytes, object]] = [
    (b"{}", {}),
    (b" \t\r\n[1, 2.5, -3e2] \n", [1, 2.5, -300.0]),
    (b'"caf\xc3\xa9 \\u00e9"', "café é"),
    (rb'"\ud83d\ude00"', "\U0001f600"),
    (rb'"\uD83D\uDE00\ud83d\ude00"', "\U0001f600\U0001f600"),
    (rb'"\\ud83d"', r"\ud83d"),
    (rb'"\\\ud83d\ude00"', "\\\U0001f600"),
    (rb'"\u0000\/\b"', "\0/\b"),
    (b"null", None),
    (b"-0", 0),
    (b"1e308", 1e308),
    (b"1e-400", 0.0),
    (b"0." + b"1" * 10_000, 0.1111111111111111),
    (b"9" * 4300, int("9" * 4300)),
    (b"-" + b"9" * 4300, -int("9" * 4300)),
    (b'{"a": {"a": 1}, "b": {"a": 1}}', {"a": {"a": 1}, "b": {"a": 1}}),
    (b'{"a": "NaN"}', {"a": "NaN"}),
    (b'"' + b"[" * 1000 + b'"', "[" * 1000),
    (rb'"\"' + b"[" * 1000 + rb'\\"', '"' + "[" * 1000 + "\\"),
    (rb'["\\", "' + b"{" * 1000 + b'"]', ["\\", "{" * 1000]),
    (b"[" + b"[]," * 1000 + b"1]", [[]] * 1000 + [1]),
]

# Each: the text, words that the refusal must hold.
BAD: list[tuple[bytes, tuple[str, ...]]] = [
    (b"", ("empty",)),
    (b"\n", ("empty",)),
    (b"\xef\xbb\xbf1", ("byte order mark",)),
    (b"\xff\xfe1\x00", ("UTF-16",)),
    (b'"\xff"', ("UTF-8", "byte 1")),
    (b"[1,\n 2,\n x]", ("line 3, column 2",)),
    (b"1 2", ("something follows", "column 3")),
    (b"[1,", ("ends too early",)),
    (b"[NaN]", ("NaN",)),
    (b"-Infinity", ("-Infinity",)),
    (b"1e309", ("1e309",)),
    (b"1" * 5000 + b".5", ("no float can hold",)),
    (b"9" * 4301, ("4,300",)),
    (b"-" + b"9" * 4301, ("4,300",)),
    (b"[" + b"9" * 1_000_000 + b"]", ("4,300",)),
    (b'[{"a": 1, "b": 2, "a": 3}]', ('"a" twice',)),
    (b'{"a": 1, "\\u0061": 3}', ('"a" twice',)),
    (b'{"' + b"a" * 1000 + b'": 1, "' + b"a" * 1000 + b'": 1}', ("…", "twice")),
    (b'[1,\n "' + rb"ab\ud83d" + b'"]', (r"\ud83d", "line 2, column 5")),
    (rb'"\ud83d\ud83d\ude00"', ("surrogate", "column 2")),
    (rb'"\ud83d\ude00\ude00"', ("surrogate", "column 14")),
    (rb'"\ud83d\\\ude00"', ("surrogate", "column 2")),
    (rb'"\\\ud83d"', ("surrogate", "column 4")),
    (rb'{"\uDC00": 1}', (r"\uDC00",)),
    (b"[" * 65 + b"]" * 65, ("64 deep",)),
    (b"[[]," + b"[" * 64 + b"]" * 65, ("64 deep",)),
    (b'{"a":[' * 33 + b"]}" * 33, ("64 deep",)),
    (b'["\\"]", ' + b"[" * 64, ("64 deep",)),
]


class Loads(unittest.TestCase):
    def test_loads_good_text(self) -> None:
        """What RFC 8259 allows is read as `json` reads it."""
        for text, value in GOOD:
            with self.subTest(text=text[:60]):
                self.assertEqual(loads(text), value)
                self.assertIs(type(loads(text)), type(value))

    def test_loads_bad_text(self) -> None:
        """Anything else is refused in one sentence that says what is wrong and where."""
        for text, words in BAD:
            with self.subTest(text=text[:60]):
                with self.assertRaises(BadRequest) as caught:
                    loads(text)
                for word in words:
                    self.assertIn(word, caught.exception.message)
                self.assertLess(len(caught.exception.message), 200)
                self.assertTrue(caught.exception.message.startswith("The body "))

    def test_loads_named_text(self) -> None:
        """A refusal names what was read, where that is not a body."""
        with self.assertRaisesRegex(BadRequest, "^SIZE is not valid JSON"):
            loads(b"[1", "SIZE")

    def test_loads_64_deep(self) -> None:
        """64 levels are read, lists and objects counted together."""
        deep = b"[" * 63 + b"]" * 63
        for text in (
            b"[" + deep + b"]",
            b"[%b,%b]" % (deep, deep),
            b'{"a":[' * 32 + b"]}" * 32,
            b'{"a":' * 64 + b"1" + b"}" * 64,
        ):
            with self.subTest(text=text[:20]):
                self.assertEqual(json.loads(text), loads(text))

    def test_loads_100_000_deep(self) -> None:
        """Deep text never reaches the parser, which recurses."""
        texts = [opening * 100_000 for opening in (b"[", b'{"a":', b'[{"a":', b'["\\"",')]
        with mock.patch.object(strictjson, "_DECODER") as decoder:
            for text in texts:
                with self.subTest(text=text[:20]), self.assertRaisesRegex(BadRequest, "64 deep"):
                    loads(text)
            decoder.decode.assert_not_called()

    def test_loads_block_by_block(self) -> None:
        """Wherever a block of the text ends, in a string, behind an escape or between brackets, depth is the same."""
        for block in (1, 2, 3, 5, 8, 13, 64):
            with mock.patch.object(strictjson, "BLOCK", block):
                for text, value in GOOD:
                    self.assertEqual(loads(text), value, (block, text[:60]))
                for text, words in BAD:
                    with self.assertRaises(BadRequest, msg=(block, text[:60])) as caught:
                        loads(text)
                    self.assertIn(words[0], caught.exception.message)

    def test_loads_many_strings(self) -> None:
        """To count how deep a text nests takes little more memory than the text, however many strings it has."""
        brackets = b"[]," * 100
        for text in (b'["",' + brackets + b'"",' * 200_000 + b"x]", b"[" + brackets + b'"[",[],' * 100_000 + b"x]"):
            tracemalloc.start()
            try:
                self.assertFalse(strictjson._nests_too_deep(text))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.assertLess(peak, 3 * len(text) + 3 * 1024 * 1024)

    def test_loads_against_json(self) -> None:
        """Whatever `json` writes is read as it was, indented or not, in ASCII or not."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        for _ in range(300):
            value = self.random_value(rng, 6)
            text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
            with about(TEST_SEED=seed, text=text):
                self.assertEqual(loads(text.encode()), value)

    def test_loads_mutated_text(self) -> None:
        """Whatever is done to good text, it is read as `json` reads it, or refused."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        sources = [text for text, _ in GOOD + BAD if 0 < len(text) < 200]
        for _ in range(5000):
            text = bytearray(rng.choice(sources))
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randint(0, 2)] = rng.choice(
                    [b"", b'"', b"\\", b"[", b"}", b"\\ud83d", b"\xff", b"9"]
                )
            with about(TEST_SEED=seed, text=bytes(text)):
                try:
                    value = loads(bytes(text))
                except BadRequest:
                    continue
                self.assertEqual(value, json.loads(text))
                json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no lone surrogate, no NaN

    def random_value(self, rng: random.Random, depth: int) -> Any:
        kind = rng.randrange(8 if depth else 6)
        if kind < 6:
            texts = ["", "a", '"', "\\", "\\u", "[{", "é", "\U0001f600", "\\ud83d", "\0", "\x7f\u2028"]
            text = "".join(rng.choices(texts, k=rng.randrange(6)))
            return [None, True, False, rng.randrange(-(10**20), 10**20), rng.uniform(-1e9, 1e9), text][kind]
        values = [self.random_value(rng, depth - 1) for _ in range(rng.randrange(5))]
        return values if kind == 6 else {str(key): value for key, value in enumerate(values)}


class Values(unittest.TestCase):
    def test_describe_values(self) -> None:
        """A value in words is at most 80 characters, whatever its size."""
        table: list[tuple[object, str]] = [
            (None, "null"),
            (True, "true"),
            (-5, "the integer -5"),
            (10**5000, "an integer of 16610 bits"),
            (0.5, "the number 0.5"),
            ("ten", 'the string "ten"'),
            ('"\n', r'the string "\"\n"'),
            ([], "a list of 0 elements"),
            ([1], "a list of 1 element"),
            ({"a": 1}, "an object"),
            (1j, "a value of type complex"),
        ]
        for value, words in table:
            with self.subTest(words=words):
                self.assertEqual(describe(value), words)
        for value in ("x" * 10**6, "\0" * 100, '"' * 100, "\\" * 59, 2**128, type("x" * 500, (), {})()):
            with self.subTest(value=repr(value)[:20]):
                self.assertLessEqual(len(describe(value)), 80)

    def test_quoted_cut(self) -> None:
        """A text that is cut says so, inside its quotes."""
        self.assertEqual(quoted("short"), '"short"')
        self.assertTrue(quoted("x" * 61).endswith('x…"'))
        self.assertLessEqual(len(quoted("x" * 61)), 60)

    def test_measure_and_nest(self) -> None:
        """Nested lists have a shape and elements, and can be made of them again."""
        table: list[tuple[object, tuple[int, ...], list[object]]] = [
            (5, (), [5]),
            ([], (0,), []),
            ([5], (1,), [5]),
            ([[1, 2, 3], [4, 5, 6]], (2, 3), [1, 2, 3, 4, 5, 6]),
            ([[[1], [2]]], (1, 2, 1), [1, 2]),
            ([{"a": []}, None], (2,), [{"a": []}, None]),
        ]
        for value, shape, elements in table:
            with self.subTest(value=value):
                self.assertEqual(measure(value), (shape, elements))
                if isinstance(value, list):
                    self.assertEqual(nest(elements, shape), value)
        self.assertEqual(measure([[], []]), ((2, 0), []))
        self.assertEqual(nest([], (2**62, 0)), [])

    def test_measure_ragged(self) -> None:
        """Rows of different lengths, or rows beside scalars, have no shape."""
        for value in ([[1], [2, 3]], [[1], 2], [1, []], [[[1]], [2]]):
            with self.subTest(value=value), self.assertRaisesRegex(ValueError, "rows"):
                measure(value)

    def test_nearest_name(self) -> None:
        """The nearest name is found whatever its case; a stranger has none."""
        names = ["TEXT", "max_new_tokens"]
        self.assertEqual(nearest("txt", names), "TEXT")
        self.assertEqual(nearest("MAX_TOKENS", names), "max_new_tokens")
        self.assertIsNone(nearest("colour", names))
        self.assertIsNone(nearest("x" * 10**6, names))


if __name__ == "__main__":
    unittest.main()
