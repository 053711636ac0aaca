"""Requests in, as tables; no HTTP."""

from __future__ import annotations

import json
import os
import random
import unittest
from collections.abc import Callable

from inferless_shim.errors import BadRequest
from inferless_shim.protocol import Call
from inferless_shim.schema import MAX_FAULTS, Input, Rules, Schema, compile_schema
from tests.bad_bodies import BAD_BODIES, SCHEMA, bare, enveloped, tensor, tensors, text_of
from tests.support import about, read_body

APP = compile_schema(SCHEMA, Rules())


def schema_of(*, batched: bool = False, required: bool = False, **datatypes: str) -> Schema:
    """Return a schema of scalars."""
    raw = {name: {"datatype": datatype, "shape": [1], "required": required} for name, datatype in datatypes.items()}
    return compile_schema(raw, Rules(batched=batched))


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
        schema = compile_schema(raw, Rules())
        self.assertEqual(read({"inputs": ["a", "b"]}, schema).inputs, {"inputs": ["a", "b"]})
        self.assertEqual(read({"inputs": []}, schema).inputs, {"inputs": []})
        self.assertEqual(read({"inputs": [tensor("inputs", ["a", "b"], [2])]}, schema).inputs, {"inputs": ["a", "b"]})

    def test_read_body_own_json(self) -> None:
        """An app's own inputs of any JSON win over the envelopes of their names, whatever is sent."""
        names = ("inputs", "parameters")
        schema = Schema({name: Input(name, "JSON", (1,), required=False) for name in names}, [])
        for request in ({"inputs": [{"name": "a", "data": []}]}, {"parameters": {"x": 1}}, {"inputs": {}}):
            with self.subTest(request=request):
                self.assertEqual(read(request, schema), Call(None, request))

    def test_read_body_outputs(self) -> None:
        """The outputs that a v2 request names are passed on, and how they go out; none named are all."""
        a, b = {"name": "a"}, {"name": "b", "parameters": {}}
        yes, no = {"parameters": {"binary_data": True}}, {"parameters": {"binary_data": False}}
        table: list[tuple[object, object, dict[str, bool] | None, bool]] = [
            (None, None, None, False),
            ([], None, None, False),
            ([a, b], None, {"a": False, "b": False}, False),
            ([a | yes, b], {}, {"a": True, "b": False}, False),
            (None, {"binary_data_output": True}, None, True),
            ([a | no, b], {"binary_data_output": True}, {"a": False, "b": True}, True),
            ([a | yes, b], {"binary_data_output": False, "priority": 1}, {"a": True, "b": False}, False),
            ([b, a, b], {"binary_data_output": None}, {"b": False, "a": False}, False),
            ([a | {"parameters": {"classification": 0, "x": {}}}], None, {"a": False}, False),
        ]
        for outputs, parameters, names, binary in table:
            with self.subTest(outputs=outputs, parameters=parameters):
                request = {"inputs": [tensor("TEXT", ["x"], [1])], "outputs": outputs, "parameters": parameters}
                call = read(request)
                self.assertEqual((call.outputs, call.binary), (names, binary))
                self.assertEqual(list(call.outputs or ()), list(names or ()))

    def test_read_body_bad_parameters(self) -> None:
        """Parameters that are read have a type; what is not supported is refused rather than left out."""
        table: list[tuple[dict[str, object], tuple[str, ...]]] = [
            ({"parameters": 5}, ("parameters must be an object",)),
            ({"parameters": {"binary_data_output": 1}}, ("parameters.binary_data_output must be true or false",)),
            ({"outputs": [{"name": "a", "parameters": []}]}, ("outputs[0].parameters must be an object",)),
            (
                {"outputs": [{"name": "a", "parameters": {"binary_data": "yes"}}]},
                ("outputs[0].parameters.binary_data must be true or false",),
            ),
            (
                {"outputs": [{"name": "a"}, {"name": "b", "parameters": {"classification": 3}}]},
                ('The classification of "b" is not supported', "outputs[1].parameters.classification"),
            ),
        ]
        for beside, words in table:
            with self.subTest(beside=beside), self.assertRaises(BadRequest) as caught:
                read({"inputs": [tensor("TEXT", ["x"], [1])], **beside})
            for word in words:
                self.assertIn(word, text_of(caught.exception.body()))

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
            with about(TEST_SEED=seed, body=body):
                assert_read_or_refused(self, lambda body=body: read_body(body, APP))


