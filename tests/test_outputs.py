"""An app's dicts as JSON, the rule that all events of a stream look alike, and each dialect's bytes."""

from __future__ import annotations

import collections
import enum
import json
import math
import random
import types
import unittest
from collections.abc import Callable
from typing import Any, NamedTuple

from inferless_shim import outputs
from inferless_shim.outputs import EventSchema, Generate, Native, SchemaChanged, encode, encode_value
from tests.support import TestCase, about


class Array:
    """What numpy and torch have in common, as far as we look: `tolist`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tolist(self) -> Any:
        return self.value


class Tensor(Array):
    """A torch tensor that needs gradients: `tolist` is refused before `detach`."""

    def __init__(self, value: Any, attached: bool = True) -> None:
        super().__init__(value)
        self.attached = attached

    def detach(self) -> Tensor:
        return Tensor(self.value, attached=False)

    def tolist(self) -> Any:
        if self.attached:
            raise RuntimeError("can't call tolist() on a tensor that requires grad")
        return self.value


class Float64(float):
    """numpy.float64 is a float."""

    def tolist(self) -> float:
        return float(self)


class Endless:
    """A tolist that never comes to an end."""

    def tolist(self) -> Any:
        return [Endless()]


class Itself:
    def tolist(self) -> Any:
        return self


class Word(str, enum.Enum):
    YES = "yes"


class Number(enum.IntEnum):
    ONE = 1


class Point(NamedTuple):
    x: int
    y: int


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def wide_circular() -> list[Any]:
    value: list[Any] = ["x" * 100_000]
    value.append(value)
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# An app's value -> its JSON and the name of its kind
VALUES: list[tuple[Any, str, str]] = [
    (None, "null", "null"),
    (True, "true", "boolean"),
    (7, "7", "integer"),
    (10**400, "1" + "0" * 400, "integer"),
    (0.5, "0.5", "float"),
    (1.0, "1.0", "float"),
    (1e100, "1e+100", "float"),
    ("", '""', "string"),
    ('a"b\\c\n\r\t\0\x7f', '"a\\"b\\\\c\\n\\r\\t\\u0000\x7f"', "string"),
    ("é漢😀\u2028\ufeff", '"é漢😀\u2028\ufeff"', "string"),
    ([], "[]", "list"),
    ([1, [2.5, None], "x"], '[1,[2.5,null],"x"]', "list"),
    ((1, 2), "[1,2]", "list"),
    ({"b": 1, "a": {}}, '{"b":1,"a":{}}', "object"),
    ({5}, "[5]", "list"),
    (frozenset(), "[]", "list"),
    (collections.OrderedDict(z=1), '{"z":1}', "object"),
    (types.MappingProxyType({"a": 1}), '{"a":1}', "object"),
    (Point(1, 2), "[1,2]", "list"),
    (b"caf\xc3\xa9", '"café"', "string"),
    (bytearray(b"\xff"), '"\ufffd"', "string"),
    (Word.YES, '"yes"', "string"),
    (Number.ONE, "1", "integer"),
    (Array(3), "3", "integer"),
    (Array(True), "true", "boolean"),
    (Array([[1, 2], [3, 4]]), "[[1,2],[3,4]]", "list"),
    (Array([]), "[]", "list"),
    (Array("text"), '"text"', "string"),
    (Array(Array(b"x")), '"x"', "string"),
    (Tensor([0.25]), "[0.25]", "list"),
    (Tensor(0.25), "0.25", "float"),
    ([Array(1), {"k": Tensor([2])}], '[1,{"k":[2]}]', "list"),
    (Float64(0.5), "0.5", "float"),
]

# What cannot be sent -> the error, and words of its sentence
UNSENDABLE: list[tuple[Any, type[Exception], str]] = [
    (float("nan"), ValueError, "NaN or Infinity"),
    (float("inf"), ValueError, "NaN or Infinity"),
    (-math.inf, ValueError, "NaN or Infinity"),
    ([1.0, [math.nan]], ValueError, "NaN or Infinity"),
    ({"deep": {"deeper": math.inf}}, ValueError, "NaN or Infinity"),
    (Array([0.5, math.nan]), ValueError, "NaN or Infinity"),
    (Float64("nan"), ValueError, "NaN or Infinity"),
    (object(), TypeError, "type object"),
    ([object()], TypeError, "convert it first"),
    (1j, TypeError, "type complex"),
    (range(3), TypeError, "type range"),
    ({(1, 2): 3}, TypeError, "keys"),
    (circular(), ValueError, "Circular"),
    (wide_circular(), ValueError, "Circular"),
    (Itself(), ValueError, "Circular"),
    (Endless(), ValueError, "nested too deep"),
]


def first_fault(output: dict[str, Any]) -> Exception:
    try:
        encode(output)
    except Exception as error:
        return error
    raise AssertionError("it was sent")


class Encode(TestCase):
    def test_encode_values(self) -> None:
        """Every value that JSON has, and numpy's and torch's by their methods, is written strictly and in one line."""
        for value, text, _ in VALUES:
            with self.subTest(text[:40]):
                written = encode({"k": value})
                self.assertEqual(written.decode(), f'{{"k":{text}}}')
                self.assertNotRegex(written, rb"[\r\n]")
                self.assertEqual(encode_value(value).decode(), text)

    def test_encode_keys(self) -> None:
        """Keys are written as json writes them, in the order of the dict."""
        self.assertEqual(encode({}), b"{}")
        output: dict[Any, Any] = {"b": 1, 2: "x", None: 0, True: 1, 0.5: []}
        self.assertEqual(encode(output), b'{"b":1,"2":"x","null":0,"true":1,"0.5":[]}')

    def test_encode_as_json(self) -> None:
        """A flat dict, which goes a faster way, is written as `json.dumps` writes it."""
        chance = random.Random(1)
        scalars: list[Callable[[], Any]] = [
            lambda: "".join(chr(chance.randrange(0xD800)) for _ in range(chance.randrange(9))),
            lambda: chance.randrange(-(10**9), 10**9),
            lambda: chance.uniform(-1, 1) * 10.0 ** chance.randrange(-300, 300),
            lambda: chance.choice([True, False, None]),
            lambda: [chance.random()],
        ]
        for seed in range(300):
            output = {f"k{i}": chance.choice(scalars)() for i in range(chance.randrange(5))}
            with about(seed=seed):
                self.assertEqual(encode(output).decode(), json.dumps(output, ensure_ascii=False, separators=(",", ":")))

    def test_encode_without_the_c_encoder(self) -> None:
        """An interpreter that lacks json's C encoder writes the same."""
        before, outputs.write_flat = outputs.write_flat, None
        try:
            self.assertEqual(encode({"a": "é", "b": 0.5}), '{"a":"é","b":0.5}'.encode())
            self.assertIn("'a' holds NaN", str(first_fault({"a": math.nan})))
        finally:
            outputs.write_flat = before

    def test_encode_unsendable(self) -> None:
        """What JSON cannot carry raises ValueError or TypeError that names the key, and not the keys beside it."""
        for value, kind, words in [*UNSENDABLE, (nested(200_000), ValueError, "nested too deep")]:
            with self.subTest(words):
                error = first_fault({"fine": "x", "at fault": value, "fine too": 1})
                self.assertIs(type(error), kind)
                self.assertIn("output 'at fault'", str(error))
                self.assertIn(words, str(error))

    def test_encode_circular_value_costs_nothing(self) -> None:
        """A circular value is told at once.

        Without a look-out for it, Python 3.13's encoder wrote a string of 100 kB beside it 10,000 times: 13 s, 1 GB.
        """
        text = Counted("x")
        value: list[Any] = [text]
        value.append(value)
        self.assertIn("Circular", str(first_fault({"k": value})))
        self.assertLess(text.written, 10)

    def test_encode_bad_key(self) -> None:
        """A key that JSON cannot carry is named."""
        output: dict[Any, Any] = {"fine": 1, (1, 2): 3}
        error = first_fault(output)
        self.assertIsInstance(error, TypeError)
        self.assertIn("(1, 2)", str(error))

    def test_encode_error_with_arguments(self) -> None:
        """An error whose class takes more than a sentence is told all the same.

        The sentence was passed to the error's own class: UnicodeDecodeError(sentence) is a TypeError about arguments.
        """

        class Undecodable:
            def tolist(self) -> str:
                return b"\xff".decode()

        error = first_fault({"k": Undecodable()})
        self.assertIs(type(error), ValueError)
        self.assertIn("output 'k'", str(error))
        self.assertIn("invalid start byte", str(error))

    def test_encode_lone_surrogates(self) -> None:
        """A lone surrogate becomes U+FFFD, two that belong together the character they make; nothing else changes."""
        table = [
            ("\ud800", "\ufffd"),
            ("\udfff", "\ufffd"),
            ("a\ud83db", "a\ufffdb"),
            ("a\ude00b", "a\ufffdb"),
            ("\ud83d\ude00", "😀"),
            ("\ude00\ud83d", "\ufffd\ufffd"),
            ("\ud83d\ud83d\ude00", "\ufffd😀"),
            ("\ud83d\ud83d", "\ufffd\ufffd"),
            ("\ufeff\ud800é漢😀", "\ufeff\ufffdé漢😀"),
            ("\ud800\n", "\ufffd\n"),
        ]
        for text, expected in table:
            with self.subTest(ascii(text)):
                self.assertEqual(json.loads(encode({"k": text})), {"k": expected})
                self.assertEqual(json.loads(encode({"k": [text]})), {"k": [expected]})
                self.assertEqual(json.loads(encode({text: 1})), {expected: 1})
                self.assertEqual(json.loads(encode_value(text)), expected)

    def test_encode_leaves_the_dict_alone(self) -> None:
        """The app's dict is not changed."""
        inner = [Array([1])]
        output = {"k": inner, "s": "\ud800"}
        encode(output)
        self.assertEqual(output, {"k": inner, "s": "\ud800"})


