"""Answers out, as tables: tensors in JSON and as bytes, flat bodies, what server and model say of themselves."""

from __future__ import annotations

import json
import struct
import unittest
from typing import Any

from inferless_shim import __version__
from inferless_shim.answers import (
    flat_response,
    generate_response,
    index_entry,
    infer_response,
    learn,
    model_config,
    model_metadata,
    server_metadata,
)
from inferless_shim.errors import BadRequest
from inferless_shim.outputs import Answer
from inferless_shim.protocol import Call
from inferless_shim.schema import Input, Rules, Schema, compile_schema
from tests.bad_bodies import SCHEMA

APP = compile_schema(SCHEMA, Rules())
JSON = "application/json; charset=utf-8"
NAN, INF = float("nan"), float("inf")
KINDS = {"TEXT": "STRING", "N": "INT", "YES": "BOOLEAN", "X": "FP32", "B": "BYTES", "ANY": "JSON", "H": "BF16"}
V2_KINDS = {"TEXT": "BYTES", "N": "INT64", "YES": "BOOL", "X": "FP32", "B": "BYTES", "ANY": "BYTES", "H": "BF16"}


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


class Endless:
    """A tolist that never comes to an end."""

    def tolist(self) -> object:
        return [Endless()]


class Memory(bytearray):
    """As much of a numpy array of bytes as we look at, where its own memory can be read."""

    def __init__(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> None:
        super().__init__(data)
        self.dtype = dtype
        self.shape = shape

    def tolist(self) -> object:
        raise AssertionError("element by element")


class Numbers(list[Any]):
    """A list of a class of its own."""


def generated(results: list[Any], id: str | None = None) -> dict[str, Any]:
    return json.loads(generate_response(results, model="m", id=id).body)


def split(answer: Answer) -> tuple[dict[str, Any], list[bytes]]:
    """Return the JSON of a binary answer, and each output's bytes, None for one in JSON."""
    ((name, length),) = answer.fields
    assert (name, answer.content_type) == ("Inference-Header-Content-Length", "application/octet-stream")
    head, rest = json.loads(answer.body[: int(length)]), answer.body[int(length) :]
    blobs = []
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        assert (size is None) == ("data" in output)
        if size is not None:
            blobs.append(rest[:size])
            rest = rest[size:]
    assert rest == b""
    return head, blobs


class Answers(unittest.TestCase):
    def answer(self, result: object, **call: Any) -> Answer:
        return infer_response(result, model="m", call=Call(**{"id": None, "inputs": {}, **call}))

    def outputs(self, result: object, requested: list[str] | None = None) -> list[dict[str, Any]]:
        answer = self.answer(result, outputs=None if requested is None else dict.fromkeys(requested, False))
        self.assertEqual((answer.content_type, answer.fields), (JSON, ()))
        return json.loads(answer.body)["outputs"]

    def binary(self, value: object) -> tuple[str, list[int], bytes]:
        """Return datatype, shape and bytes of an output."""
        head, (blob,) = split(self.answer({"X": value}, binary=True))
        (output,) = head["outputs"]
        self.assertEqual(output.keys(), {"name", "datatype", "shape", "parameters"})
        return output["datatype"], output["shape"], blob

    def test_infer_response_body(self) -> None:
        """A v2 body names model and version, and echoes an id where there was one."""
        outputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["é"]}]
        body = {"model_name": "m", "model_version": "1", "outputs": outputs}
        self.assertEqual(json.loads(self.answer({"text": "é"}).body), body)
        self.assertEqual(json.loads(self.answer({"text": "é"}, id="req-1").body), {**body, "id": "req-1"})

    def test_infer_response_of_no_dict(self) -> None:
        """What is no dict is called `result`."""
        for value, datatype in (("x", "BYTES"), (None, "BYTES"), ([1], "INT64"), (True, "BOOL")):
            (output,) = self.outputs(value)
            self.assertEqual((output["name"], output["datatype"]), ("result", datatype))
        self.assertEqual(self.outputs({}), [])

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

    def test_infer_response_lists(self) -> None:
        """Tuples, sets, arrays and lists of any class are lists, however deep; mappings and bytes are not."""
        table: list[tuple[object, str, list[int], list[object]]] = [
            ((1, 2), "INT64", [2], [1, 2]),
            ([(1, 2), (3, 4)], "INT64", [2, 2], [1, 2, 3, 4]),
            ({1}, "INT64", [1], [1]),
            (Numbers([1, 2]), "INT64", [2], [1, 2]),
            ([Numbers([1]), Numbers([2])], "INT64", [2, 1], [1, 2]),
            ([Numbers([(1,)])], "INT64", [1, 1, 1], [1]),
            (bytearray(b"caf\xc3\xa9"), "BYTES", [1], ["café"]),
            ([b"a", "b"], "BYTES", [2], ["a", "b"]),
            ({"a": (b"x", {1})}, "BYTES", [1], ['{"a": ["x", [1]]}']),
            ("\ud800", "BYTES", [1], ["\ufffd"]),
        ]
        for value, datatype, shape, data in table:
            with self.subTest(value=value):
                self.assertEqual(
                    self.outputs({"X": value}), [{"name": "X", "datatype": datatype, "shape": shape, "data": data}]
                )

    def test_infer_response_requested(self) -> None:
        """Only the requested outputs go out, in the order of the request; an unknown one is 400."""
        result: dict[str, object] = {"a": 1, "b": 2, "c": 3}
        self.assertEqual([output["name"] for output in self.outputs(result)], ["a", "b", "c"])
        self.assertEqual([output["name"] for output in self.outputs(result, ["c", "a"])], ["c", "a"])
        for binary in (False, True):
            with self.assertRaisesRegex(BadRequest, '"d" is not an output of this app; it gave: a, b, c'):
                self.answer(result, outputs={"a": binary, "d": binary})

    def test_infer_response_binary(self) -> None:
        """A binary output has a size and no data; the bytes follow the JSON in the order of the outputs."""
        result = {"a": "é", "b": [1, 2], "c": [0.5, -2.0], "d": True}
        answer = self.answer(result, id="seven", outputs={"c": True, "b": False, "a": True})
        head, blobs = split(answer)
        self.assertEqual(
            head,
            {
                "model_name": "m",
                "model_version": "1",
                "id": "seven",
                "outputs": [
                    {"name": "c", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}},
                    {"name": "b", "datatype": "INT64", "shape": [2], "data": [1, 2]},
                    {"name": "a", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
                ],
            },
        )
        self.assertEqual(blobs, [struct.pack("<2d", 0.5, -2.0), "\2\0\0\0é".encode()])
        self.assertEqual(len(split(self.answer(result, binary=True))[1]), 4)

    def test_infer_response_binary_of_nothing(self) -> None:
        """An output without elements is binary with no bytes; an answer without outputs is JSON."""
        self.assertEqual(self.binary([]), ("FP64", [0], b""))
        self.assertEqual(self.binary(FakeArray("int8", (0, 3), [])), ("INT8", [0, 3], b""))
        self.assertEqual(self.answer({}, binary=True).fields, ())

    def test_infer_response_binary_datatypes(self) -> None:
        """The bytes are those of the datatype; what has none is JSON text, and bytes stay as they are."""
        table: list[tuple[object, str, list[int], bytes]] = [
            (True, "BOOL", [1], b"\1"),
            (5, "INT64", [1], b"\5" + bytes(7)),
            (0.5, "FP64", [1], struct.pack("<d", 0.5)),
            ([1, 0.5], "FP64", [2], struct.pack("<2d", 1, 0.5)),
            ([NAN, INF, -INF], "FP64", [3], struct.pack("<3d", NAN, INF, -INF)),
            ("a", "BYTES", [1], b"\1\0\0\0a"),
            (b"\xff\0", "BYTES", [1], b"\2\0\0\0\xff\0"),
            ([["a"], [bytearray(b"\xfe")]], "BYTES", [2, 1], b"\1\0\0\0a\1\0\0\0\xfe"),
            ("\ud800", "BYTES", [1], b"\3\0\0\0\xef\xbf\xbd"),
            (None, "BYTES", [1], b"\4\0\0\0null"),
            ({"a": 1}, "BYTES", [1], b'\x08\0\0\0{"a": 1}'),
            (FakeArray("float32", (2, 1), [[1.0], [NAN]]), "FP32", [2, 1], struct.pack("<2f", 1, NAN)),
            (FakeArray("float16", (), 1.0), "FP16", [1], b"\0<"),
            (FakeArray("uint16", (2,), [1, 258]), "UINT16", [2], b"\1\0\2\1"),
            (FakeArray("bool", (2,), [True, False]), "BOOL", [2], b"\1\0"),
            (FakeArray("|S5", (1,), [b"\xff"]), "BYTES", [1], b"\1\0\0\0\xff"),
            (FakeTensor("torch.bfloat16", (2,), [1.0, INF]), "BF16", [2], b"\x80\x3f\x80\x7f"),
            (FakeTensor("torch.int8", (1,), [-1]), "INT8", [1], b"\xff"),
            (Memory(b"\1\2\3", "uint8", (3, 1)), "UINT8", [3, 1], b"\1\2\3"),
            (Memory(b"\1", "uint8", ()), "UINT8", [1], b"\1"),
        ]
        for value, datatype, shape, data in table:
            with self.subTest(datatype=datatype, data=data):
                self.assertEqual(self.binary(value), (datatype, shape, data))

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

    def test_infer_response_binary_unsendable(self) -> None:
        """What has neither a datatype nor JSON text, or does not fit its datatype, raises ValueError that names it."""
        for value in (object(), {"a": NAN}, [0.5, 10**400], FakeArray("int8", (1,), [300]), Endless()):
            with self.subTest(str(type(value))), self.assertRaisesRegex(ValueError, "output 'X' cannot be sent"):
                self.answer({"good": 1, "X": value}, binary=True)

    def test_integers_beyond_64_bits(self) -> None:
        """What INT64 cannot hold is UINT64, and what that cannot hold is JSON text, also as binary data."""
        for value, datatype in ((2**63 - 1, "INT64"), (2**63, "UINT64"), (2**64, "BYTES"), ([-1, 2**63], "BYTES")):
            for binary in (False, True):
                with self.subTest(value=value, binary=binary):
                    body = json.loads(self.answer({"X": value}, binary=binary).body.partition(b"}]}")[0] + b"}]}")
                    self.assertEqual(body["outputs"][0]["datatype"], datatype)

    def test_infer_response_not_finite(self) -> None:
        """The error of a NaN in JSON names the way out."""
        with self.assertRaisesRegex(ValueError, "NaN or Infinity.*ask for it as binary data"):
            self.answer({"X": NAN})

    def test_flat_response(self) -> None:
        """An app's dict is the JSON that it is, and so is anything else."""
        for value in ({"a": [1, None]}, {}, [1, "é"], "x", None, True, 0.5):
            answer = flat_response(value)
            self.assertEqual((json.loads(answer.body), answer.content_type, answer.fields), (value, JSON, ()))

    def test_generate_response_stream(self) -> None:
        """Strings are joined in order; other values are the last event's that has them."""
        events: list[dict[str, object]] = [
            {"OUT": "To ", "n": 1, "why": None},
            {"OUT": "make", "n": 2, "why": None},
            {"OUT": " it", "n": 3, "why": "stop"},
        ]
        self.assertEqual(
            generated(events),
            {"OUT": "To make it", "n": 3, "why": "stop", "model_name": "m", "model_version": "1"},
        )
        self.assertEqual(generated([]), {"model_name": "m", "model_version": "1"})

    def test_generate_response_null(self) -> None:
        """null in a string's place adds nothing to it."""
        for events in ([{"t": None}, {"t": "a"}, {"t": "b"}], [{"t": "a"}, {"t": "b"}, {"t": None}]):
            with self.subTest(events=events):
                self.assertEqual(generated(events)["t"], "ab")

    def test_generate_response_own_keys(self) -> None:
        """The app's own model_name, model_version and id win."""
        own = {"model_name": "mine", "model_version": "7", "id": 5}
        self.assertEqual(generated([own], id="req-1"), own)
        self.assertEqual(generated([{"a": 1}], id="req-1")["id"], "req-1")

    def test_generate_response_of_no_dict(self) -> None:
        """What is no dict is called `result`."""
        self.assertEqual(generated([["a"]])["result"], ["a"])


