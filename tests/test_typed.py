"""Inputs declared in types: what a class or a signature says, which values then fit, and what is told of the others."""

# The old forms of types are what apps use, and part of what is tested here.
# ruff: noqa: RUF012, UP006, UP007, UP045

from __future__ import annotations

import collections
import dataclasses
import enum
import importlib.util
import inspect
import typing
import unittest
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NewType, Optional, TypedDict, Union

from inferless_shim.errors import BadRequest, StartupError
from inferless_shim.kinds import kind_of
from inferless_shim.schema import JSON, MAX_FAULTS, Rules, Schema, compile_schema
from inferless_shim.typed import RequestSchema, ResponseSchema, SignatureSchema, dumped
from tests.support import checked

HAS_PYDANTIC = importlib.util.find_spec("pydantic") is not None
if HAS_PYDANTIC:
    import pydantic
    from pydantic import BaseModel, Field
else:
    BaseModel, Field = object, lambda *_, **__: None  # type: ignore[assignment,misc]
IS_V2 = HAS_PYDANTIC and pydantic.VERSION.split(".")[0] != "1"
EXAMPLE: dict[str, Any] = {"json_schema_extra": {"example": "a cat"}} if IS_V2 else {"example": "a cat"}

UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(int, enum.Enum):
    LOW = 1


class Point(TypedDict):
    x: int


@dataclasses.dataclass
class Plain:
    x: int