class Counted(Array):
    """Counts how often it is asked for its text."""

    written = 0

    def tolist(self) -> Any:
        self.written += 1
        return self.value


NULL, BOOLEAN, INTEGER, FLOAT, STRING, LIST, OBJECT = None, True, 1, 1.5, "x", [1], {"a": 1}
# values of one key in the events of a stream -> what the last is sent as, or from what to what it changed
SEQUENCES: list[tuple[list[Any], Any]] = [
    (["a", "b"], "b"),
    ([1, 2], 2),
    ([1.5, 2.5], 2.5),
    ([1.5, 2], 2.0),
    ([1.5, 2, 3.5], 3.5),
    ([True, False], False),
    ([[], [1, "x"]], [1, "x"]),
    ([[1], ["x"]], ["x"]),  # only the type at the top counts
    ([{"a": 1}, {"b": "x"}], {"b": "x"}),
    ([None, None], None),
    (["a", None], None),
    (["a", None, "b"], "b"),
    ([None, "a"], "a"),
    ([None, "a", None, "b"], "b"),
    ([None, 1.5, 2], 2.0),
    ([(1,), [2]], [2]),
    ([Array([1]), [2]], [2]),
    ([b"x", "y"], "y"),
    ([1.5, Array(2)], 2.0),
    ([1.5, Number.ONE], 1.0),
    ([Float64(1.5), 2], 2.0),
    ([0.5, Tensor(7)], 7.0),
    ([1, 1.5], "integer to float"),
    ([1, True], "integer to boolean"),
    ([True, 1], "boolean to integer"),
    ([1.5, True], "float to boolean"),
    (["1", 1], "string to integer"),
    ([1, "1"], "integer to string"),
    ([[], {}], "list to object"),
    ([{}, []], "object to list"),
    (["x", ["x"]], "string to list"),
    ([None, "a", 1], "string to integer"),
    ([None, 1, 1.5], "integer to float"),
    (["a", None, 1], "string to integer"),
    ([None, None, "a", []], "string to list"),
]


