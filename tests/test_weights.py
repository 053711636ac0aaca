"""What a body weighs is at least what it takes, and not so much more that honest bodies are refused."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
import unittest
from typing import Any

from inferless_shim import protocol, tensors, weights
from inferless_shim.errors import BadRequest
from inferless_shim.schema import Input, Schema
from tests.support import read_body

KINDS = (
    ("I", "INT64", (-1,)), ("F", "FP64", (-1,)), ("S", "STRING", (-1,)), ("B", "BOOL", (-1,)), ("T", "STRING", (1,)),
    ("SS", "STRING", (-1, -1)), ("FF", "FP64", (-1, -1)), ("J", "JSON", (1,)),
)  # fmt: skip
SCHEMA = Schema({name: Input(name, datatype, shape, False) for name, datatype, shape in KINDS}, [])
SIZE = 100_000  # bytes of a body


def filled(name: str, *elements: str) -> bytes:
    """Return a body of about SIZE bytes: a list of `elements`, over and over."""
    once = ",".join(elements)
    return f'{{"{name}":[{",".join([once] * (SIZE // (len(once.encode()) + 1)))}]}}'.encode()


def tensor(name: str, datatype: str, element: bytes) -> tuple[bytes, str]:
    """Return a body of SIZE bytes of binary data, and the length of its JSON."""
    count = SIZE // len(element)
    described: dict[str, Any] = {
        "name": name,
        "datatype": datatype,
        "shape": [count * len(element) // tensors.WIDTHS[datatype]],
    }
    described["parameters"] = {"binary_data_size": count * len(element)}
    head = json.dumps({"inputs": [described]}).encode()
    return head + element * count, str(len(head))


PIECES = [f'"{chr(97 + n // 26)}{chr(97 + n % 26)}"' for n in range(676)]
# What the values of a body are, and how much heavier than true its weight may be.
BODIES: dict[str, tuple[bytes, float]] = {
    "empty lists": (filled("J", "[]"), 5),
    "lists in lists": (filled("J", "[[]]"), 4),
    "deep lists": (filled("J", "[" * 60 + "]" * 60), 3),
    "rows of one number": (filled("FF", "[0]"), 3),
    "rows of one text": (filled("SS", '["ab"]'), 3),
    "rows of three numbers": (filled("FF", "[0.25,1.5,2.75]"), 3),
    "objects of one member": (filled("J", '{"":0}'), 4),
    "deep objects": (filled("J", '{"":' * 60 + "0" + "}" * 60), 4),
    "an object of many members": (b'{"J":{%b}}' % b",".join(b'"%x":0' % n for n in range(SIZE // 9)), 4),
    "digits as floats": (filled("F", *"0123456789"), 3),
    "integers": (filled("I", *map(str, range(300, 1000))), 4),
    "integers as floats": (filled("F", *map(str, range(300, 1000))), 3),
    "floats": (filled("F", *(f"0.{n}" for n in range(1000, 2000))), 4),
    "long integers": (filled("I", "9" * 4300), 4),
    "short texts": (filled("S", *PIECES), 4),
    "short texts of wide characters": (filled("S", *(f'"{chr(0x4E00 + n)}"' for n in range(1000))), 4),
    "one text": (b'{"T":"%b"}' % (b"x" * SIZE), 2.5),
    "one text of commas and brackets": (b'{"T":"%b"}' % (b'[1,{\\"a\\":2}],' * (SIZE // 14)), 4),
    "one text with one wide character": (b'{"T":"%b\xf0\x9f\x98\x80"}' % (b"x" * SIZE), 2.5),
    "one text with an escaped wide character": (b'{"T":"%b\\ud83d\\ude00"}' % (b"x" * SIZE), 4),
    "one text of wide characters": (f'{{"T":"{chr(0x4E00) * (SIZE // 3)}"}}'.encode(), 5),
    "small": (b'{"T":"%b"}' % (b"x" * 900), 50),
}  # fmt: skip
TENSORS = {
    "INT8": tensor("I", "INT8", bytes(range(128, 256))),
    "INT16 as floats": tensor("F", "INT16", b"".join(n.to_bytes(2, "little") for n in range(1000, 1500))),
    "UINT8": tensor("I", "UINT8", bytes(range(256))),
    "BOOL": tensor("B", "BOOL", b"\1"),
    "FP16": tensor("F", "FP16", b"\x01\x3c"),
    "FP64": tensor("F", "FP64", b"\0\0\0\0\0\0\xf0\x3f"),
}


def measured(body: bytes, header_length: str | None = None) -> tuple[weights.Weight, weights.Weight]:
    """Return what reading a body took, and what it weighed."""
    weighed = []
    gc.collect()
    tracemalloc.start()
    try:
        call = protocol.read_body(body, SCHEMA, header_length, weigh=weighed.append)
        kept, peak = tracemalloc.get_traced_memory()
        del call
    finally:
        tracemalloc.stop()
    total = weights.Weight(0, 0)
    for weight in weighed:
        total += weight
    return weights.Weight(peak + len(body), kept), total  # the body itself is held, too, until it is read


class WeightTests(unittest.TestCase):
    def check(self, body: bytes, times: float, header_length: str | None = None) -> None:
        read_body(body, SCHEMA, header_length)  # what is made once and for all
        took, weight = measured(body, header_length)
        self.assertGreaterEqual(weight.peak, took.peak)
        self.assertGreaterEqual(weight.kept * 1.02 + 4096, took.kept)
        self.assertLessEqual(weight.peak, took.peak * times)

    def test_json(self) -> None:
        """Whatever JSON holds, its weight is at least what reading it takes and leaves, and at most some times that."""
        for title, (body, times) in BODIES.items():
            with self.subTest(title):
                self.check(body, times)

    def test_tensors(self) -> None:
        """The same of binary tensors."""
        for title, (body, header_length) in TENSORS.items():
            with self.subTest(title):
                self.check(body, 3.5, header_length)

    def test_small(self) -> None:
        """A body too small to be looked at weighs what the worst of its size does, by any measure."""
        for title, (body, _) in BODIES.items():
            with self.subTest(title):
                weight = weights.of_json(body)
                self.assertLessEqual(measured(body)[0].peak, len(body) * weights.WORST)
                self.assertLessEqual(weight.kept, weight.peak)

    def test_structure_in_texts(self) -> None:
        """What stands in a text weighs nothing more, however it is escaped; unless the schema reads texts as JSON."""
        rng = random.Random(4)
        for _ in range(50):
            text = "".join(rng.choices('[]{}:,"\\ab', k=3000))
            plain = weights.of_json(json.dumps({"T": text}).encode())
            same = weights.of_json(json.dumps({"T": "x" * len(json.dumps(text))}).encode())
            self.assertLess(plain.peak, same.peak * 1.1 + 2000)
            self.assertGreater(weights.of_json(json.dumps({"T": text}).encode(), texts_too=True).peak, 10 * plain.peak)

    def test_weighed_before_it_is_made(self) -> None:
        """What finds no room is refused before its values are made."""

        def refuse(weight: weights.Weight) -> None:
            raise MemoryError

        made = []
        schema = Schema({}, [])
        schema.examine = lambda *_: made.append(1)  # type: ignore
        self.assertRaises(MemoryError, protocol.read_body, b'{"T":"x"}', schema, None, weigh=refuse)
        self.assertRaises(BadRequest, read_body, b"{", SCHEMA)
        self.assertEqual(made, [])


if __name__ == "__main__":
    unittest.main()
