"""Bodies that an inference route must refuse with 400, for an app that has SCHEMA; and what the answer must say.

Used twice: against `protocol.read_body` alone, and against a whole server over HTTP.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

SCHEMA: dict[str, dict[str, Any]] = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["How to make an omelette"]},
    "MAX_NEW_TOKENS": {"datatype": "INT32", "required": False, "shape": [1], "example": [64]},
    "TEMPERATURE": {"datatype": "FP32", "required": False, "shape": [1], "example": [0.7]},
    "SAMPLE": {"datatype": "BOOL", "required": False, "shape": [1], "example": [True]},
    "STOP": {"datatype": "BYTES", "required": False, "shape": [-1], "example": ["\n\n", "END"]},
    "SIZE": {"datatype": "INT64", "required": False, "shape": [2], "example": [640, 480]},
    "BOXES": {"datatype": "FP64", "required": False, "shape": [-1, 4], "example": [[0, 0, 1, 1]]},
}


def bare(**others: object) -> bytes:
    """Return a body that would be good without `others`."""
    return json.dumps({"TEXT": "hello", **others}).encode()


def enveloped(**others: object) -> bytes:
    return json.dumps({"parameters": {"TEXT": "hello", **others}}).encode()


def tensors(*others: object, **beside: object) -> bytes:
    """Return a v2 body that would be good without `others` among its tensors, and without `beside` at its side."""
    text = {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["hello"]}
    return json.dumps({"inputs": [text, *others], **beside}).encode()


def tensor(name: object, data: object, shape: object = None, datatype: str = "FP64") -> dict[str, object]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def text_of(body: dict[str, Any]) -> str:
    """Return all that an error body says, in one line."""
    faults = [text for fault in body.get("faults", ()) for text in fault.values()]
    return " | ".join([body["error"], *faults])


# Each: what RFC 8259 leaves open, or what costs more than it looks; a value that has it; a word of its error.
DOUBTFUL: list[tuple[str, bytes, str]] = [
    ("NaN", b"NaN", "NaN"),
    ("Infinity", b"Infinity", "Infinity"),
    ("-Infinity", b"-Infinity", "-Infinity"),
    ("1e400", b"1e400", "1e400"),
    ("-1E+400", b"-1E+400", "-1E+400"),
    ("a float of 400 digits", b"1" * 400 + b".5", "no float can hold"),
    ("a key twice", b'{"a": 1, "b": 2, "a": 1}', "twice"),
    ("a key twice, once escaped", rb'{"a": 1, "\u0061": 1}', "twice"),
    ("a high surrogate", rb'"\ud83d"', "surrogate"),
    ("a low surrogate", rb'"\ude00"', "surrogate"),
    ("a surrogate in a key", rb'{"\ud83d": 1}', "surrogate"),
    ("an integer of 5,000 digits", b"9" * 5000, "4,300 digits"),
    ("an integer of 900,000 digits", b"-" + b"9" * 900_000, "4,300 digits"),
    ("100 integers of 5,000 digits", b"[" + b",".join([b"9" * 5000] * 100) + b"]", "4,300 digits"),
    ("100,000 brackets", b"[" * 100_000, "64 deep"),
    ("100,000 brackets, closed", b"[" * 100_000 + b"]" * 100_000, "64 deep"),
    ("100,000 braces", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "64 deep"),
    ("100,000 brackets behind a string of them", b'["[[[\\"", ' + b"[" * 100_000, "64 deep"),
]
HEADER_LENGTH = "Inference-Header-Content-Length"


def doubtful_bodies(value: bytes) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return `value` in every place that a body has for one: the body, and the fields that it needs."""
    tensor = b'{"name": "TEXT", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}'
    head = b'{"inputs": [%b], "parameters": {"a": %b}}' % (tensor, value)
    return {
        "bare": (b'{"TEXT": "hello", "STOP": [%b]}' % value, {}),
        "alone": (value, {}),
        "enveloped": (b'{"parameters": {"TEXT": "hello", "TEMPERATURE": %b}}' % value, {}),
        "beside the envelope": (b'{"parameters": {"TEXT": "hello"}, "id": %b}' % value, {}),
        "a tensor": (b'{"inputs": [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": [%b]}]}' % value, {}),
        "a tensor's shape": (b'{"inputs": [{"name": "TEXT", "shape": [%b], "data": ["hello"]}]}' % value, {}),
        "in front of binary data": (head + b"\5\0\0\0hello", {HEADER_LENGTH: str(len(head))}),
    }