class Array:
    """Has what numpy arrays are known by."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def tolist(self) -> list[Any]:
        return self.values


def signature(function: Callable[..., Any], *, streaming: bool = False, batched: bool = False) -> SignatureSchema:
    return SignatureSchema(function, inspect.signature(function).parameters.values(), Rules(streaming, batched))


class Base(unittest.TestCase):
    maxDiff = None

    def refused(self, schema: Schema, values: dict[str, object], **shapes: list[int]) -> BadRequest:
        with self.assertRaises(BadRequest) as caught:
            checked(schema, values, shapes)
        self.assertNotIn("\n", caught.exception.message)
        return caught.exception

    def faults(self, schema: Schema, values: dict[str, object], **shapes: list[int]) -> list[tuple[str, str, str]]:
        return [tuple(fault.values()) for fault in self.refused(schema, values, **shapes).faults]


class Kinds(unittest.TestCase):
    def test_kind_of_annotations(self) -> None:
        """A type has a datatype and a shape; what is not plain is JSON."""
        table: list[tuple[Any, str, tuple[int, ...], bool]] = [
            (str, "STRING", (1,), False),
            (int, "INT64", (1,), False),
            (float, "FP64", (1,), False),
            (bool, "BOOL", (1,), False),
            (UserId, "INT64", (1,), False),
            (typing.Annotated[int, "x"], "INT64", (1,), False),
            (Optional[int], "INT64", (1,), True),
            (int | None, "INT64", (1,), True),
            (Union[None, typing.Annotated[float, "x"]], "FP64", (1,), True),
            (Literal["a", "b"], "STRING", (1,), False),
            (Literal["a", None], "STRING", (1,), True),
            (Literal[1, 2], "INT64", (1,), False),
            (Literal[1, "a"], "JSON", (1,), False),
            (Color, "STRING", (1,), False),
            (Level, "INT64", (1,), False),
            (list[str], "STRING", (-1,), False),
            (typing.List[bool], "BOOL", (-1,), False),
            (Sequence[float], "FP64", (-1,), False),
            (Optional[list[int]], "INT64", (-1,), True),
            (set[str], "STRING", (-1,), False),
            (collections.deque[int], "INT64", (-1,), False),
            (list[Color], "STRING", (-1,), False),
            (tuple[int, ...], "INT64", (-1,), False),
            (typing.Tuple[int, int], "INT64", (2,), False),
            (tuple[int], "INT64", (-1,), False),
            (list[list[float]], "FP64", (-1, -1), False),
            (list[tuple[int, int]], "INT64", (-1, 2), False),
            (list[list[list[int]]], "INT64", (-1, -1, -1), False),
            (tuple[int, str], "JSON", (1,), False),
            (list, "JSON", (1,), False),
            (typing.List, "JSON", (1,), False),
            (list[Any], "JSON", (1,), False),
            (list[int | None], "JSON", (1,), False),
            (list[dict[str, int]], "JSON", (1,), False),
            (dict, "JSON", (1,), False),
            (typing.Dict[str, int], "JSON", (1,), False),
            (Mapping[str, int], "JSON", (1,), False),
            (Point, "JSON", (1,), False),
            (Plain, "JSON", (1,), False),
            (Union[int, str], "JSON", (1,), False),
            (Union[int, list[int], None], "JSON", (1,), True),
            (bytes, "JSON", (1,), False),
            (complex, "JSON", (1,), False),
            (Any, "JSON", (1,), False),
            (object, "JSON", (1,), False),
            ("int", "JSON", (1,), False),
            (typing.TypeVar("T"), "JSON", (1,), False),
            (None, "JSON", (1,), False),
        ]
        for annotation, datatype, shape, optional in table:
            with self.subTest(annotation=annotation):
                kind = kind_of(annotation)
                self.assertEqual((kind.datatype, kind.shape, kind.optional), (datatype, shape, optional))

    def test_kind_of_text(self) -> None:
        """A type says whether an object or a list may come as text: not where text is a value of its own."""
        table: list[tuple[Any, tuple[type, ...], str]] = [
            (dict[str, int], (dict,), "a JSON object"),
            (Optional[Plain], (dict,), "a JSON object"),
            (list[dict[str, int]], (list,), "a JSON list"),
            (list[int], (list,), ""),
            (Union[dict[str, int], list[int]], (dict, list), "a JSON object or a list of integers"),
            (Union[int, dict[str, int]], (dict,), "an integer or a JSON object"),
            (Union[str, dict[str, int]], (), "a string or a JSON object"),
            (Union[Any, dict[str, int]], (), "any JSON value or a JSON object"),
            (Any, (), ""),
            (str, (), ""),
        ]
        for annotation, wants, words in table:
            with self.subTest(annotation=annotation):
                kind = kind_of(annotation)
                self.assertEqual((kind.wants, kind.words), (wants, words))


@unittest.skipUnless(HAS_PYDANTIC, "pydantic is not installed")
class Request(Base):
    def schema(self, made: Any = None, **rules: bool) -> RequestSchema:
        return RequestSchema(made or self.made(), Rules(**rules))

    def made(self, **annotations: Any) -> Any:
        """Make a class of fields: name=annotation, or name=(annotation, default)."""
        fields = {name: each if isinstance(each, tuple) else (each, ...) for name, each in annotations.items()}
        return pydantic.create_model("RequestObjects", **fields)

    def one(self, annotation: Any, **flags: bool) -> RequestSchema:
        return self.schema(self.made(x=annotation), **flags)

    def test_inputs(self) -> None:
        """Inputs are the fields, in order, with what the class says of them."""

        class RequestObjects(BaseModel):
            prompt: str = Field(..., **EXAMPLE)
            size: int | None = 512
            seed: int | None
            tags: list[str] = Field(default_factory=list)
            options: dict[str, Any] = {}
            named: float = Field(..., alias="guidance")

        schema = self.schema(RequestObjects)
        told = {name: (each.datatype, each.shape, each.required) for name, each in schema.inputs.items()}
        self.assertEqual(
            told,
            {
                "prompt": ("STRING", (1,), True),
                "size": ("INT64", (1,), False),
                "seed": ("INT64", (1,), False),
                "tags": ("STRING", (-1,), False),
                "options": ("JSON", (1,), False),
                "guidance": ("FP64", (1,), True),
            },
        )
        self.assertIs(schema.inputs["options"].family, JSON)
        self.assertEqual(schema.example(), {"prompt": "a cat", "guidance": 1.0})
        self.assertEqual(schema.warnings, [])

    def test_values(self) -> None:
        """What fits reaches the class as our types say, and comes out as the class makes it."""
        table: list[tuple[Any, object, object]] = [
            (str, "a", "a"),
            (str, ["a"], "a"),
            (int, 5.0, 5),
            (float, 5, 5.0),
            (bool, False, False),
            (Optional[int], None, None),
            ((Optional[int], 5), None, None),
            (list[str], ["a", "b"], ["a", "b"]),
            (list[str], "a", ["a"]),
            (list[str], [], []),
            (list[int], [1.0, 2], [1, 2]),
            (list[list[int]], [[1], [2, 3], []], [[1], [2, 3], []]),
            (list[list[int]], [], []),
            (tuple[int, int], [1, 2], (1, 2)),
            (list[int], "[1, 2]", [1, 2]),
            (list[str], '["a"]', ['["a"]']),
            (dict[str, int], {"a": 1}, {"a": 1}),
            (dict[str, int], '{"a": 1}', {"a": 1}),
            (list[dict[str, int]], '[{"a": 1}]', [{"a": 1}]),
            (Any, '{"a": 1}', '{"a": 1}'),
            (Any, None, None),
            (Any, [None, {"a": 1.5}], [None, {"a": 1.5}]),
            (Union[str, dict[str, int]], '{"a": 1}', '{"a": 1}'),
            (Union[int, dict[str, int]], '{"a": 1}', {"a": 1}),
            (Literal["a", "b"], "b", "b"),
            (Color, "red", Color.RED),
            (Level, 1.0, Level.LOW),
        ]
        for annotation, value, result in table:
            with self.subTest(annotation=annotation, value=value):
                schema = self.one(annotation)
                built = schema.build(checked(schema, {"x": value})).x
                self.assertEqual(built, result)
                self.assertIs(type(built), type(result))

    def test_tensors(self) -> None:
        """A v2 tensor of shape [1] is one value; a list of one where the class wants a list; JSON text is read."""
        table: list[tuple[Any, list[Any], list[int], object]] = [
            (str, ["a"], [1], "a"),
            (list[str], ["a"], [1], ["a"]),
            (list[str], ["a", "b"], [2], ["a", "b"]),
            (list[str], ["a", "b"], [], ["a", "b"]),
            (list[list[int]], [1, 2, 3, 4], [2, 2], [[1, 2], [3, 4]]),
            (dict[str, int], ['{"a": 1}'], [1], {"a": 1}),
            (dict[str, int], [['{"a": 1}']], [1, 1], {"a": 1}),
            (dict[str, int], [{"a": 1}], [1], {"a": 1}),
            (list[dict[str, int]], ['[{"a": 1}]'], [1], [{"a": 1}]),
            (list[float], ["[0.5, 1]"], [1], [0.5, 1.0]),
            (Any, ["a"], [1], "a"),
            (Any, [1, 2], [2], [1, 2]),
            (Any, [1, 2, 3, 4], [2, 2], [[1, 2], [3, 4]]),
        ]
        for annotation, data, shape, result in table:
            with self.subTest(annotation=annotation, data=data):
                schema = self.one(annotation)
                self.assertEqual(schema.build(checked(schema, {"x": data}, {"x": shape})).x, result)
        self.assertEqual(self.faults(self.one(str), {"x": ["a", "b"]}, x=[2])[0][2], "a tensor of shape [2]")

    def test_wrong_values(self) -> None:
        """Our types are stricter than the class's: each wrong value is a fault that names it."""
        table: list[tuple[Any, object, str, str]] = [
            (int, True, "an integer", "true"),
            (int, "5", "an integer", 'the string "5"'),
            (int, 5.5, "an integer", "the number 5.5"),
            (float, True, "a number", "true"),
            (bool, 1, "true or false", "the integer 1"),
            (str, 5, "a string", "the integer 5"),
            (str, None, "a string", "null"),
            (list[int], [1, True], "a list of integers", "true at position 1"),
            (dict[str, int], "no JSON", "an object", 'the string "no JSON"'),
            (dict[str, int], "[1]", "an object", 'the string "[1]"'),
            (tuple[int, int], [1], "a list of 2 integers", "a list of 1 element"),
        ]
        for annotation, value, expected, got in table:
            with self.subTest(annotation=annotation, value=value):
                self.assertEqual(self.faults(self.one(annotation), {"x": value}), [("x", expected, got)])
        self.assertEqual(
            self.faults(self.one(list[list[int]]), {"x": [[1], ["a"]]}),
            [("x.1", "a list of integers", 'the string "a"')],
        )

    def test_class_rules(self) -> None:
        """What the class says beyond types is its own to check; its words become expected and got."""
        table: list[tuple[Any, object, str, str]] = [
            ((int, Field(..., ge=10)), 1, "greater than or equal to 10", "the integer 1"),
            ((str, Field(..., max_length=3)), "abcd", "at most 3 characters", 'the string "abcd"'),
            (Literal["a", "b"], "c", "'a'", 'the string "c"'),
            (Color, "green", "'red'", 'the string "green"'),
            (Union[int, list[int]], "x", "an integer or a list", 'the string "x"'),
        ]
        for annotation, value, expected, got in table:
            with self.subTest(annotation=annotation, value=value):
                ((name, wanted, found),) = self.faults(self.one(annotation), {"x": value})
                self.assertEqual((name, found), ("x", got))
                self.assertIn(expected, wanted)

    def test_nested(self) -> None:
        """A fault deep in an object says where; one value has one fault, whatever a union makes of it."""
        item = pydantic.create_model("Item", name=(str, ...), n=(int, 1))
        schema = self.schema(self.made(items=list[item], more=(Optional[item], None)))
        built = schema.build(checked(schema, {"items": [{"name": "a", "n": 5.0}], "more": '{"name": "b"}'}))
        self.assertEqual((built.items[0].n, built.more.name), (5, "b"))
        self.assertEqual(
            self.faults(schema, {"items": [{"name": "a"}, {"n": "x"}], "more": {"name": []}})[:3],
            [
                ("items.1.name", "a value", "nothing"),
                ("items.1.n", "an integer", 'the string "x"'),
                ("more.name", "a string", "a list of 0 elements"),
            ],
        )

    @unittest.skipUnless(IS_V2, "pydantic 1 cannot tell")
    def test_nested_types(self) -> None:
        """`true` is no integer however deep it lies, and neither is text; a whole number is one."""
        item = pydantic.create_model("Item", n=(int, 1), f=(float, 1), b=(bool, True), day=(Optional[Any], None))
        schema = self.schema(self.made(items=list[item], u=(Union[int, str], 1)))
        values = [{"n": True}, {"f": "1.5"}, {"b": 1}, {"n": 5.0, "f": 5, "b": False}]
        told = [("items.0.n", "true"), ("items.1.f", 'the string "1.5"'), ("items.2.b", "the integer 1"), ("u", "true")]
        found = self.faults(schema, {"items": values, "u": True})
        self.assertEqual([(name, got) for name, _, got in found], told)
        checked(schema, {"items": values[3:], "u": "5"})

    def test_absent(self) -> None:
        """Optional means not required, with a default or without; null for what is not Optional is absence."""
        schema = self.schema(self.made(a=Optional[int], b=(Optional[int], 5), c=(int, 6), d=(str, ...)))
        built = schema.build(checked(schema, {"c": None, "d": "x"}))
        self.assertEqual((built.a, built.b, built.c), (None, 5, 6))
        self.assertEqual(self.faults(schema, {"d": None}), [("d", "a string", "null")])
        self.assertEqual(self.faults(schema, {}), [("d", "a string", "nothing")])

    def test_all_faults(self) -> None:
        """All faults are told at once, ours and the class's; unknown names too, even if the class ignores them."""
        schema = self.schema(self.made(a=str, count=(int, Field(1, ge=1)), c=dict[str, int]))
        values: dict[str, object] = {"counter": 1, "count": 0, "c": {"k": "x"}}
        error = self.refused(schema, values)
        self.assertEqual([fault["input"] for fault in error.faults], ["a", "counter", "count", "c.k"])
        self.assertEqual(error.message, "4 faults, the first of them: a is required, got nothing; send a string.")
        self.assertEqual(error.faults[1]["expected"], "one of the app's inputs: count")

    def test_sentence(self) -> None:
        """The sentence names input, fault and remedy."""
        error = self.refused(self.one((int, Field(..., le=3))), {"x": 4})
        self.assertRegex(error.message, "^x must be .*less than or equal to 3, got the integer 4; correct it.$")

    def test_bounded(self) -> None:
        """Neither large values nor many faults make a large answer."""
        schema = self.one(dict[str, int])
        for value in (
            "x" * 10**6,
            {"k" * 10**6: "x" * 10**6},
            {str(n): "x" for n in range(5000)},
            {"k": ["y"] * 10**6},
        ):
            error = self.refused(schema, {"x": value})
            self.assertLessEqual(len(error.faults), MAX_FAULTS)
            self.assertLess(len(str(error.body())), 400 * len(error.faults) + 400)
        found = self.faults(schema, {"x": {str(n): "x" for n in range(20000)}})
        self.assertLessEqual(len(found), MAX_FAULTS)

    @unittest.skipUnless(IS_V2, "its aliases and validators are pydantic 2's")
    def test_aliases(self) -> None:
        """An input's name is what validation takes: the alias, or any of several, or the field's own name."""

        class RequestObjects(BaseModel):
            model_config = pydantic.ConfigDict(populate_by_name=True)
            a: int = Field(1, alias="A")
            b: int = Field(2, validation_alias=pydantic.AliasChoices("B", "bee"), serialization_alias="out")
            c: Any = Field(3, validation_alias=pydantic.AliasPath("C", 0))

        schema = self.schema(RequestObjects)
        self.assertEqual(list(schema.inputs), ["A", "B", "C"])
        for values in ({"A": 7, "B": 8, "C": [9]}, {"a": 7, "bee": 8, "C": [9]}):
            self.assertEqual(schema.build(checked(schema, values)).model_dump(), {"a": 7, "b": 8, "c": 9})
        self.assertEqual(self.faults(schema, {"bee": "x"}), [("bee", "an integer", 'the string "x"')])
        self.assertEqual([name for name, _, _ in self.faults(schema, {"d": 1})], ["d"])
        self.assertEqual([name for name, _, _ in ResponseSchema(RequestObjects).outputs], ["A", "out", "c"])

    @unittest.skipUnless(IS_V2, "its validators are pydantic 2's")
    def test_validators(self) -> None:
        """A validator's error is a fault, whatever it raises, and a validator runs once for a request."""
        runs = []

        class RequestObjects(BaseModel):
            a: int = 1
            b: int = 1

            @pydantic.field_validator("a")
            @classmethod
            def check_a(cls, value: int) -> int:
                runs.append(value)
                if value == 13:
                    raise ValueError("13 is\nunlucky")
                return value

            @pydantic.model_validator(mode="after")
            def check_both(self) -> Any:
                if self.a > self.b + 100:
                    raise ValueError("a is too far from b")
                if self.a == self.b == 0:
                    raise KeyError("zero")
                return self

        schema = self.schema(RequestObjects)
        self.assertEqual(
            self.refused(schema, {"a": 13}).message, "a is refused: 13 is unlucky, got the integer 13; correct it."
        )
        self.assertEqual(
            self.refused(schema, {"a": 200}).message,
            "The inputs are refused together: a is too far from b; correct them.",
        )
        self.assertIn("KeyError: 'zero'", self.refused(schema, {"a": 0, "b": 0}).message)
        self.assertEqual([name for name, _, _ in self.faults(schema, {"a": 200, "b": "x"})], ["b"])
        runs.clear()
        inputs = checked(schema, {"a": 5})
        self.assertIs(schema.build(inputs), schema.build(inputs))
        self.assertEqual(runs, [5])
        self.assertEqual(schema.build(dict(inputs)).a, 5)
        with self.assertRaisesRegex(BadRequest, "unlucky"):
            schema.build({"a": 13})

    @unittest.skipUnless(IS_V2, "written for pydantic 2")
    def test_extra(self) -> None:
        """A class that allows any name gets them all."""

        class RequestObjects(BaseModel):
            model_config = pydantic.ConfigDict(extra="allow")
            a: int

        schema = self.schema(RequestObjects)
        built = schema.build(checked(schema, {"a": 1, "b": [2], "c": ["x"]}, {"c": [1]}))
        self.assertEqual(built.model_dump(), {"a": 1, "b": [2], "c": "x"})

    @unittest.skipUnless(IS_V2, "its JSON schema is pydantic 2's")
    def test_examples(self) -> None:
        """An example is the author's, of field or class, else the default, else made of the class's simple rules."""
        item = pydantic.create_model("Item", name=(str, ...), many=(list[int], ...), more=(int, 1))

        class RequestObjects(BaseModel):
            model_config = pydantic.ConfigDict(json_schema_extra={"examples": [{"of_class": "c"}]})
            first: str = Field(examples=["e", "f"])
            extra: int = Field(json_schema_extra={"example": 14})
            of_class: str
            least: int = Field(ge=10)
            between: float = Field(gt=0, lt=1, multiple_of=0.25)
            long: str = Field(min_length=6)
            choice: Literal["b", "a"]
            color: Color
            item: item  # type: ignore[valid-type]
            items: list[item] = Field(min_length=2)  # type: ignore[valid-type]
            flag: bool
            either: int | str

        schema = self.schema(RequestObjects)
        made = {"name": "text", "many": [1]}
        self.assertEqual(
            schema.example(),
            {
                "first": "e", "extra": 14, "of_class": "c", "least": 10, "between": 0.25, "long": "textxx",
                "choice": "b", "color": "red", "item": made, "items": [made, made], "flag": True, "either": 1,
            },
        )  # fmt: skip
        checked(schema, schema.example())
        self.assertEqual(self.one((int, Field(3))).example(), {"x": 3})
        (warning,) = self.one((int, Field(..., examples=["x"]))).warnings
        self.assertIn("An example in RequestObjects does not fit: x must be an integer", warning)

    def test_streaming(self) -> None:
        """Streaming allows what it allows of INPUT_SCHEMA; an object or Any travels as text."""
        self.one(dict[str, Any], streaming=True)
        for annotation, words in ((float, "the datatype FP64"), (list[str], "the shape")):
            with self.subTest(annotation=annotation), self.assertRaisesRegex(StartupError, f"x has {words}"):
                self.one(annotation, streaming=True)
            self.assertIn(f"x has {words}", self.one(annotation, streaming=True, relaxed=True).warnings[0])
        with self.assertRaisesRegex(StartupError, "exclude each other"):
            self.one(str, streaming=True, batched=True)

    def test_batched(self) -> None:
        """A batched app's requests may have a leading 1."""
        schema = self.schema(self.made(a=str, b=list[list[int]]), batched=True)
        self.assertEqual(checked(schema, {"a": [["x"]], "b": [[[1], [2]]]}), {"a": "x", "b": [[1], [2]]})
        self.assertEqual(checked(schema, {"a": ["x"], "b": [[1]]}, {"a": [1, 1]}), {"a": "x", "b": [[1]]})

    def test_no_class(self) -> None:
        """What is no pydantic class is a start-up error that says what to write."""
        for made in (Plain, "text", None):
            with self.assertRaisesRegex(StartupError, "derive it from BaseModel"):
                self.schema(made or 5)
        with self.assertRaisesRegex(StartupError, "@inferless.response is on Plain"):
            ResponseSchema(Plain)


