"""The binary tensor data extension to the byte, both ways."""

from __future__ import annotations

import math
import os
import random
import struct
import time
import unittest
from typing import Any

from inferless_shim.tensors import DATATYPES, FLOATS, WIDTHS, Malformed, read, v2_name, write
from tests.support import about

NAN, INF = float("nan"), float("inf")

# Datatype, elements, and their bytes in hexadecimal.
BYTES_OF: list[tuple[str, list[Any], str]] = [
    ("BOOL", [True, False, True], "01 00 01"),
    ("INT8", [1, -1, -128, 127], "01 ff 80 7f"),
    ("INT16", [1, -2], "0100 feff"),
    ("INT32", [1, -2], "01000000 feffffff"),
    ("INT64", [1, -2], "0100000000000000 feffffffffffffff"),
    ("UINT8", [0, 255], "00 ff"),
    ("UINT16", [258, 65535], "0201 ffff"),
    ("UINT32", [2**32 - 1], "ffffffff"),
    ("UINT64", [2**64 - 1, 1], "ffffffffffffffff 0100000000000000"),
    ("FP16", [1.0, -2.0, 0.5, 65504.0, 2.0**-24], "003c 00c0 0038 ff7b 0100"),
    ("BF16", [1.0, -2.0, 0.5, 3.140625], "803f 00c0 003f 4940"),
    ("FP32", [1.0, -2.0], "0000803f 000000c0"),
    ("FP64", [1.0, 0.1], "000000000000f03f 9a9999999999b93f"),
    ("BYTES", ["", "a", "é漢😀"], "00000000 01000000 61 09000000 c3a9 e6bca2 f09f9880"),
    ("BYTES", ["a\0b\n"], "04000000 6100620a"),
]

# What is wrong, datatype, shape, bytes in hexadecimal, words of the fault.
MALFORMED: list[tuple[str, str, list[int], str, tuple[str, ...]]] = [
    ("too short", "INT32", [2], "01000000", ("4 bytes for the shape [2]", "send 4 for each")),
    ("too long", "FP16", [1], "003c003c", ("4 bytes for the shape [1]", "send 2 for each")),
    ("no whole number of elements", "INT64", [1], "010203", ("3 bytes",)),
    ("nothing", "FP32", [2, 2], "", ("0 bytes for the shape [2, 2]",)),
    ("something for no elements", "FP32", [0], "00000000", ("4 bytes for the shape [0]",)),
    ("a huge shape", "UINT8", [2**62] * 64, "00", ("1 bytes",)),
    ("a boolean that is neither", "BOOL", [3], "01 00 02", ("the byte 2 at position 2", "0 or 1")),
    ("NaN", "FP32", [2], "0000803f 0000c07f", ("nan at position 1", "finite")),
    ("Infinity", "FP64", [1], "000000000000f07f", ("inf at position 0",)),
    ("-Infinity", "FP16", [1], "00fc", ("-inf at position 0",)),
    ("NaN in BF16", "BF16", [1], "c07f", ("nan at position 0",)),
    ("a length that is cut", "BYTES", [1], "010000", ("cut short at position 0",)),
    ("a text that is cut", "BYTES", [2], "01000000 61 05000000 61626364", ("cut short at position 1",)),
    ("a length of 4 GiB", "BYTES", [1], "ffffffff 61", ("cut short",)),
    ("too few texts", "BYTES", [3], "01000000 61", ("1 elements for the shape [3]", "4 bytes")),
    ("no texts", "BYTES", [1], "", ("0 elements",)),
    ("a huge shape of texts", "BYTES", [2**62] * 64, "00000000", ("1 elements",)),
    ("too many texts", "BYTES", [1], "01000000 61 01000000 62", ("5 bytes after its last element",)),
    ("texts for no elements", "BYTES", [0], "00000000", ("4 bytes after",)),
    ("not UTF-8", "BYTES", [2], "01000000 61 02000000 61ff", ("not UTF-8 at position 1, byte 1", "base64")),
    ("a surrogate", "BYTES", [1], "03000000 eda080", ("not UTF-8",)),
]