# Each: what is wrong, the tensor's name and datatype, its bytes, a word of its error.
DOUBTFUL_TENSORS: list[tuple[str, str, str, bytes, str]] = [
    ("NaN", "TEMPERATURE", "FP32", struct.pack("<f", math.nan), "nan"),
    ("Infinity", "TEMPERATURE", "FP64", struct.pack("<d", math.inf), "inf"),
    ("-Infinity", "TEMPERATURE", "FP16", struct.pack("<e", -math.inf), "-inf"),
    ("NaN in BF16", "TEMPERATURE", "BF16", b"\xc0\x7f", "nan"),
    ("a surrogate", "TEXT", "BYTES", b"\3\0\0\0\xed\xa0\x80", "UTF-8"),
    ("an overlong NUL", "TEXT", "BYTES", b"\2\0\0\0\xc0\x80", "UTF-8"),
    ("a length of 4 GiB", "TEXT", "BYTES", b"\xff\xff\xff\xffhello", "cut short"),
    ("a boolean of 2", "SAMPLE", "BOOL", b"\2", "the byte 2"),
]


def doubtful_tensor(name: str, datatype: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a body with a binary tensor that would be good but for its data, and the fields that it needs."""
    sized = {"binary_data_size": len(data)}
    inputs = [{"name": name, "shape": [1], "datatype": datatype, "parameters": sized}]
    if name != "TEXT":
        inputs.append({"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["hello"]})
    head = json.dumps({"inputs": inputs}).encode()
    return head + data, {HEADER_LENGTH: str(len(head))}


# Each: what is wrong, the body, words that its error must hold.
BAD_BODIES: list[tuple[str, bytes, tuple[str, ...]]] = [
    # Not JSON in UTF-8
    ("empty", b"", ("empty", "JSON object")),
    ("blank", b" \r\n\t ", ("empty",)),
    ("not JSON", b"hello", ("not valid JSON", "line 1, column 1")),
    ("a form", b"TEXT=hello", ("not valid JSON",)),
    ("cut in an object", b'{"TEXT": "hello"', ("ends too early",)),
    ("cut in a string", b'{"TEXT": "hel', ("unterminated string",)),
    ("no colon", b'{"TEXT" "hello"}', ("':'", "column 9")),
    ("no comma", b'{"TEXT": "a"\n "SAMPLE": true}', ("','", "line 2, column 2")),
    ("trailing comma", b'{"TEXT": "hello",}', ("not valid JSON",)),
    ("single quotes", b"{'TEXT': 'hello'}", ("double quotes",)),
    ("trailing data", b'{"TEXT": "hello"} {}', ("something follows", "column 19")),
    ("trailing bracket", b'{"TEXT": "hello"}}', ("something follows",)),
    ("a comment", b'{"TEXT": "hello"} // hi', ("something follows",)),
    ("Python's True", b'{"TEXT": "hello", "SAMPLE": True}', ("expecting value",)),
    ("line end in a string", b'{"TEXT": "a\nb"}', ("control character",)),
    ("NUL in a string", b'{"TEXT": "a\0b"}', ("control character",)),
    ("unknown escape", rb'{"TEXT": "\x41"}', ("escape",)),
    ("short escape", rb'{"TEXT": "\u41"}', ("escape",)),
    ("byte order mark", b'\xef\xbb\xbf{"TEXT": "hello"}', ("byte order mark",)),
    ("UTF-16 with a mark", '{"TEXT": "hello"}'.encode("utf-16"), ("UTF-16", "UTF-8")),
    ("UTF-16, little-endian", '{"TEXT": "hello"}'.encode("utf-16-le"), ("UTF-16",)),
    ("UTF-16, big-endian", '{"TEXT": "hello"}'.encode("utf-16-be"), ("UTF-16",)),
    ("UTF-32 with a mark", '{"TEXT": "hello"}'.encode("utf-32"), ("UTF-32",)),
    ("UTF-32, little-endian", '{"TEXT": "hello"}'.encode("utf-32-le"), ("UTF-32",)),
    ("Latin-1", '{"TEXT": "é"}'.encode("latin-1"), ("not UTF-8", "byte 10")),
    ("lone continuation byte", b'{"TEXT": "\x80"}', ("not UTF-8", "byte 10")),
    ("overlong UTF-8", b'{"TEXT": "\xc0\xaf"}', ("not UTF-8",)),
    ("surrogate in UTF-8", b'{"TEXT": "\xed\xa0\x80"}', ("not UTF-8",)),
    ("cut in a character", b'{"TEXT": "\xf0\x9f\x98', ("not UTF-8", "byte 10")),
    # JSON that RFC 8259 leaves open, or that Python adds
    ("NaN", b'{"TEXT": "hello", "TEMPERATURE": NaN}', ("NaN", "finite")),
    ("Infinity", b'{"TEXT": "hello", "TEMPERATURE": Infinity}', ("Infinity",)),
    ("-Infinity", b'{"TEXT": "hello", "TEMPERATURE": -Infinity}', ("-Infinity",)),
    ("float too large", b'{"TEXT": "hello", "TEMPERATURE": 1e400}', ("1e400",)),
    ("-float too large", b'{"TEXT": "hello", "TEMPERATURE": -1e400}', ("-1e400",)),
    ("integer too long", b'{"TEXT": "hello", "MAX_NEW_TOKENS": ' + b"9" * 4301 + b"}", ("4,300 digits",)),
    ("leading zero", b'{"TEXT": "hello", "MAX_NEW_TOKENS": 064}', ("not valid JSON",)),
    ("plus sign", b'{"TEXT": "hello", "MAX_NEW_TOKENS": +64}', ("not valid JSON",)),
    ("repeated key", b'{"TEXT": "hello", "TEXT": "goodbye"}', ('"TEXT"', "twice")),
    ("repeated key inside", b'{"parameters": {"TEXT": "a", "SAMPLE": true, "SAMPLE": true}}', ('"SAMPLE"', "twice")),
    ("high surrogate", rb'{"TEXT": "\ud83d"}', ("surrogate", r"\ud83d", "column 11")),
    ("low surrogate", rb'{"TEXT": "\ude00"}', ("surrogate", r"\ude00")),
    ("surrogates reversed", rb'{"TEXT": "\ude00\ud83d"}', ("surrogate",)),
    ("surrogate in a key", rb'{"TEXT": "hello", "\uD83D": 1}', ("surrogate",)),
    ("lists nested too deep", b'{"TEXT": ' + b"[" * 64 + b"1" + b"]" * 64 + b"}", ("64 deep",)),
    ("objects nested too deep", b'{"TEXT":' * 65 + b"1" + b"}" * 65, ("64 deep",)),
    ("100,000 brackets", b"[" * 100_000, ("64 deep",)),
    ("100,000 braces", b'{"a":' * 100_000, ("64 deep",)),
    # JSON, but not an object
    ("a list", b'["hello"]', ("JSON object", "a list of 1 element")),
    ("a string", b'"hello"', ("JSON object", 'the string "hello"')),
    ("a number", b"64", ("JSON object", "the integer 64")),
    ("null", b"null", ("JSON object", "null")),
    ("true", b"true", ("JSON object", "true")),
    # Names
    ("no inputs", b"{}", ("TEXT is required", "a string")),
    ("required input missing", b'{"SAMPLE": true}', ("TEXT is required", "nothing")),
    ("required input null", b'{"TEXT": null}', ("TEXT is required", "null")),
    ("unknown name", bare(COLOUR="red"), ('"COLOUR"', "MAX_NEW_TOKENS")),
    ("misspelt name", bare(TEMPRATURE=0.7), ('"TEMPRATURE"', "did you mean TEMPERATURE?")),
    ("name in lower case", bare(sample=True), ("did you mean SAMPLE?",)),
    ("very long name", bare(**{"X" * 100_000: 1}), ("not an input", "…")),
    ("several faults", b'{"MAX_NEW_TOKENS": "ten", "STOPS": 1}', ("3 faults", "TEXT", "MAX_NEW_TOKENS", "STOP")),
    # Types
    ("number for a string", b'{"TEXT": 5}', ("TEXT must be a string", "the integer 5", "quotes")),
    ("boolean for a string", b'{"TEXT": true}', ("TEXT must be a string", "true")),
    ("object for a string", b'{"TEXT": {"a": 1}}', ("TEXT must be a string", "an object")),
    ("list for a string", b'{"TEXT": ["a", "b"]}', ("TEXT must be a string", "a list of 2 elements", "one value")),
    ("empty list for a string", b'{"TEXT": []}', ("TEXT must be a string", "a list of 0 elements")),
    ("nested list for a string", b'{"TEXT": [["a"]]}', ("TEXT must be a string",)),
    ("null in a list", b'{"TEXT": [null]}', ("TEXT must be a string", "null")),
    ("string for an integer", bare(MAX_NEW_TOKENS="ten"), ('an integer, got the string "ten"', "without quotes")),
    ("true for an integer", bare(MAX_NEW_TOKENS=True), ("an integer, got true",)),
    ("fraction for an integer", bare(MAX_NEW_TOKENS=5.5), ("an integer, got the number 5.5", "whole")),
    ("list for an integer", bare(MAX_NEW_TOKENS=[1, 2]), ("an integer, got a list of 2 elements",)),
    ("string for a number", bare(TEMPERATURE="0.7"), ("a number, got the string", "without quotes")),
    ("false for a number", bare(TEMPERATURE=False), ("a number, got false",)),
    ("integer too large for a number", bare(TEMPERATURE=10**400), ("TEMPERATURE must be a number",)),
    ("integer for a boolean", bare(SAMPLE=1), ("SAMPLE must be true or false", "the integer 1")),
    ("string for a boolean", bare(SAMPLE="true"), ("SAMPLE must be true or false", "without quotes")),
    ("number in a list of strings", bare(STOP=["a", 5]), ("a list of strings", "the integer 5 at position 1")),
    ("object for a list", bare(STOP={"a": 1}), ("a list of strings", "an object")),
    ("nested list for a list", bare(STOP=[["a"]]), ("a list of strings", "shape [1, 1]")),
    ("very long string", bare(SAMPLE="x" * 100_000), ("true or false", "…")),
    # Shapes
    ("too few elements", bare(SIZE=[640]), ("a list of 2 integers", "a list of 1 element")),
    ("too many elements", bare(SIZE=[1, 2, 3]), ("a list of 2 integers", "a list of 3 elements")),
    ("scalar for a list of two", bare(SIZE=640), ("a list of 2 integers", "the integer 640")),
    ("flat list that does not divide", bare(BOXES=[1, 2, 3, 4, 5]), ("shape [-1, 4]", "a list of 5 elements")),
    ("rows too short", bare(BOXES=[[1, 2], [3, 4]]), ("shape [-1, 4]", "shape [2, 2]")),
    ("rows of different lengths", bare(BOXES=[[1, 2, 3, 4], [5]]), ("BOXES", "rows")),
    ("rows and numbers mixed", bare(BOXES=[[1, 2, 3, 4], 5]), ("BOXES", "rows")),
    # The envelope
    ("envelope is a list", b'{"parameters": ["hello"]}', ("parameters must be an object",)),
    ("envelope is empty", b'{"parameters": {}}', ("TEXT is required",)),
    (
        "fault in the envelope",
        enveloped(MAX_NEW_TOKENS="ten"),
        ('MAX_NEW_TOKENS must be an integer, got the string "ten"',),
    ),
    ("unknown name in the envelope", enveloped(TXT=1), ("did you mean TEXT?",)),
    ("given twice", b'{"parameters": {"TEXT": "a"}, "TEXT": "b"}', ('"TEXT"', "more than once")),
    ("id in the envelope", enveloped(id="x"), ('"id" is not an input',)),
    ("id is a number", bare(id=5), ("id must be a string", "the integer 5")),
    ("id is a list", json.dumps({"parameters": {"TEXT": "a"}, "id": ["x"]}).encode(), ("id must be a string",)),
    # Tensors
    ("inputs is an object", b'{"inputs": {"TEXT": "hello"}}', ("inputs must be a list of tensors", "an object")),
    ("inputs is a string", b'{"inputs": "hello"}', ("inputs must be a list of tensors", '"hello"')),
    ("no tensors", b'{"inputs": []}', ("TEXT is required",)),
    ("tensor is a string", tensors("hello"), ("inputs[1] must be an object", '"hello"')),
    ("tensor without a name", tensors({"data": [1], "shape": [1]}), ("inputs[1].name must be a string",)),
    ("tensor whose name is a number", tensors(tensor(5, [1], [1])), ("inputs[1].name", "the integer 5")),
    ("tensor without data", tensors({"name": "SAMPLE", "shape": [1]}), ("SAMPLE", "no data")),
    ("tensor with a very long name", tensors({"name": "X" * 100_000}), ("no data", "…")),
    ("tensor whose data is no list", tensors(tensor("SAMPLE", True, [1])), ("SAMPLE", "data that is true")),
    ("tensor twice", tensors(tensor("TEXT", ["again"], [1])), ('"TEXT"', "more than once")),
    ("tensor with an unknown name", tensors(tensor("SAMPL", [True], [1])), ("did you mean SAMPLE?",)),
    ("tensor of another type", tensors(tensor("SAMPLE", ["yes"], [1])), ("true or false", '"yes"')),
    ("tensor of fractions", tensors(tensor("SIZE", [1.5, 2], [2])), ("integers", "1.5 at position 0")),
    ("tensor of another shape", tensors(tensor("SIZE", [1, 2, 3], [3])), ("SIZE", "a tensor of shape [3]", "[2]")),
    ("tensor of another rank", tensors(tensor("SIZE", [[1, 2]], [1, 2])), ("a tensor of shape [1, 2]",)),
    ("batch of one without batching", tensors(tensor("SAMPLE", [True], [1, 1])), ("a tensor of shape [1, 1]",)),
    ("too few data", tensors(tensor("BOXES", [1, 2, 3], [1, 4])), ("3 elements in a tensor of shape [1, 4]",)),
    ("too many data", tensors(tensor("SAMPLE", [True, False], [1])), ("2 elements in a tensor of shape [1]",)),
    ("ragged data", tensors(tensor("BOXES", [[1, 2, 3], [4]], [1, 4])), ("BOXES", "rows")),
    ("shape is a number", tensors(tensor("SAMPLE", [True], 1)), ("a shape that is the integer 1",)),
    ("negative length", tensors(tensor("STOP", ["a"], [-1])), ("STOP", "a list of lengths")),
    ("length is a boolean", tensors(tensor("SAMPLE", [True], [True])), ("SAMPLE", "a list of lengths")),
    (
        "length is huge",
        tensors(tensor("STOP", ["a"], [2**62])),
        ("a list of 1 element in a tensor", "shape [4611686018427387904]"),
    ),
    ("length is huger", tensors(tensor("STOP", ["a"], [2**64])), ("STOP", "a list of lengths")),
    ("shape is very long", tensors(tensor("STOP", ["a"], [1] * 10_000)), ("STOP", "a list of 10000 elements")),
    ("input beside the tensors", tensors(SAMPLE=True), ("SAMPLE", "a key beside it")),
    ("id of tensors is a number", tensors(id=7), ("id must be a string",)),
    ("outputs is a string", tensors(outputs="text"), ("outputs must be a list",)),
    ("outputs holds strings", tensors(outputs=["text"]), ("outputs must be a list of objects",)),
]