class Schema(TestCase):
    def test_conform_types(self) -> None:
        """Each key keeps the JSON type of its first value; null fits any; an integer where a float was is a float."""
        for values, expected in SEQUENCES:
            with self.subTest(values):
                schema = EventSchema()
                for value in values[:-1]:
                    schema.conform({"same": "x", "k": value})
                last = {"same": "x", "k": values[-1]}
                if isinstance(expected, str) and " to " in expected:
                    with self.assertRaises(SchemaChanged) as caught:
                        schema.conform(last)
                    self.assertIn(f"key 'k' changed from {expected};", str(caught.exception))
                else:
                    sent = schema.conform(last)["k"]
                    self.assertEqual((sent, type(sent)), (expected, type(expected)))

    def test_conform_every_kind(self) -> None:
        """Every pair of types: the same, null, and integer for float are fine, all else is a change."""
        kinds = [NULL, BOOLEAN, INTEGER, FLOAT, STRING, LIST, OBJECT]
        for first in kinds:
            for second in kinds:
                fits = first is second or None in (first, second) or (first is FLOAT and second is INTEGER)
                with self.subTest(first=first, second=second):
                    schema = EventSchema()
                    schema.conform({"k": first})
                    if fits:
                        self.assertEqual(schema.conform({"k": second}), {"k": second})
                    else:
                        self.assertRaises(SchemaChanged, schema.conform, {"k": second})

    def test_conform_keys(self) -> None:
        """A key that comes or goes is a change that names it; another order is none."""
        table: list[tuple[dict[str, Any], dict[str, Any], str]] = [
            ({"a": 1}, {}, "lost 'a'"),
            ({}, {"a": 1}, "gained 'a'"),
            ({"a": 1}, {"b": 1}, "lost 'a' and gained 'b'"),
            ({"a": 1, "b": 2}, {"c": 1}, "lost 'a', 'b' and gained 'c'"),
            ({"a": 1}, {"a": None, "b": 1}, "gained 'b'"),
            ({"a": 1, "b": None}, {"a": 1}, "lost 'b'"),
        ]
        for first, second, change in table:
            with self.subTest(change):
                schema = EventSchema()
                schema.conform(first)
                with self.assertRaises(SchemaChanged) as caught:
                    schema.conform(second)
                self.assertIn(f"the keys changed: {change};", str(caught.exception))
        schema = EventSchema()
        schema.conform({"a": 1, "b": 2})
        self.assertEqual(list(schema.conform({"b": 3, "a": 4})), ["b", "a"])

    def test_conform_is_a_value_error(self) -> None:
        """Apps catch ValueError, and SchemaChanged is one."""
        self.assertTrue(issubclass(SchemaChanged, ValueError))

    def test_conform_same_dict(self) -> None:
        """What needs no change is passed on itself; what does is not changed in the app's own dict."""
        schema = EventSchema()
        first = {"k": 0.5}
        self.assertIs(schema.conform(first), first)
        same = {"k": 1.5}
        self.assertIs(schema.conform(same), same)
        other = {"k": 1}
        self.assertEqual(encode(schema.conform(other)), b'{"k":1.0}')
        self.assertIs(type(other["k"]), int)

    def test_conform_unsendable(self) -> None:
        """A value of no JSON type raises an error that names its key, in the first event and later.

        The error named only the value's type: it comes before the encoder's, which names the key.
        """
        for schema in (EventSchema(), EventSchema()):
            for value, words in ((object(), "type object"), (Itself(), "Circular")):
                with self.subTest(words), self.assertRaises((TypeError, ValueError)) as caught:
                    schema.conform({"fine": 1, "at fault": value})
                self.assertNotIsInstance(caught.exception, SchemaChanged)
                self.assertIn("output 'at fault'", str(caught.exception))
                self.assertIn(words, str(caught.exception))
            schema.conform({"fine": 1, "at fault": "x"})

    def test_conform_integer_too_large_for_a_float(self) -> None:
        """An integer that no float holds, where a float was, raises ValueError that names the key."""
        schema = EventSchema()
        schema.conform({"k": 0.5})
        with self.assertRaises(ValueError) as caught:
            schema.conform({"k": 10**400})
        self.assertIn("output 'k'", str(caught.exception))

    def test_kinds(self) -> None:
        """`kinds` is None until the first event, and names the JSON type of every sort of value."""
        for value, text, kind in VALUES:
            with self.subTest(text[:40]):
                schema = EventSchema()
                self.assertIsNone(schema.kinds)
                schema.conform({"k": value})
                self.assertEqual(schema.kinds, {"k": kind})