class Codec(unittest.TestCase):
    def test_codec_table(self) -> None:
        """Every datatype: little-endian, row by row, both ways."""
        self.assertEqual({datatype for datatype, _, _ in BYTES_OF}, set(DATATYPES))
        for datatype, elements, data in BYTES_OF:
            with self.subTest(datatype):
                self.assertEqual(write(elements, datatype).hex(), data.replace(" ", ""))
                got = read(memoryview(bytes.fromhex(data)), datatype, [len(elements)])
                self.assertEqual(got, elements)
                self.assertEqual([type(element) for element in got], [type(element) for element in elements])

    def test_codec_empty(self) -> None:
        """A tensor without elements has no bytes."""
        for datatype in DATATYPES:
            self.assertEqual(write([], datatype), b"")
            self.assertEqual(read(memoryview(b""), datatype, [0, 3]), [])

    def test_codec_shapes(self) -> None:
        """Elements are flat, in as many as the shape has; [] is one."""
        for shape, count in (([], 1), ([1], 1), ([2, 3], 6), ([1, 1, 4], 4)):
            data = memoryview(bytes(range(count)))
            self.assertEqual(read(data, "UINT8", shape), list(range(count)))

    def test_read_malformed(self) -> None:
        """Bytes that are not what datatype and shape say are refused, in words of bounded length."""
        for label, datatype, shape, data, words in MALFORMED:
            with self.subTest(label):
                with self.assertRaises(Malformed) as caught:
                    read(memoryview(bytes.fromhex(data)), datatype, shape)
                told = f"{caught.exception.got}; {caught.exception.remedy}"
                self.assertEqual(told, str(caught.exception))
                for word in words:
                    self.assertIn(word, told)

    def test_read_of_a_part(self) -> None:
        """A tensor lies somewhere in a body: where it begins need not be aligned."""
        body = memoryview(b"x" + struct.pack("<2d", 1.5, 2.5) + b"y")
        self.assertEqual(read(body[1:-1], "FP64", [2]), [1.5, 2.5])

    def test_write_not_finite(self) -> None:
        """Binary tensors may hold NaN and Infinity."""
        for datatype in FLOATS:
            data = write([NAN, INF, -INF], datatype)
            with self.subTest(datatype), self.assertRaisesRegex(Malformed, "nan at position 0"):
                read(memoryview(data), datatype, [3])
        self.assertEqual(write([INF, -INF, NAN], "BF16").hex(), "807f80ffc07f")

    def test_write_bf16_rounds(self) -> None:
        """BF16 is rounded to the nearest, to even where two are as near; a NaN stays one."""
        table = [
            (0x3F800000, 0x3F80),
            (0x3F807FFF, 0x3F80),
            (0x3F808000, 0x3F80),  # halfway, down to even
            (0x3F808001, 0x3F81),
            (0x3F818000, 0x3F82),  # halfway, up to even
            (0xBF818000, 0xBF82),
            (0x7F7FFFFF, 0x7F80),  # past the largest: Infinity
            (0x00000001, 0x0000),
            (0x7F800001, 0x7FC0),  # a NaN whose upper half would be Infinity
            (0xFFFFFFFF, 0xFFFF),
        ]
        for word, half in table:
            (number,) = struct.unpack("<f", struct.pack("<I", word))
            with self.subTest(hex(word)):
                (written,) = struct.unpack("<H", write([number], "BF16"))
                self.assertEqual(math.isnan(number), written & 0x7FFF > 0x7F80)
                if not math.isnan(number):
                    self.assertEqual(hex(written), hex(half))

    def test_write_bytes(self) -> None:
        """BYTES elements may be bytes of any sort; half a surrogate pair becomes U+FFFD."""
        self.assertEqual(write([b"\xff", bytearray(b"a"), "\ud800"], "BYTES"), bytes.fromhex("01000000ff0100000061") +
                         b"\3\0\0\0" + "\ufffd".encode())  # fmt: skip

    def test_write_what_does_not_fit(self) -> None:
        """A number that its datatype cannot hold raises ValueError that names the datatype."""
        table = [("INT8", 128), ("UINT8", -1), ("INT64", 2**63), ("FP16", 1e6), ("FP32", 1e300), ("BF16", 1e300)]
        for datatype, number in table:
            with self.subTest(datatype), self.assertRaisesRegex(ValueError, f"does not fit {datatype}"):
                write([number], datatype)

    def test_codec_random(self) -> None:
        """What was written is read again as it was."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        for datatype in DATATYPES:
            elements = [element(rng, datatype) for _ in range(500)]
            with self.subTest(datatype, TEST_SEED=seed):
                self.assertEqual(read(memoryview(write(elements, datatype)), datatype, [5, 100]), elements)

    def test_read_mutated(self) -> None:
        """Whatever is done to a tensor's bytes, its elements are read, or it is refused with Malformed."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        rng = random.Random(seed)
        for _ in range(3000):
            datatype = rng.choice(DATATYPES)
            count = rng.randrange(5)
            data = bytearray(write([element(rng, datatype) for _ in range(count)], datatype))
            for _ in range(rng.randrange(4)):
                place = rng.randrange(len(data) + 1)
                data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            with about(TEST_SEED=seed, datatype=datatype, data=data.hex()):
                try:
                    self.assertEqual(len(read(memoryview(bytes(data)), datatype, [count])), count)
                except Malformed:
                    pass

    def test_codec_is_fast(self) -> None:
        """A million numbers take a fraction of a second, not a Python loop's time."""
        data = memoryview(bytes(4_000_000))
        for datatype in ("FP32", "INT32", "FP16", "BF16", "BOOL"):
            start = time.monotonic()
            elements = read(data[: WIDTHS[datatype] * 1_000_000], datatype, [1_000_000])
            with self.subTest(datatype):
                self.assertEqual(len(elements), 1_000_000)
                self.assertLess(time.monotonic() - start, 5)


def element(rng: random.Random, datatype: str) -> Any:
    """Draw what `datatype` holds exactly."""
    if datatype == "BYTES":
        return "".join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(6)))
    if datatype == "BOOL":
        return rng.random() < 0.5
    if datatype in FLOATS:
        return float(rng.randrange(-256, 257)) / 2 ** rng.randrange(4)
    bits = int(datatype.strip("UINT"))
    return rng.randrange(2**bits) - (0 if datatype.startswith("U") else 2 ** (bits - 1))


class Names(unittest.TestCase):
    def test_v2_name_of_aliases(self) -> None:
        """What INPUT_SCHEMA calls otherwise has the protocol's name; the rest, known or not, stays as it is."""
        table = {"STRING": "BYTES", "JSON": "BYTES", "BOOLEAN": "BOOL", "INT": "INT64", "FP32": "FP32", "X": "X"}
        for datatype, name in table.items():
            self.assertEqual(v2_name(datatype), name)


if __name__ == "__main__":
    unittest.main()
