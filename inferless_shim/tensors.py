"""The binary tensor data extension: a tensor's elements as bytes, little-endian and row by row. No I/O.

Knows datatypes, shapes and bytes, nothing of the requests and answers that carry them. What is read is as strict as
JSON is here (no NaN, text in UTF-8); what is written may hold NaN and Infinity.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from .outputs import without_lone_surrogates

# By struct's letters. BF16 is the upper half of an FP32, and BYTES elements each have their length before them.
LETTERS = dict(zip(("INT8", "INT16", "INT32", "INT64"), "bhiq", strict=True))
LETTERS |= {f"U{name}": letter.upper() for name, letter in LETTERS.items()}
LETTERS |= {"BOOL": "?", "FP16": "e", "FP32": "f", "FP64": "d"}
WIDTHS = {name: struct.calcsize("<" + letter) for name, letter in LETTERS.items()} | {"BF16": 2}
FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
DATATYPES = (*WIDTHS, "BYTES")
LENGTH = struct.Struct("<I")  # of a BYTES element
# What INPUT_SCHEMA and its users call what has another name in the protocol.
ALIASES = {"STRING": "BYTES", "JSON": "BYTES", "BOOLEAN": "BOOL", "INT": "INT64"}


class Malformed(ValueError):
    """Bytes that are not what datatype and shape say: what they are instead, and what to do about it."""

    def __init__(self, got: str, remedy: str) -> None:
        super().__init__(f"{got}; {remedy}")
        self.got = got
        self.remedy = remedy


def v2_name(datatype: str) -> str:
    """Return the protocol's name for a datatype of INPUT_SCHEMA."""
    return ALIASES.get(datatype, datatype)


def read(data: memoryview, datatype: str, shape: Sequence[int]) -> list[Any]:
    """Return the elements of a tensor of one of DATATYPES, row by row. Raises Malformed."""
    if datatype == "BYTES":
        return _read_texts(bytes(data), shape)
    width = WIDTHS[datatype]
    if len(data) != math.prod(shape) * width:
        raise Malformed(f"{len(data)} bytes for the shape {list(shape)}", f"send {width} for each element")
    if datatype == "BOOL":
        return _read_booleans(bytes(data))
    elements = _unpack(_widened(data) if datatype == "BF16" else data, LETTERS.get(datatype, "f"))
    if datatype in FLOATS and not all(map(math.isfinite, elements)):
        position = next(place for place, number in enumerate(elements) if not math.isfinite(number))
        raise Malformed(f"{elements[position]} at position {position}", "send finite numbers")
    return elements


def _unpack(data: memoryview | bytearray, letter: str) -> list[Any]:
    return list(struct.unpack(f"<{len(data) // struct.calcsize('<' + letter)}{letter}", data))


def _read_booleans(data: bytes) -> list[bool]:
    others = data.translate(None, b"\0\1")
    if others:
        raise Malformed(f"the byte {others[0]} at position {data.index(others[0])}", "send 0 or 1 for each element")
    return [*map(bool, data)]


def _read_texts(data: bytes, shape: Sequence[int]) -> list[str]:
    texts: list[str] = []
    count, end = math.prod(shape), 0
    while end < len(data) and len(texts) < count:
        start = end + LENGTH.size
        end = start + int.from_bytes(data[end:start], "little")
        if max(start, end) > len(data):
            raise Malformed(f"an element that is cut short at position {len(texts)}", "send all of it")
        try:
            texts.append(data[start:end].decode())
        except UnicodeDecodeError as error:
            where = f"bytes that are not UTF-8 at position {len(texts)}, byte {error.start}"
            raise Malformed(where, "encode text as UTF-8, other data in base64") from None
    if len(texts) < count:
        got = f"{len(texts)} elements for the shape {list(shape)}"
        raise Malformed(got, "send each as its length in 4 bytes, then its text")
    if end < len(data):
        raise Malformed(f"{len(data) - end} bytes after its last element", "correct the shape or the data")
    return texts


def _widened(data: memoryview) -> bytearray:
    """Return BF16 as FP32."""
    wide = bytearray(2 * len(data))
    wide[2::4], wide[3::4] = data[::2], data[1::2]
    return wide


def write(elements: Sequence[Any], datatype: str) -> bytes:
    """Return the bytes of elements that are numbers, booleans, or str or bytes for BYTES. Raises ValueError."""
    if datatype == "BYTES":
        return b"".join(_texts(elements))
    try:
        packed = struct.pack(f"<{len(elements)}{LETTERS.get(datatype, 'f')}", *elements)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"an element does not fit {datatype}: {error}") from None
    return _narrowed(packed) if datatype == "BF16" else packed


def _texts(elements: Sequence[str | bytes | bytearray]) -> Iterator[bytes]:
    for element in elements:
        data = _utf8(element) if isinstance(element, str) else element
        yield LENGTH.pack(len(data))
        yield bytes(data)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return without_lone_surrogates(text).encode()


def _narrowed(packed: bytes) -> bytes:
    """Return FP32 as BF16, rounded to the nearest, to even where two are (as IEEE 754 rounds)."""
    words = struct.unpack(f"<{len(packed) // 4}I", packed)
    return struct.pack(f"<{len(words)}H", *(_upper_half(word) for word in words))


def _upper_half(word: int) -> int:
    if word & 0x7FFFFFFF > 0x7F800000:  # NaN must not be rounded to Infinity
        return word >> 16 | 0x40
    return word + 0x7FFF + (word >> 16 & 1) >> 16
