"""What INPUT_SCHEMA may say, and which values then fit: tables of schemas, values and what the app gets."""

from __future__ import annotations

import sys
import unittest
from typing import Any

from inferless_shim.errors import BadRequest, StartupError
from inferless_shim.schema import FAMILIES, MAX_FAULTS, Rules, Schema, compile_schema
from tests.support import checked

NUMBERS = ["FP16", "FP32", "FP64", "BF16"]
INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "INT"]
LARGEST = int(sys.float_info.max)
DATATYPES = ["STRING", "BYTES", "BOOL", "BOOLEAN", *INTEGERS, *NUMBERS]


def entry(datatype: object = "STRING", shape: object = None, **others: object) -> dict[str, object]:
    return {"datatype": datatype, "shape": [1] if shape is None else shape, **others}


def compiled(raw: object, **rules: bool) -> Schema:
    return compile_schema(raw, Rules(**rules))


def one(datatype: str, shape: list[int] | None = None, *, batched: bool = False) -> Schema:
    """Return a schema with one input, X."""
    return compiled({"X": entry(datatype, shape)}, batched=batched)


class Compile(unittest.TestCase):
    def refused(self, raw: object, **flags: bool) -> str:
        with self.assertRaises(StartupError) as caught:
            compiled(raw, **flags)
        return str(caught.exception)

    def test_compile_entries(self) -> None:
        """Inputs keep their order; datatypes are in capitals, shapes are tuples, and `required` is implied."""
        schema = compiled(
            {
                "B": {"datatype": "int8", "shape": [1], "required": False, "example": [5]},
                "A": {"datatype": "BOOL", "shape": [-1, 2]},
            }
        )
        self.assertEqual(list(schema.inputs), ["B", "A"])
        b, a = schema.inputs.values()
        self.assertEqual((b.name, b.datatype, b.shape, b.required, b.example), ("B", "INT8", (1,), False, [5]))
        self.assertEqual((a.name, a.datatype, a.shape, a.required, a.example), ("A", "BOOL", (-1, 2), True, None))
        self.assertEqual(schema.warnings, [])

    def test_compile_datatypes(self) -> None:
        """The fifteen datatypes and the family names are known, and no others."""
        self.assertEqual(sorted(FAMILIES), sorted(DATATYPES))
        for datatype in DATATYPES:
            with self.subTest(datatype=datatype):
                self.assertEqual(one(datatype).warnings, [])

    def test_compile_nothing(self) -> None:
        """An app may have no inputs."""
        self.assertEqual(checked(compiled({}), {}), {})

    def test_compile_wrong_schema(self) -> None:
        """A fault of the schema names the input, the rule and the remedy."""
        table: list[tuple[object, tuple[str, ...]]] = [
            (None, ("INPUT_SCHEMA must be a dict", "None")),
            ([{"name": "X"}], ("INPUT_SCHEMA must be a dict",)),
            ({5: entry()}, ("the name 5", "string")),
            ({"X": ["STRING"]}, ("X must be a dict", "['STRING']")),
            ({"X": None}, ("X must be a dict",)),
            ({"X": {"shape": [1]}}, ("X has the datatype None", "use one of STRING")),
            ({"X": entry(5)}, ("X has the datatype 5",)),
            ({"X": entry("STRNG")}, ("X has the datatype 'STRNG'", "did you mean STRING?")),
            ({"X": entry("INT-32")}, ("did you mean INT32?",)),
            ({"X": entry("complex")}, ("use one of STRING",)),
            ({"X": {"datatype": "INT8"}}, ("X has the shape None", "write [1]")),
            ({"X": entry(shape=1)}, ("X has the shape 1",)),
            ({"X": entry(shape=[])}, ("X has the shape []",)),
            ({"X": entry(shape=(1,))}, ("X has the shape (1,)",)),
            ({"X": entry(shape=[0])}, ("X has the shape [0]", "-1 for any")),
            ({"X": entry(shape=[-2])}, ("X has the shape [-2]",)),
            ({"X": entry(shape=[True])}, ("X has the shape [True]",)),
            ({"X": entry(shape=[1.0])}, ("X has the shape [1.0]",)),
            ({"X": entry(shape=["1"])}, ("X has the shape ['1']",)),
            ({"X": entry(required="True")}, ("X has 'True' for required", "write True or False")),
            ({"X": entry(required=1)}, ("X has 1 for required",)),
            ({"X": entry(required=None)}, ("X has None for required",)),
        ]
        for raw, words in table:
            with self.subTest(raw=raw):
                message = self.refused(raw)
                self.assertNotIn("\n", message)
                for word in words:
                    self.assertIn(word, message)

    def test_compile_all_faults(self) -> None:
        """All faults of a schema are told at once, one a line."""
        raw = {"A": entry("STRNG", [0], required="no"), "GOOD": entry(), "B": 5, "C": entry("FP32")}
        lines = self.refused(raw, streaming=True, batched=True).split("\n")
        self.assertEqual([line.split()[0] for line in lines], ["IS_STREAMING_OUTPUT", "A", "A", "A", "B", "C"])

    def test_compile_short_messages(self) -> None:
        """A fault shows no more than the beginning of what is wrong."""
        self.assertLess(len(self.refused({"X": entry(shape="x" * 10**6, required=["x"] * 10**5)})), 500)

    def test_compile_streaming_datatypes(self) -> None:
        """A streaming app takes the INT, STRING and BOOLEAN families; a number is a start-up error."""
        for datatype in DATATYPES:
            with self.subTest(datatype=datatype):
                if datatype not in NUMBERS:
                    self.assertEqual(compiled({"X": entry(datatype)}, streaming=True).warnings, [])
                    continue
                message = self.refused({"X": entry(datatype)}, streaming=True)
                for word in ("X", datatype, "STRING", "json.dumps", "--relaxed-schema"):
                    self.assertIn(word, message)

    def test_compile_streaming_shapes(self) -> None:
        """A streaming app takes scalars only."""
        for shape in ([2], [-1], [1, 1]):
            with self.subTest(shape=shape):
                message = self.refused({"X": entry(shape=shape)}, streaming=True)
                for word in ("X", str(shape), "[1]", "json.dumps", "--relaxed-schema"):
                    self.assertIn(word, message)

    def test_compile_relaxed(self) -> None:
        """--relaxed-schema makes warnings of what streaming does not allow of an input, and of nothing else."""
        raw = {"X": entry("FP32", [2])}
        schema = compiled(raw, streaming=True, relaxed=True)
        self.assertEqual(len(schema.warnings), 2)
        self.assertNotIn("--relaxed-schema", "".join(schema.warnings))
        self.assertEqual(checked(schema, {"X": [1, 2]}), {"X": [1.0, 2.0]})
        self.assertIn("X has the datatype", self.refused({"X": entry("FP", [2])}, streaming=True, relaxed=True))
        self.assertEqual(compiled(raw, relaxed=True).warnings, [])

    def test_compile_streaming_batched(self) -> None:
        """Streaming and batching exclude each other, relaxed or not."""
        for relaxed in (False, True):
            with self.subTest(relaxed=relaxed):
                message = self.refused({"X": entry()}, streaming=True, batched=True, relaxed=relaxed)
                self.assertIn("BATCH_SIZE", message)

    def test_compile_warnings(self) -> None:
        """What is odd but harmless is one warning that names the input."""
        table: list[tuple[dict[str, object], str]] = [
            (entry("INT8", example=[512]), "outside INT8"),
            (entry("INT8", example=[128]), "outside INT8"),
            (entry("INT16", example=[-(2**15) - 1]), "outside INT16"),
            (entry("UINT64", example=[2**64]), "outside UINT64"),
            (entry("UINT8", example=[-1]), "outside UINT8"),
            (entry("INT32", [-1], example=[1, 2**31]), "outside INT32"),
            (entry("INT64", [-1, 1], example=[[1], [2**63], [-(2**64)]]), "outside INT64"),
            (entry(example=[5]), "X must be a string, got the integer 5"),
            (entry("BOOL", example=["true"]), "X must be true or false"),
            (entry("INT32", [2], example=[1, 2, 3]), "a list of 3 elements"),
            (entry("FP32", example=[float("nan")]), "the number nan"),
            (entry(example={"a": 1}), "an object"),
            (entry(default="x", description="y"), "default, description"),
        ]
        for raw, words in table:
            with self.subTest(raw=raw):
                (warning,) = compiled({"X": raw}).warnings
                self.assertIn("X ", warning)
                self.assertIn(words, warning)

    def test_compile_good_examples(self) -> None:
        """An example within the datatype is no warning, and neither is none."""
        table = [
            entry("INT8", [2], example=[-128, 127]),
            entry("INT64", [2], example=[-(2**63), 2**63 - 1]),
            entry("UINT8", [2], example=[0, 255]),
            entry("UINT64", example=[2**64 - 1]),
            entry("INT", example=[2**64]),
            entry("FP32", example=[5]),
            entry("INT32", example=[5.0]),
            entry(example="bare"),
            entry(example=None),
            entry(shape=[-1], example=[]),
            entry("FP32", [1, -1, 2], example=[[[1, 2], [3, 4]]]),
        ]
        for raw in table:
            with self.subTest(raw=raw):
                self.assertEqual(compiled({"X": raw}).warnings, [])