def assert_read_or_refused(case: unittest.TestCase, reader: Callable[[], Call]) -> None:
    """Check that a request is read as APP's schema says, or refused in words that can be sent."""
    try:
        call = reader()
    except BadRequest as refused:
        json.dumps(refused.body(), ensure_ascii=False).encode()
        return
    types = {"TEXT": str, "MAX_NEW_TOKENS": int, "TEMPERATURE": float, "SAMPLE": bool}
    case.assertIn("TEXT", call.inputs)
    for name, value in call.inputs.items():
        case.assertIs(type(value), types.get(name, list if name != "STOP" or isinstance(value, list) else str))
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


def binary(
    name: object, data: bytes, shape: object = (1,), datatype: object = "BYTES", /, **others: object
) -> tuple[dict[str, object], bytes]:
    """Return a tensor whose data follows the JSON, and that data."""
    sized: dict[str, object] = {"parameters": {"binary_data_size": len(data)}}
    return {"name": name, "shape": shape, "datatype": datatype, **sized, **others}, data


def text(words: str) -> bytes:
    return len(words.encode()).to_bytes(4, "little") + words.encode()


HELLO = binary("TEXT", text("hello"))
Binary = tuple[dict[str, object], bytes]


def read_binary(
    *sent: Binary, schema: Schema = APP, beside: dict[str, object] | None = None, rest: bytes = b"", length: str = ""
) -> Call:
    """Read a body of tensors, of which those with data in binary form have it after the JSON."""
    json_part = json.dumps({"inputs": [tensor for tensor, _ in sent], **(beside or {})}).encode()
    body = json_part + b"".join(data for _, data in sent) + rest
    return read_body(body, schema, length or str(len(json_part)))


# What is wrong, the tensors, words of the error.
BAD_BINARY: list[tuple[str, list[Binary], tuple[str, ...]]] = [
    ("no shape", [binary("TEXT", text("a"), None)], ("TEXT must be a binary tensor with a shape",)),
    ("bad shape", [binary("TEXT", text("a"), [-1])], ("TEXT must be a tensor whose shape is a list of lengths",)),
    (
        "no datatype",
        [binary("TEXT", text("a"), [1], None)],
        ("TEXT must be a binary tensor of a known datatype, got null",),
    ),
    (
        "unknown datatype",
        [binary("TEXT", text("a"), [1], "FP8")],
        ('known datatype, got the string "FP8"', "send one of"),
    ),
    ("datatype is a list", [binary("TEXT", text("a"), [1], [])], ("known datatype",)),
    ("data as well", [binary("TEXT", text("a"), [1], data=["a"])], ("data or binary data, got both",)),
    ("no name", [binary(5, text("a")), HELLO], ("inputs[0].name must be a string",)),
    ("unknown name", [HELLO, binary("TXT", text("a"))], ("did you mean TEXT?",)),
    ("given twice", [HELLO, HELLO], ('"TEXT" is given more than once',)),
    (
        "too few bytes",
        [HELLO, binary("SIZE", b"1234", [2], "INT64")],
        ("SIZE must be a binary INT64 tensor, got 4 bytes",),
    ),
    ("not UTF-8", [binary("TEXT", b"\1\0\0\0\xff")], ("TEXT must be a binary BYTES tensor", "UTF-8 at position 0")),
    ("NaN", [HELLO, binary("TEMPERATURE", b"\0\0\xc0\x7f", [1], "FP32")], ("got nan at position 0; send finite",)),
    (
        "a fraction for an integer",
        [HELLO, binary("MAX_NEW_TOKENS", b"\0\0\0?", [1], "FP32")],
        ("an integer, got the number 0.5",),
    ),
    ("a number for a string", [binary("TEXT", b"\1", [1], "UINT8")], ("TEXT must be a string, got the integer 1",)),
    ("a shape that does not fit", [HELLO, binary("SIZE", bytes(24), [3], "INT64")], ("SIZE", "a tensor of shape [3]")),
    (
        "more than there is",
        [HELLO, binary("SAMPLE", b"", [1], "BOOL", parameters={"binary_data_size": 1})],
        ("SAMPLE must be a tensor of 1 bytes of binary data, got 0", "Inference-Header-Content-Length"),
    ),
    ("a huge size", [HELLO, binary("SAMPLE", b"", [1], "BOOL", parameters={"binary_data_size": 2**62})], ("got 0",)),
    (
        "a size that is no number",
        [HELLO, binary("SAMPLE", b"", parameters={"binary_data_size": "1"})],
        ("binary_data_size that is the",),
    ),
    (
        "a negative size",
        [HELLO, binary("SAMPLE", b"", parameters={"binary_data_size": -1})],
        ("SAMPLE", "the integer -1"),
    ),
    ("a size that is true", [HELLO, binary("SAMPLE", b"", parameters={"binary_data_size": True})], ("SAMPLE", "true")),
    (
        "a huger size",
        [HELLO, binary("SAMPLE", b"", parameters={"binary_data_size": 10**4000})],
        ("SAMPLE", "an integer of"),
    ),
    (
        "parameters that are none",
        [HELLO, binary("SAMPLE", b"", parameters=[])],
        ("SAMPLE must be a tensor whose parameters",),
    ),
    ("shared memory", [binary("TEXT", b"", parameters={"shared_memory_region": "x"})], ("TEXT", "got no data")),
]


