"""Requests in, answers out, as tables; no HTTP."""

from __future__ import annotations

import json
import os
import random
import unittest
from collections.abc import Callable
from typing import Any

from inferless_shim import __version__
from inferless_shim.errors import BadRequest
from inferless_shim.protocol import (
    Call,
    generate_response,
    infer_response,
    model_metadata,
    read_body,
    read_query,
    reserved_query,
    server_metadata,
)
from inferless_shim.schema import MAX_FAULTS, Schema, compile_schema
from tests.bad_bodies import BAD_BODIES, SCHEMA, bare, enveloped, tensor, tensors, text_of

APP = compile_schema(SCHEMA, streaming=False, batched=False)


def schema_of(*, batched: bool = False, required: bool = False, **datatypes: str) -> Schema:
    """Return a schema of scalars."""
    raw = {name: {"datatype": datatype, "shape": [1], "required": required} for name, datatype in datatypes.items()}
    return compile_schema(raw, streaming=False, batched=batched)


def read(request: object, schema: Schema = APP) -> Call:
    return read_body(json.dumps(request).encode(), schema)


class ReadBody(unittest.TestCase):
    def test_read_body_forms(self) -> None:
        """Tensors, an envelope and bare keys say the same."""
        inputs = {
            "TEXT": "hello",
            "MAX_NEW_TOKENS": 5,
            "TEMPERATURE": 1.0,
            "STOP": ["a", "b"],
            "BOXES": [[1.0, 2.0, 3.0, 4.0]],
        }
        sent = {"MAX_NEW_TOKENS": 5.0, "TEMPERATURE": 1, "STOP": ["a", "b"], "BOXES": [1, 2, 3, 4]}
        as_tensors = [
            tensor("MAX_NEW_TOKENS", [5.0], [1], "FP64"),
            tensor("TEMPERATURE", [1], [1], "INT64"),
            tensor("STOP", ["a", "b"], [2], "STRING"),
            tensor("BOXES", [1, 2, 3, 4], [1, 4], "INT64"),
        ]
        for body in (bare(**sent), enveloped(**sent), tensors(*as_tensors)):
            with self.subTest(body=body):
                self.assertEqual(read_body(body, APP), Call(None, inputs, None))

    def test_read_body_scalars(self) -> None:
        """For shape [1], a list of one is a scalar in every form; for [-1], only a tensor of shape [1] is."""
        table: list[tuple[object, dict[str, object]]] = [
            ({"TEXT": ["x"]}, {"TEXT": "x"}),
            ({"parameters": {"TEXT": ["x"]}}, {"TEXT": "x"}),
            ({"TEXT": "x", "STOP": ["a"]}, {"TEXT": "x", "STOP": ["a"]}),
            ({"TEXT": "x", "STOP": "a"}, {"TEXT": "x", "STOP": ["a"]}),
            ({"inputs": [tensor("TEXT", ["x"], [1]), tensor("STOP", ["a"], [1])]}, {"TEXT": "x", "STOP": "a"}),
            ({"inputs": [tensor("TEXT", ["x"], [1]), tensor("STOP", [], [0])]}, {"TEXT": "x", "STOP": []}),
        ]
        for request, inputs in table:
            with self.subTest(request=request):
                self.assertEqual(read(request).inputs, inputs)

    def test_read_body_tensors(self) -> None:
        """What real clients send beside name and data is tolerated; a missing shape is that of the data."""
        table: list[dict[str, object]] = [
            {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["x"], "optional": True},
            {"name": "TEXT", "shape": [1], "datatype": "STRING", "data": ["x"]},
            {"name": "TEXT", "shape": [1], "data": ["x"], "parameters": {"binary_data": False}},
            {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": [["x"]]},
            {"name": "TEXT", "shape": None, "datatype": None, "data": ["x"]},
            {"name": "TEXT", "data": ["x"]},
        ]
        for sent in table:
            with self.subTest(tensor=sent):
                request = {"inputs": [sent], "parameters": {"sequence_id": 5}, "client": "v2"}
                self.assertEqual(read(request).inputs, {"TEXT": "x"})

    def test_read_body_batch_of_one(self) -> None:
        """An app with BATCH_SIZE takes tensors of shape [1, 1]."""
        schema = schema_of(batched=True, TEXT="STRING")
        for data in (["x"], [["x"]]):
            with self.subTest(data=data):
                self.assertEqual(read({"inputs": [tensor("TEXT", data, [1, 1])]}, schema).inputs, {"TEXT": "x"})

    def test_read_body_absent(self) -> None:
        """An optional input that is absent or null is not in the dict."""
        for request in ({"TEXT": "x"}, {"TEXT": "x", "SAMPLE": None}, {"parameters": {"TEXT": "x", "SAMPLE": None}}):
            with self.subTest(request=request):
                self.assertEqual(read(request).inputs, {"TEXT": "x"})

    def test_read_body_beside_the_envelope(self) -> None:
        """Inputs may stand beside the envelope, as in Triton's generate extension."""
        self.assertEqual(read({"TEXT": "x", "parameters": {"SAMPLE": True}}).inputs, {"TEXT": "x", "SAMPLE": True})

    def test_read_body_id(self) -> None:
        """Top-level `id` is the request's, in every form; an empty one is none."""
        body = {"TEXT": "x"}
        for request in (body, {"parameters": body}, {"inputs": [tensor("TEXT", ["x"], [1])]}):
            with self.subTest(request=request):
                self.assertEqual(read({**request, "id": "req-1"}), Call("req-1", {"TEXT": "x"}))
                self.assertIsNone(read({**request, "id": ""}).id)
                self.assertIsNone(read({**request, "id": None}).id)

    def test_read_body_own_id(self) -> None:
        """An app's own `id` is an input among bare keys, inside the envelope and as a tensor."""
        schema = schema_of(id="INT32")
        table: list[tuple[object, Call]] = [
            ({"id": 5}, Call(None, {"id": 5})),
            ({"parameters": {"id": 5}, "id": "req-1"}, Call("req-1", {"id": 5})),
            ({"inputs": [tensor("id", [5], [1])], "id": "req-1"}, Call("req-1", {"id": 5})),
        ]
        for request, call in table:
            with self.subTest(request=request):
                self.assertEqual(read(request, schema), call)
        with self.assertRaisesRegex(BadRequest, "id must be an integer"):
            read({"id": "req-1"}, schema)

    def test_read_body_own_inputs(self) -> None:
        """An app's own inputs called `inputs` and `parameters` win over the envelopes of these names."""
        schema = schema_of(inputs="STRING", parameters="STRING", TEXT="STRING")
        table: list[tuple[object, dict[str, object]]] = [
            ({"inputs": "a"}, {"inputs": "a"}),
            ({"inputs": ["a"], "parameters": "{}"}, {"inputs": "a", "parameters": "{}"}),
            ({"inputs": "a", "parameters": {"TEXT": "x"}}, {"inputs": "a", "TEXT": "x"}),
            ({"parameters": {"inputs": "a", "parameters": "b"}}, {"inputs": "a", "parameters": "b"}),
            ({"inputs": [tensor("inputs", ["a"], [1])]}, {"inputs": "a"}),
            ({"inputs": [tensor("parameters", ["a"], [1])], "parameters": {}}, {"parameters": "a"}),
        ]
        for request, inputs in table:
            with self.subTest(request=request):
                self.assertEqual(read(request, schema).inputs, inputs)
        for request, words in (({"inputs": 5}, "inputs must be a string"), ({"parameters": 5}, "parameters must be a")):
            with self.subTest(request=request), self.assertRaisesRegex(BadRequest, words):
                read(request, schema)

    def test_read_body_own_list(self) -> None:
        """An app's own list called `inputs` is told from tensors by its elements."""
        raw = {"inputs": {"datatype": "STRING", "shape": [-1]}}
        schema = compile_schema(raw, streaming=False, batched=False)
        self.assertEqual(read({"inputs": ["a", "b"]}, schema).inputs, {"inputs": ["a", "b"]})
        self.assertEqual(read({"inputs": []}, schema).inputs, {"inputs": []})
        self.assertEqual(read({"inputs": [tensor("inputs", ["a", "b"], [2])]}, schema).inputs, {"inputs": ["a", "b"]})

    def test_read_body_outputs(self) -> None:
        """The outputs that a v2 request names are passed on; none named are all."""
        for outputs, names in (
            ([{"name": "a"}, {"name": "b", "parameters": {}}], ["a", "b"]),
            ([], None),
            (None, None),
        ):
            with self.subTest(outputs=outputs):
                request = {"inputs": [tensor("TEXT", ["x"], [1])], "outputs": outputs}
                self.assertEqual(read(request).outputs, names)

    def test_read_body_no_inputs(self) -> None:
        """An app without inputs takes an empty object in every form."""
        for request in ({}, {"parameters": {}}, {"inputs": []}):
            with self.subTest(request=request):
                self.assertEqual(read(request, schema_of()), Call(None, {}))

    def test_read_body_bad(self) -> None:
        """Every fault of a body's content is a 400 whose words name it, in an answer of bounded size."""
        self.assertGreaterEqual(len(BAD_BODIES), 80)
        self.assertEqual(len({label for label, _, _ in BAD_BODIES}), len(BAD_BODIES))
        for label, body, words in BAD_BODIES:
            with self.subTest(label):
                with self.assertRaises(BadRequest) as caught:
                    read_body(body, APP)
                self.assertEqual(caught.exception.status, 400)
                self.assertNotIn("\n", caught.exception.message)
                told = text_of(caught.exception.body())
                self.assertLess(len(told), 1000)
                for word in words:
                    self.assertIn(word, told)

    def test_read_body_all_faults(self) -> None:
        """Faults of the form and of the values are told together, each input's once."""
        request = {
            "inputs": [
                tensor("TEXT", ["x"], [1]),
                tensor("TEXT", ["y"], [1]),
                tensor("SAMPLE", [5], [1]),
                {"name": "SIZE"},
            ],
            "id": 5,
            "STOP": "x",
        }
        with self.assertRaises(BadRequest) as caught:
            read(request)
        self.assertEqual(
            [fault["input"] for fault in caught.exception.faults], ["id", "STOP", "TEXT", "SIZE", "SAMPLE"]
        )

    def test_read_body_many_faults(self) -> None:
        """A body with faults by the thousand gets as many as a person can read."""
        names = {str(number): 1 for number in range(5000)}
        for request in ({"inputs": [{}] * 5000}, {"inputs": [None] * 5000}, names, {"parameters": names, **names}):
            with self.subTest(request=str(request)[:30]):
                with self.assertRaises(BadRequest) as caught:
                    read(request)
                self.assertEqual(len(caught.exception.faults), MAX_FAULTS)

    def test_read_body_mutated(self) -> None:
        """Whatever is done to a good body, it is read as the schema says, or refused with BadRequest."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        good = [
            bare(MAX_NEW_TOKENS=5, TEMPERATURE=0.5, SAMPLE=True, STOP=["a"], SIZE=[1, 2], BOXES=[[1, 2, 3, 4]]),
            enveloped(MAX_NEW_TOKENS=[5], SAMPLE=[False], BOXES=[1, 2, 3, 4]),
            tensors(
                tensor("SIZE", [1, 2], [2]), tensor("BOXES", [[1, 2, 3, 4]], [1, 4]), id="x", outputs=[{"name": "a"}]
            ),
        ]
        sources = good + [body for _, body, _ in BAD_BODIES if 0 < len(body) < 500]
        for _ in range(5000):
            body = mutated(rng, rng.choice(sources))
            with self.subTest(TEST_SEED=seed, body=body):
                self.assert_read_or_refused(lambda body=body: read_body(body, APP))

    def test_read_query_mutated(self) -> None:
        """Whatever is done to a good query, it is read as the schema says, or refused with BadRequest."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        source = (
            b"TEXT=a%20b+%C3%A9&MAX_NEW_TOKENS=5&SAMPLE=1&TEMPERATURE=.5&STOP=[%22a%22]&SIZE=[1,2]&token=x&progress=1"
        )
        for _ in range(3000):
            query = mutated(rng, source).decode("latin-1")
            with self.subTest(TEST_SEED=seed, query=query):
                self.assert_read_or_refused(lambda query=query: read_query(query, APP)[0])

    def assert_read_or_refused(self, reader: Callable[[], Call]) -> None:
        try:
            call = reader()
        except BadRequest as refused:
            json.dumps(refused.body(), ensure_ascii=False).encode()
            return
        types = {"TEXT": str, "MAX_NEW_TOKENS": int, "TEMPERATURE": float, "SAMPLE": bool}
        self.assertIn("TEXT", call.inputs)
        for name, value in call.inputs.items():
            self.assertIs(type(value), types.get(name, list if name != "STOP" or isinstance(value, list) else str))
        json.dumps(call.inputs, ensure_ascii=False, allow_nan=False).encode()