class Check(unittest.TestCase):
    def faults(self, schema: Schema, values: dict[str, object], shapes: Any = None) -> list[dict[str, str]]:
        with self.assertRaises(BadRequest) as caught:
            checked(schema, values, shapes)
        self.assertNotIn("\n", caught.exception.message)
        return caught.exception.faults

    def test_check_values(self) -> None:
        """Each family takes its own JSON type; integers and whole floats stand for each other."""
        families: list[tuple[list[str], list[tuple[object, object]], list[object]]] = [
            (["STRING", "BYTES"], [("", ""), ("é\0", "é\0")], [5, 0.5, True, {}, b"x"]),
            (["BOOL", "BOOLEAN"], [(True, True), (False, False)], [0, 1, 1.0, "true", "", {}]),
            (
                INTEGERS,
                [(5, 5), (-5, -5), (5.0, 5), (10**30, 10**30), (1e300, int(1e300))],
                [5.5, True, False, "5", float("nan"), float("inf"), {}],
            ),
            (
                NUMBERS,
                [(5, 5.0), (0.5, 0.5), (LARGEST, float(LARGEST))],
                [LARGEST + 1, True, "0.5", float("nan"), -float("inf"), {}],
            ),
        ]
        for datatypes, good, bad in families:
            for datatype in datatypes:
                schema = one(datatype)
                for value, result in good:
                    with self.subTest(datatype=datatype, value=value):
                        fitted = checked(schema, {"X": value})["X"]
                        self.assertEqual(fitted, result)
                        self.assertIs(type(fitted), type(result))
                for value in bad:
                    with self.subTest(datatype=datatype, value=value):
                        (fault,) = self.faults(schema, {"X": value})
                        self.assertEqual(fault["input"], "X")

    def test_check_width(self) -> None:
        """A value outside an integer's width reaches the app unchanged, as on Inferless."""
        self.assertEqual(checked(one("INT8"), {"X": 512}), {"X": 512})
        self.assertEqual(checked(one("UINT8"), {"X": -1}), {"X": -1})

    def test_check_shapes(self) -> None:
        """A scalar for [1], else lists of the declared shape; what can have only one shape may come flat."""
        table: list[tuple[list[int], object, object]] = [
            ([1], 1, 1),
            ([1], [1], 1),
            ([-1], [1, 2, 3], [1, 2, 3]),
            ([-1], [1], [1]),
            ([-1], 1, [1]),
            ([-1], [], []),
            ([2], [1, 2], [1, 2]),
            ([1, 1], 1, [[1]]),
            ([1, 1], [1], [[1]]),
            ([1, 1], [[1]], [[1]]),
            ([-1, 2], [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
            ([-1, 2], [1, 2, 3, 4], [[1, 2], [3, 4]]),
            ([-1, 2], [], []),
            ([2, 2], [1, 2, 3, 4], [[1, 2], [3, 4]]),
            ([-1, -1], [[1, 2, 3]], [[1, 2, 3]]),
            ([-1, -1], 1, [[1]]),
            ([1, -1, -1, 3], [[[[1, 2, 3]], [[4, 5, 6]]]], [[[[1, 2, 3]], [[4, 5, 6]]]]),
            ([1, -1, -1, 3], [1, 2, 3], [[[[1, 2, 3]]]]),
        ]
        for shape, value, result in table:
            with self.subTest(shape=shape, value=value):
                self.assertEqual(checked(one("INT32", shape), {"X": value}), {"X": result})

    def test_check_wrong_shapes(self) -> None:
        """What has another shape, or could have several, is a fault that says both shapes."""
        table: list[tuple[list[int], object, str]] = [
            ([1], [], "a list of 0 elements"),
            ([1], [1, 2], "a list of 2 elements"),
            ([1], [[1]], "lists of shape [1, 1]"),
            ([2], 1, "the integer 1"),
            ([2], [1], "a list of 1 element"),
            ([-1], [[1]], "lists of shape [1, 1]"),
            ([-1, 2], [1, 2, 3], "a list of 3 elements"),
            ([-1, 2], [[1, 2], [3]], "lists whose rows differ in length"),
            ([-1, 2], [[1, 2, 3]], "lists of shape [1, 3]"),
            ([-1, -1], [1, 2, 3, 4], "a list of 4 elements"),
            ([1, -1, -1, 3], [1, 2, 3, 4, 5, 6], "a list of 6 elements"),
            ([-1], [1, None], "null at position 1"),
            ([-1, 1], [[1], ["x"]], 'the string "x" at position 1'),
        ]
        for shape, value, got in table:
            with self.subTest(shape=shape, value=value):
                (fault,) = self.faults(one("INT32", shape), {"X": value})
                self.assertEqual(fault["got"], got)

    def test_check_tensors(self) -> None:
        """A tensor's own shape decides what the app gets; its data may be flat or nested."""
        table: list[tuple[list[int], list[int], object, object]] = [
            ([1], [1], [1], 1),
            ([1], [1], [[1]], 1),
            ([-1], [1], [1], 1),
            ([-1], [2], [1, 2], [1, 2]),
            ([-1], [0], [], []),
            ([-1], [], [1, 2], [1, 2]),
            ([-1], [], [1], 1),
            ([1, 1], [1, 1], [1], [[1]]),
            ([1, 1], [1, 1], [[1]], [[1]]),
            ([-1, 2], [2, 2], [1, 2, 3, 4], [[1, 2], [3, 4]]),
            ([-1, 2], [2, 2], [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
            ([-1, -1], [2**62, 0], [], []),
            ([1, -1, -1, 3], [1, 2, 1, 3], [1, 2, 3, 4, 5, 6], [[[[1, 2, 3]], [[4, 5, 6]]]]),
        ]
        for shape, tensor_shape, data, result in table:
            with self.subTest(shape=shape, tensor_shape=tensor_shape, data=data):
                schema = one("INT32", shape)
                self.assertEqual(checked(schema, {"X": data}, {"X": tensor_shape}), {"X": result})

    def test_check_wrong_tensors(self) -> None:
        """A tensor's shape must fit the declared one, and its data must fill it."""
        table: list[tuple[list[int], list[int], object]] = [
            ([1], [2], [1, 2]),
            ([1], [1], [1, 2]),
            ([1], [1], []),
            ([1], [0], []),
            ([1], [1, 1], [1]),
            ([1, 1], [1], [1]),
            ([-1], [3], [1, 2]),
            ([-1], [2**62], [1]),
            ([-1], [2**62] * 1000, [1]),
            ([-1, 2], [2, 2], [[1, 2], [3]]),
        ]
        for shape, tensor_shape, data in table:
            with self.subTest(shape=shape, tensor_shape=tensor_shape[:4], data=data):
                (fault,) = self.faults(one("INT32", shape), {"X": data}, {"X": tensor_shape})
                self.assertLessEqual(len(fault["got"]), 80)

    def test_check_batched(self) -> None:
        """An app with BATCH_SIZE takes requests with a leading dimension of 1, and without."""
        table: list[tuple[list[int], object, list[int] | None, object]] = [
            ([1], 1, None, 1),
            ([1], [1], None, 1),
            ([1], [[1]], None, 1),
            ([1], [1], [1], 1),
            ([1], [[1]], [1, 1], 1),
            ([1], [1], [1, 1], 1),
            ([-1], [[1, 2]], None, [1, 2]),
            ([-1], [[1]], [1, 1], 1),
            ([2], [1, 2], [1, 2], [1, 2]),
            ([1, 1], [[1]], [1, 1], [[1]]),
            ([1, 1], [[[1]]], [1, 1, 1], [[1]]),
        ]
        for shape, value, tensor_shape, result in table:
            with self.subTest(shape=shape, value=value, tensor_shape=tensor_shape):
                shapes = {} if tensor_shape is None else {"X": tensor_shape}
                self.assertEqual(checked(one("INT32", shape, batched=True), {"X": value}, shapes), {"X": result})
        for value, tensor_shape in ([[1], [2]], None), ([1, 2], [2, 1]):
            with self.subTest(value=value):
                shapes = {} if tensor_shape is None else {"X": tensor_shape}
                self.faults(one("INT32", batched=True), {"X": value}, shapes)

    def test_check_absent(self) -> None:
        """An optional input that is absent, or null, is not in what the app gets; a required one is a fault."""
        schema = compiled({"A": entry(), "B": entry(required=False), "C": entry(shape=[-1], required=False)})
        self.assertEqual(checked(schema, {"A": "x"}), {"A": "x"})
        self.assertEqual(checked(schema, {"A": "x", "B": None, "C": None}), {"A": "x"})
        self.assertEqual(self.faults(schema, {}), [{"input": "A", "expected": "a string", "got": "nothing"}])
        self.assertEqual(self.faults(schema, {"A": None}), [{"input": "A", "expected": "a string", "got": "null"}])

    def test_check_all_faults(self) -> None:
        """All faults are told at once: the inputs' in their order, then unknown names."""
        schema = compiled({"A": entry(), "B": entry("INT8"), "C": entry("BOOL", required=False)})
        with self.assertRaises(BadRequest) as caught:
            checked(schema, {"Z": 1, "C": 5, "B": "ten"})
        self.assertEqual([fault["input"] for fault in caught.exception.faults], ["A", "B", "C", "Z"])
        self.assertTrue(caught.exception.message.startswith("4 faults, the first of them: A is required"))
        with self.assertRaisesRegex(BadRequest, "^2 faults, the first of them: A is required"):
            checked(schema, {})
        for fault in caught.exception.faults:
            self.assertEqual(list(fault), ["input", "expected", "got"])

    def test_check_sentence(self) -> None:
        """The sentence names input, fault and remedy."""
        with self.assertRaises(BadRequest) as caught:
            checked(compiled({"MAX_NEW_TOKENS": entry("INT32")}), {"MAX_NEW_TOKENS": "ten"})
        self.assertEqual(
            caught.exception.message,
            'MAX_NEW_TOKENS must be an integer, got the string "ten"; send a whole number without quotes.',
        )

    def test_check_unknown_names(self) -> None:
        """An unknown name is a fault that names the nearest known one, or those there are."""
        schema = compiled({"TEXT": entry(required=False), "MAX_TOKENS": entry("INT8", required=False)})
        table = [("TXT", "did you mean TEXT?"), ("max_token", "MAX_TOKENS?"), ("colour", "TEXT, MAX_TOKENS")]
        for name, words in table:
            with self.subTest(name=name), self.assertRaisesRegex(BadRequest, words.replace("?", r"\?")):
                checked(schema, {name: 1})
        (fault,) = self.faults(schema, {"colour": 1})
        self.assertEqual(fault["expected"], "one of the app's inputs: TEXT, MAX_TOKENS")
        (fault,) = self.faults(schema, {"text": 1})
        self.assertEqual(fault["expected"], "one of the app's inputs: TEXT")
        with self.assertRaisesRegex(BadRequest, "its inputs are: none"):
            checked(compiled({}), {"TEXT": "x"})

    def test_check_many_faults(self) -> None:
        """A body of a million faults gets a short answer."""
        values = {f"{number}{'x' * 1000}": 1 for number in range(5000)}
        faults = self.faults(compiled({}), dict(values))
        self.assertEqual(len(faults), MAX_FAULTS)
        self.assertLess(len(str(faults)), 200 * MAX_FAULTS)

    def test_check_big_values(self) -> None:
        """What a fault shows of a value is short."""
        for value in ("x" * 10**6, [1] * 10**5, {"x" * 10**6: 1}, 10**4000, [[1] * 10**5], [[[[[[[[[[1]]]]]]]]]] * 9):
            with self.subTest(value=str(type(value))):
                (fault,) = self.faults(one("BOOL"), {"X": value})
                self.assertLessEqual(len(fault["got"]), 80)


class Example(unittest.TestCase):
    def test_example_required(self) -> None:
        """The example has the required inputs: their examples where those fit, else a placeholder that does."""
        schema = compiled(
            {
                "A": entry(example=["hello"]),
                "B": entry("INT8", example=[512]),
                "C": entry("BOOL"),
                "D": entry("FP32", example=["x"]),
                "E": entry(shape=[-1], example=["x", "y"]),
                "F": entry("INT32", [2, -1]),
                "G": entry("FP32", [1, -1, -1, 3]),
                "H": entry(required=False, example=["left out"]),
            }
        )
        expected = {
            "A": "hello",
            "B": 512,
            "C": True,
            "D": 1.0,
            "E": ["x", "y"],
            "F": [[1], [1]],
            "G": [[[[1.0, 1.0, 1.0]]]],
        }
        self.assertEqual(schema.example(), expected)
        self.assertEqual(checked(schema, schema.example()), expected)

    def test_example_optional(self) -> None:
        """Where no input is required, the first stands for all."""
        schema = compiled({"A": entry(required=False, example=["x"]), "B": entry(required=False)})
        self.assertEqual(schema.example(), {"A": "x"})
        self.assertEqual(compiled({}).example(), {})


if __name__ == "__main__":
    unittest.main()