@unittest.skipUnless(HAS_PYDANTIC, "pydantic is not installed")
class Response(Base):
    def setUp(self) -> None:
        self.item = pydantic.create_model("Item", name=(str, ...))
        self.made = pydantic.create_model(
            "ResponseObjects",
            text=(str, ...), scores=(list[float], []), items=(list[self.item], []), color=(Optional[Color], None),
            extra=(Any, None),
        )  # fmt: skip
        self.schema = ResponseSchema(self.made)

    def test_outputs(self) -> None:
        """Outputs are told as v2 has them; what is JSON is text there."""
        texts = [(name, "BYTES", [1]) for name in ("text", "items", "color", "extra")]
        self.assertEqual(self.schema.outputs, [texts[0], ("scores", "FP64", [-1]), *texts[1:]])

    def test_check(self) -> None:
        """An instance or a dict becomes a dict of JSON's types; arrays are lists to the class, or stay."""
        full = {"text": "a", "scores": [0.5], "items": [{"name": "b"}], "color": "red", "extra": None}
        instance = self.made(text="a", scores=[0.5], items=[self.item(name="b")], color=Color.RED)
        self.assertEqual(self.schema.check(instance), full)
        self.assertEqual(self.schema.check({**full, "items": [self.item(name="b")], "color": Color.RED}), full)
        self.assertEqual(self.schema.check({**full, "scores": Array([0.5])}), full)
        array = Array([1])
        self.assertIs(self.schema.check(self.made(text="a", extra=array))["extra"], array)
        with self.assertRaisesRegex(ValueError, "text is required"):  # another class's: it is checked like a dict
            self.schema.check(self.item(name="b"))
        self.assertEqual((dumped(self.item(name="b")), dumped("x")), ({"name": "b"}, "x"))

    def test_misfits(self) -> None:
        """What does not fit raises one sentence that names field, expected and got."""
        table: list[tuple[object, str]] = [
            ({}, "text is required, got nothing"),
            ({"text": [], "items": 1}, r"text must be a.*\(1 more like it\)"),
            ({"text": "a", "items": [{"name": []}]}, "items.0.name must be a"),
            ("text", 'got the string "text"; return one of them'),
            (None, "got null"),
            ({"text": ["x" * 10**6]}, "text must be a"),
        ]
        for answer, words in table:
            with self.subTest(answer=str(answer)[:80]):
                pattern = f"^the app's answer does not fit its response class: .*{words}"
                with self.assertRaisesRegex(ValueError, pattern) as caught:
                    self.schema.check(answer)
                self.assertLess(len(str(caught.exception)), 400)

    @unittest.skipUnless(IS_V2, "computed fields are pydantic 2's")
    def test_computed(self) -> None:
        """A computed field is an output, too."""

        class ResponseObjects(BaseModel):
            text: str = Field(serialization_alias="TEXT")

            @pydantic.computed_field  # type: ignore[prop-decorator]
            @property
            def length(self) -> int:
                return len(self.text)

        schema = ResponseSchema(ResponseObjects)
        self.assertEqual([name for name, _, _ in schema.outputs], ["TEXT", "length"])
        self.assertEqual(schema.check(ResponseObjects(text="abc")), {"TEXT": "abc", "length": 3})