def mutated(rng: random.Random, source: bytes) -> bytes:
    body = bytearray(source)
    pieces = [b"", b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":", b"null", b"true", b"5", b"-1", b"1e999", b"\xff"]
    pieces += [
        b"\\ud800",
        b"TEXT",
        b'"inputs":',
        b'"parameters":{',
        b'"id":',
        b"%",
        b"&",
        b"=",
        b"%ff",
        b"\0",
        b"9" * 400,
    ]
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(body) + 1)
        body[place : place + rng.choice([0, 1, 1, 2, 8])] = rng.choice(pieces)
    return bytes(body)


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


class FakeArray:
    """As much of numpy's array as we look at."""

    def __init__(self, dtype: str, shape: tuple[int, ...], elements: object) -> None:
        self.dtype = dtype
        self.shape = shape
        self.elements = elements

    def tolist(self) -> object:
        return self.elements


class FakeTensor(FakeArray):
    """As much of torch's tensor as we look at; one that needs gradients gives nothing before `detach`."""

    def tolist(self) -> object:
        raise RuntimeError("detach first")

    def detach(self) -> FakeArray:
        return FakeArray(self.dtype, self.shape, self.elements)


class Answers(unittest.TestCase):
    def outputs(self, result: dict[str, object], requested: list[str] | None = None) -> list[dict[str, Any]]:
        return infer_response(result, model="m", id=None, requested=requested)["outputs"]

    def test_infer_response_body(self) -> None:
        """A v2 body names model and version, and echoes an id where there was one."""
        outputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]}]
        body = infer_response({"text": "x"}, model="m", id=None, requested=None)
        self.assertEqual(body, {"model_name": "m", "model_version": "1", "outputs": outputs})
        body = infer_response({"text": "x"}, model="m", id="req-1", requested=None)
        self.assertEqual(body, {"model_name": "m", "model_version": "1", "id": "req-1", "outputs": outputs})

    def test_infer_response_datatypes(self) -> None:
        """A value's type gives datatype, shape and flat data; what has none goes out as JSON text."""
        table: list[tuple[object, str, list[int], list[object]]] = [
            (True, "BOOL", [1], [True]),
            (5, "INT64", [1], [5]),
            (0.5, "FP64", [1], [0.5]),
            ("x", "BYTES", [1], ["x"]),
            (b"x\xff", "BYTES", [1], ["x\ufffd"]),
            ([1, 2], "INT64", [2], [1, 2]),
            ([True, False], "BOOL", [2], [True, False]),
            ([1, 2.5], "FP64", [2], [1.0, 2.5]),
            (["a", "b"], "BYTES", [2], ["a", "b"]),
            (("a", "b"), "BYTES", [2], ["a", "b"]),
            ([[1, 2, 3], [4, 5, 6]], "INT64", [2, 3], [1, 2, 3, 4, 5, 6]),
            ([[[0.5]]], "FP64", [1, 1, 1], [0.5]),
            ([], "FP64", [0], []),
            ([[], []], "FP64", [2, 0], []),
            (None, "BYTES", [1], ["null"]),
            ({"a": [1, {"é": None}]}, "BYTES", [1], ['{"a": [1, {"é": null}]}']),
            ([[1], [2, 3]], "BYTES", [1], ["[[1], [2, 3]]"]),
            ([1, "a"], "BYTES", [1], ['[1, "a"]']),
            ([True, 1], "BYTES", [1], ["[true, 1]"]),
            ([1, None], "BYTES", [1], ["[1, null]"]),
            ([{"a": 1}], "BYTES", [1], ['[{"a": 1}]']),
            ([[1], 2], "BYTES", [1], ["[[1], 2]"]),
        ]
        for value, datatype, shape, data in table:
            with self.subTest(value=value):
                (output,) = self.outputs({"X": value})
                self.assertEqual(output, {"name": "X", "datatype": datatype, "shape": shape, "data": data})
                self.assertEqual([type(element) for element in output["data"]], [type(element) for element in data])

    def test_infer_response_arrays(self) -> None:
        """Arrays go out by their dtype, flat and with their true shape; scalars of theirs have shape [1]."""
        table: list[tuple[object, str, list[int], list[object]]] = [
            (FakeArray("float32", (2, 2), [[1.0, 2.0], [3.0, 4.0]]), "FP32", [2, 2], [1.0, 2.0, 3.0, 4.0]),
            (FakeArray("float64", (), 0.5), "FP64", [1], [0.5]),
            (FakeArray("float16", (1,), [0.5]), "FP16", [1], [0.5]),
            (FakeArray("int8", (2,), [1, 2]), "INT8", [2], [1, 2]),
            (FakeArray("uint64", (1,), [2**64 - 1]), "UINT64", [1], [2**64 - 1]),
            (FakeArray("bool", (1,), [True]), "BOOL", [1], [True]),
            (FakeArray("float32", (0, 3), []), "FP32", [0, 3], []),
            (FakeArray("<U5", (2,), ["a", "b"]), "BYTES", [2], ["a", "b"]),
            (FakeArray("|S5", (1,), [b"a"]), "BYTES", [1], ["a"]),
            (FakeArray("object", (2,), ["a", {"b": 1}]), "BYTES", [1], ['["a", {"b": 1}]']),
            (FakeTensor("torch.bfloat16", (2,), [1.0, 2.0]), "BF16", [2], [1.0, 2.0]),
            (FakeTensor("torch.int64", (1, 1), [[5]]), "INT64", [1, 1], [5]),
            ([FakeArray("float32", (2,), [1.0, 2.0])] * 2, "FP64", [2, 2], [1.0, 2.0, 1.0, 2.0]),
            ({"a": FakeTensor("torch.int64", (1,), [5])}, "BYTES", [1], ['{"a": [5]}']),
        ]
        for value, datatype, shape, data in table:
            with self.subTest(datatype=datatype, data=data):
                self.assertEqual(
                    self.outputs({"X": value}), [{"name": "X", "datatype": datatype, "shape": shape, "data": data}]
                )

    def test_infer_response_requested(self) -> None:
        """Only the requested outputs go out, in the order of the request; an unknown one is 400."""
        result: dict[str, object] = {"a": 1, "b": 2, "c": 3}
        self.assertEqual([output["name"] for output in self.outputs(result)], ["a", "b", "c"])
        self.assertEqual([output["name"] for output in self.outputs(result, ["c", "a"])], ["c", "a"])
        with self.assertRaisesRegex(BadRequest, '"d" is not an output of this app; it gave: a, b, c'):
            self.outputs(result, ["a", "d"])

    def test_infer_response_unsendable(self) -> None:
        """What JSON cannot hold raises ValueError that names the output."""
        loop: list[object] = []
        loop.append(loop)
        nan, inf = float("nan"), float("inf")
        table = [
            nan,
            [1, -inf],
            FakeArray("float32", (1,), [nan]),
            {"a": nan},
            object(),
            [object()],
            {(1, 2): 3},
            1j,
            loop,
        ]
        for value in [*table, [0.5, 10**400]]:
            with self.subTest(value=str(type(value))), self.assertRaisesRegex(ValueError, "output 'X' cannot be sent"):
                self.outputs({"good": 1, "X": value})

    def test_generate_response_stream(self) -> None:
        """Strings are joined in order; other values are the last event's that has them."""
        events: list[dict[str, object]] = [
            {"OUT": "To ", "n": 1, "why": None},
            {"OUT": "make", "n": 2, "why": None},
            {"OUT": " it", "n": 3, "why": "stop"},
        ]
        self.assertEqual(
            generate_response(events, model="m"),
            {"OUT": "To make it", "n": 3, "why": "stop", "model_name": "m", "model_version": "1"},
        )
        self.assertEqual(generate_response([], model="m"), {"model_name": "m", "model_version": "1"})

    def test_generate_response_null(self) -> None:
        """null in a string's place adds nothing to it."""
        for events in ([{"t": None}, {"t": "a"}, {"t": "b"}], [{"t": "a"}, {"t": "b"}, {"t": None}]):
            with self.subTest(events=events):
                self.assertEqual(generate_response(events, model="m")["t"], "ab")

    def test_generate_response_own_keys(self) -> None:
        """The app's own model_name, model_version and id win."""
        own = {"model_name": "mine", "model_version": "7", "id": 5}
        self.assertEqual(generate_response([own], model="m", id="req-1"), own)
        self.assertEqual(generate_response([{"a": 1}], model="m", id="req-1")["id"], "req-1")

    def test_metadata(self) -> None:
        """Server and model tell what the protocol asks for, in its own datatypes."""
        self.assertEqual(server_metadata(), {"name": "inferless-shim", "version": __version__, "extensions": []})
        raw = {"A": "STRING", "B": "INT", "C": "BOOLEAN", "D": "FP32", "E": "BYTES"}
        inputs = zip("ABCDE", ["BYTES", "INT64", "BOOL", "FP32", "BYTES"], strict=True)
        self.assertEqual(
            model_metadata("m", schema_of(**raw)),
            {
                "name": "m",
                "versions": ["1"],
                "platform": "inferless",
                "inputs": [{"name": name, "datatype": datatype, "shape": [1]} for name, datatype in inputs],
                "outputs": [],
            },
        )
        self.assertEqual(model_metadata("m", APP)["inputs"][-1]["shape"], [-1, 4])


if __name__ == "__main__":
    unittest.main()