class ReadBinary(unittest.TestCase):
    """Triton's binary tensor data extension, on its way in."""

    def test_read_binary_mixed(self) -> None:
        """Tensors with binary data take it in turn; others may stand between them, with their data in JSON."""
        call = read_binary(
            HELLO,
            (tensor("SAMPLE", [True], [1], "BOOL"), b""),
            binary("SIZE", bytes.fromhex("8002000000000000 e001000000000000"), [2], "INT64"),
            binary("BOXES", bytes.fromhex("0000803f 00000040 00004040 00008040"), [1, 4], "FP32"),
            (tensor("MAX_NEW_TOKENS", [5], [1], "INT32"), b""),
            binary("STOP", text("é") + text(""), [2]),
            beside={"id": "seven", "parameters": {"binary_data_output": True}},
        )
        inputs = {"TEXT": "hello", "MAX_NEW_TOKENS": 5, "SAMPLE": True}
        inputs |= {"STOP": ["é", ""], "SIZE": [640, 480], "BOXES": [[1.0, 2.0, 3.0, 4.0]]}
        self.assertEqual(call, Call("seven", inputs, None, True))

    def test_read_binary_converts(self) -> None:
        """The tensor's datatype says how to read it, the schema what the app gets: any width, integers as numbers."""
        table: list[tuple[Binary, object]] = [
            (binary("TEMPERATURE", b"\5", [1], "INT8"), 5.0),
            (binary("TEMPERATURE", bytes.fromhex("0500000000000000"), [1], "INT64"), 5.0),
            (binary("TEMPERATURE", bytes.fromhex("003e"), [1], "FP16"), 1.5),
            (binary("TEMPERATURE", bytes.fromhex("c03f"), [1], "BF16"), 1.5),
            (binary("MAX_NEW_TOKENS", bytes.fromhex("000000000000f03f"), [1], "FP64"), 1),
            (binary("MAX_NEW_TOKENS", b"\xff" * 8, [1], "UINT64"), 2**64 - 1),
            (binary("SAMPLE", b"\0", [1], "BOOLEAN"), False),
            (binary("STOP", text("a"), [1], "STRING"), "a"),
            (binary("STOP", b"", [0]), []),
            (binary("TEMPERATURE", b"\1\0\0\0\0\0\0\0", [], "INT"), 1.0),
        ]
        for sent, value in table:
            with self.subTest(tensor=sent[0]):
                (got,) = (read_binary(HELLO, sent).inputs[name] for name in [str(sent[0]["name"])])
                self.assertEqual((got, type(got)), (value, type(value)))

    def test_read_binary_batch_of_one(self) -> None:
        """An app with BATCH_SIZE takes binary tensors of shape [1, 1]."""
        schema = schema_of(batched=True, TEXT="STRING")
        self.assertEqual(read_binary(binary("TEXT", text("x"), [1, 1]), schema=schema).inputs, {"TEXT": "x"})

    def test_read_binary_bad(self) -> None:
        """Every fault is a 400 that names the input and the remedy; what belongs to the tensors after it is theirs."""
        for label, sent, words in BAD_BINARY:
            with self.subTest(label):
                with self.assertRaises(BadRequest) as caught:
                    read_binary(*sent)
                told = text_of(caught.exception.body())
                self.assertLess(len(told), 1000)
                self.assertEqual(len(caught.exception.faults), 1 + ("TEXT is required" in told), told)
                for word in words:
                    self.assertIn(word, told)

    def test_read_binary_left_over(self) -> None:
        """Bytes that no tensor takes are a fault, in every form."""
        for call in (
            lambda: read_binary(HELLO, rest=b"12"),
            lambda: read_body(b'{"TEXT": "hello"}12', APP, "17"),
            lambda: read_body(b'{"parameters": {"TEXT": "hello"}}12', APP, "33"),
        ):
            with (
                self.subTest(call),
                self.assertRaisesRegex(BadRequest, "take all of the binary data, got 2 bytes more"),
            ):
                call()

    def test_read_binary_header_length(self) -> None:
        """The JSON's length is one decimal number, within the body; where there is no more, any form has one."""
        self.assertEqual(read_body(b'{"TEXT": "hello"}', APP, "17"), Call(None, {"TEXT": "hello"}))
        self.assertEqual(read_body(b'{"TEXT": "hello"}', APP, "0017"), Call(None, {"TEXT": "hello"}))
        table = [("18", "says 18, but the body has 17"), ("9" * 19, "says 9"), ("0", "The body is empty")]
        table += [(length, "not one decimal number") for length in ("", "-1", "+1", "1.0", "x", "5, 5", "²", "1" * 20)]
        for length, words in [*table, ("16", "not valid JSON")]:
            with self.subTest(length), self.assertRaisesRegex(BadRequest, words):
                read_body(b'{"TEXT": "hello"}', APP, length)

    def test_read_binary_without_a_header_length(self) -> None:
        """Without it the whole body is JSON, and a tensor that says it has binary data is told what is missing."""
        sent, data = HELLO
        body = json.dumps({"inputs": [sent]}).encode()
        with self.assertRaisesRegex(BadRequest, "got 0; send them after the JSON, .* Inference-Header-Content-Length"):
            read_body(body, APP)
        with self.assertRaisesRegex(BadRequest, "something follows the value"):
            read_body(body + b"}" + data, APP)

    def test_read_binary_many_faults(self) -> None:
        """A body with faults by the thousand gets as many as a person can read."""
        with self.assertRaises(BadRequest) as caught:
            read_binary(*[binary("TEXT", b"\xff", [1])] * 5000)
        self.assertEqual(len(caught.exception.faults), MAX_FAULTS)

    def test_read_binary_mutated(self) -> None:
        """Whatever is done to a good body, it is read as the schema says, or refused with BadRequest."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        sent = [HELLO, binary("SIZE", bytes(16), [2], "INT64"), binary("STOP", text("a") + text("b"), [2])]
        head = json.dumps({"inputs": [tensor for tensor, _ in sent]}).encode()
        data = b"".join(data for _, data in sent)
        for _ in range(3000):
            where = rng.randrange(3)
            body = (mutated(rng, head) if where == 0 else head) + (mutated(rng, data) if where == 1 else data)
            length = str(len(head) + rng.randrange(-2, 3)) if where == 2 else str(len(body) - len(data))
            with about(TEST_SEED=seed, body=body, length=length):
                assert_read_or_refused(self, lambda body=body, length=length: read_body(body, APP, length))


if __name__ == "__main__":
    unittest.main()