class Dialects(TestCase):
    def test_native(self) -> None:
        """Native `data:` is exactly the app's dict; `done` counts and times, `error` has a sentence and a code."""
        native = Native()
        table = [
            (native.event({"OUT": " é\n"}), 'data: {"OUT":" é\\n"}\n\n'),
            (native.event({}), "data: {}\n\n"),
            (native.event({"model_name": 1}), 'data: {"model_name":1}\n\n'),
            (native.done(3, 1.23456), 'event: done\ndata: {"events":3,"seconds":1.235}\n\n'),
            (native.done(0, 0.0), 'event: done\ndata: {"events":0,"seconds":0.0}\n\n'),
            (native.error("timeout", "too long"), 'event: error\ndata: {"error":"too long","code":"timeout"}\n\n'),
        ]
        for made, expected in table:
            with self.subTest(expected):
                assert made is not None
                self.assertEqual(made.decode(), expected)

    def test_generate(self) -> None:
        """Protocol `data:` also names model and version, unless the app does; errors are bare, and nothing is last."""
        dialect = Generate('m"1')
        both = '"model_name":"m\\"1","model_version":"1"'
        table = [
            (dialect.event({"OUT": "To"}), f'data: {{"OUT":"To",{both}}}\n\n'),
            (dialect.event({}), f"data: {{{both}}}\n\n"),
            (dialect.event({"model_name": "x"}), 'data: {"model_name":"x","model_version":"1"}\n\n'),
            (dialect.event({"model_version": 2, "a": 1}), 'data: {"model_version":2,"a":1,"model_name":"m\\"1"}\n\n'),
            (dialect.event({"model_version": 2, "model_name": 1}), 'data: {"model_version":2,"model_name":1}\n\n'),
            (dialect.error("app_error", "no"), 'data: {"error":"no"}\n\n'),
        ]
        for made, expected in table:
            with self.subTest(expected):
                self.assertEqual(made.decode(), expected)
        self.assertIsNone(dialect.done(1, 2.0))

    def test_dialects_leave_the_dict_alone(self) -> None:
        """The app may send the same dict again: nothing is added to it."""
        output = {"OUT": "x"}
        for dialect in (Native(), Generate("m")):
            dialect.event(output)
        self.assertEqual(output, {"OUT": "x"})

    def test_dialects_unsendable(self) -> None:
        """In either dialect a value that JSON cannot carry raises an error that names its key."""
        for dialect in (Native(), Generate("m")):
            for output in ({"k": math.nan}, {"k": math.nan, "model_name": "x"}):
                with self.subTest(type(dialect).__name__), self.assertRaises(ValueError) as caught:
                    dialect.event(output)
                self.assertIn("output 'k' holds NaN", str(caught.exception))

    def test_error_text(self) -> None:
        """An error's text is one line of bounded length, whatever the app's exception holds."""
        table = [
            ("plain", "plain"),
            (" two\n lines\t\r\n", "two lines"),
            ("", ""),
            ("x" * 1000, "x" * 1000),
            ("x" * 1001, "x" * 999 + "…"),
        ]
        for text, expected in table:
            with self.subTest(text[:20]):
                self.assertEqual(outputs.error_text(text), expected)
                self.assertEqual(json.loads(Native().error("c", text).split(b"data: ")[1])["error"], expected)
        self.assertIn("\ufffd", Native().error("c", "\ud800").decode())


if __name__ == "__main__":
    unittest.main()