class Signature(Base):
    def test_inputs(self) -> None:
        """Inputs are the parameters, in order: with a default not required, without an annotation any JSON value."""

        def infer(prompt: str, seed: int | None, n: int = 3, *, tags: list[str] = [], free, color: Color = Color.RED):  # noqa: B006
            pass

        schema = signature(infer)
        told = {name: (each.datatype, each.shape, each.required) for name, each in schema.inputs.items()}
        self.assertEqual(
            told,
            {
                "prompt": ("STRING", (1,), True),
                "seed": ("INT64", (1,), False),
                "n": ("INT64", (1,), False),
                "tags": ("STRING", (-1,), False),
                "free": ("JSON", (1,), True),
                "color": ("STRING", (1,), False),
            },
        )
        self.assertEqual(schema.inputs["color"].example, "red")
        self.assertEqual(schema.example(), {"prompt": "text", "free": "text"})
        built = schema.build(checked(schema, {"prompt": "a", "free": {"b": None}, "color": "blue"}))
        self.assertEqual(built, {"prompt": "a", "seed": None, "free": {"b": None}, "color": Color.BLUE})
        self.assertEqual(
            schema.build(checked(schema, {"prompt": "a", "free": None})), {"prompt": "a", "seed": None, "free": None}
        )

    def test_faults(self) -> None:
        """Types are checked as a schema's; and so are choices, objects and lists, which nobody else would check."""

        def infer(n: int = 1, mode: Literal["a", "b"] = "a", color: Color = Color.RED, d: dict = {}, x: list = []):  # noqa: B006
            pass

        schema = signature(infer)
        self.assertEqual(
            self.faults(schema, {"n": True, "mode": "c", "color": "green", "d": "[1]", "x": 5, "m": 1}),
            [
                ("n", "an integer", "true"),
                ("m", "one of the app's inputs: n, mode, color, d, x", "an unknown name"),
                ("mode", '"a" or "b"', 'the string "c"'),
                ("color", '"red" or "blue"', 'the string "green"'),
                ("d", "a JSON object", 'the string "[1]"'),
                ("x", "a JSON list", "the integer 5"),
            ],
        )
        self.assertEqual(checked(schema, {"d": '{"a": 1}', "x": "[1]"}), {"d": {"a": 1}, "x": [1]})

    def test_chosen_parameters(self) -> None:
        """The caller says which parameters are inputs; `**options` takes any other name."""

        def infer(self, prompt: str, stream_output_handler, *args, **options):
            pass

        parameters = list(inspect.signature(infer).parameters.values())
        schema = SignatureSchema(infer, [parameters[1], *parameters[3:]], Rules(streaming=True))
        self.assertEqual(list(schema.inputs), ["prompt"])
        self.assertEqual(checked(schema, {"prompt": "a", "any": [1]}), {"prompt": "a", "any": [1]})

    def test_unresolved_annotations(self) -> None:
        """Annotations that are text are resolved where they can be; others take any JSON value."""

        def resolved(a: "int", b: "str | None" = None):  # noqa: UP037
            pass

        def unresolved(a: "Missing", b: "int"):  # type: ignore[name-defined]  # noqa: F821, UP037
            pass

        self.assertEqual([each.datatype for each in signature(resolved).inputs.values()], ["INT64", "STRING"])
        self.assertEqual([each.datatype for each in signature(unresolved).inputs.values()], ["JSON", "JSON"])

    def test_streaming(self) -> None:
        """What streaming does not allow is a start-up error here, too."""

        def infer(t: float):
            pass

        with self.assertRaisesRegex(StartupError, "t has the datatype FP64"):
            signature(infer, streaming=True)
        with self.assertRaisesRegex(StartupError, "exclude each other"):
            signature(lambda: None, streaming=True, batched=True)

    @unittest.skipUnless(HAS_PYDANTIC, "pydantic is not installed")
    def test_classes(self) -> None:
        """A parameter that is a pydantic class gets an instance, and the class's faults say where."""
        item = pydantic.create_model("Item", name=(str, ...), n=(int, 1))

        def infer(item):
            pass

        infer.__annotations__ = {"item": item}
        schema = signature(infer)
        self.assertEqual(schema.build(checked(schema, {"item": '{"name": "a"}'}))["item"], item(name="a"))
        self.assertEqual(schema.example(), {"item": {"name": "text"}})
        self.assertEqual(self.faults(schema, {"item": {"n": "x"}})[0], ("item.name", "a value", "nothing"))
        self.assertEqual(self.faults(schema, {"item": 5}), [("item", "a JSON object", "the integer 5")])


class InputSchema(Base):
    def test_build(self) -> None:
        """What INPUT_SCHEMA lets pass is what infer gets; JSON is no datatype of it."""
        inputs = {"x": 1}
        schema = compile_schema({"x": {"datatype": "INT8", "shape": [1]}}, Rules())
        self.assertIs(schema.build(inputs), inputs)
        with self.assertRaisesRegex(StartupError, "x has the datatype 'JSON'"):
            compile_schema({"x": {"datatype": "JSON", "shape": [1]}}, Rules())


if __name__ == "__main__":
    unittest.main()