class Metadata(unittest.TestCase):
    def test_server_metadata(self) -> None:
        """The server says what it is, and which extensions it has."""
        metadata = server_metadata()
        extensions = metadata.pop("extensions")
        self.assertEqual(metadata, {"name": "inferless-shim", "version": __version__})
        self.assertTrue({"binary_tensor_data", "model_repository", "generate"} <= set(extensions))
        self.assertFalse({"statistics", "classification", "system_shared_memory"} & set(extensions))

    def test_model_metadata(self) -> None:
        """A model says what it takes and gives, in the protocol's own datatypes."""
        schema = Schema({name: Input(name, datatype, (1,), required=True) for name, datatype in KINDS.items()}, [])
        self.assertEqual(
            model_metadata("m", schema, {"OUT": ("BYTES", [1]), "V": ("FP32", [-1, -1])}),
            {
                "name": "m",
                "versions": ["1"],
                "platform": "inferless",
                "inputs": [{"name": name, "datatype": kind, "shape": [1]} for name, kind in V2_KINDS.items()],
                "outputs": [
                    {"name": "OUT", "datatype": "BYTES", "shape": [1]},
                    {"name": "V", "datatype": "FP32", "shape": [-1, -1]},
                ],
            },
        )
        self.assertEqual(model_metadata("m", APP, {})["inputs"][-1]["shape"], [-1, 4])

    def test_model_config(self) -> None:
        """The configuration says the same in Triton's words, and how the model runs."""
        config = model_config("m", APP, {"OUT": ("BYTES", [1])}, batch_size=4)
        inputs = {each.pop("name"): each for each in config.pop("input")}
        self.assertEqual(inputs["TEXT"], {"data_type": "TYPE_STRING", "dims": [1], "optional": False})
        self.assertEqual(inputs["BOXES"], {"data_type": "TYPE_FP64", "dims": [-1, 4], "optional": True})
        self.assertEqual(inputs["SAMPLE"]["data_type"], "TYPE_BOOL")
        self.assertEqual(
            config,
            {
                "name": "m",
                "platform": "inferless",
                "max_batch_size": 4,
                "output": [{"name": "OUT", "data_type": "TYPE_STRING", "dims": [1]}],
                "model_transaction_policy": {"decoupled": False},
            },
        )
        self.assertTrue(model_config("m", APP, {}, streaming=True)["model_transaction_policy"]["decoupled"])

    def test_learn(self) -> None:
        """Read off an answer: a single value has shape [1], every list's length may vary; what says nothing is left."""
        table: list[tuple[object, tuple[str, list[int]] | None]] = [
            ("x", ("BYTES", [1])),
            (5, ("INT64", [1])),
            (True, ("BOOL", [1])),
            ([5], ("INT64", [-1])),
            ([1.5, 2.5], ("FP64", [-1])),
            ([[1], [2]], ("INT64", [-1, -1])),
            ({"a": 1}, ("BYTES", [1])),
            ([[1], [2, 3]], ("BYTES", [1])),
            (FakeArray("float32", (1,), [1.0]), ("FP32", [-1])),
            (FakeArray("float32", (), 1.0), ("FP32", [1])),
            (FakeTensor("torch.int8", (2, 2), [[1, 2], [3, 4]]), ("INT8", [-1, -1])),
            (None, None),
            ([], None),
            (object(), None),
            (Endless(), None),
            ([NAN], ("FP64", [-1])),
        ]
        for value, learned in table:
            with self.subTest(value=str(value)[:40]):
                self.assertEqual(
                    learn({"X": value, "Y": 1}), {"Y": ("INT64", [1])} | ({"X": learned} if learned else {})
                )
        self.assertEqual(learn("x"), {"result": ("BYTES", [1])})
        self.assertEqual(learn({1: "x"}), {"1": ("BYTES", [1])})

    def test_index_entry(self) -> None:
        """A line of the repository's index."""
        entry = {"name": "m", "version": "1", "state": "READY", "reason": ""}
        self.assertEqual(index_entry("m", "READY", ""), entry)


if __name__ == "__main__":
    unittest.main()
