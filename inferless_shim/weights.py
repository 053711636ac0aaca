"""How much memory a request's body takes, once it is Python's values: an upper bound, from counts alone. No I/O.

Ten megabytes of `[[[]]]` become half a gigabyte of lists, ten of one text stay ten; so what is bounded is not the bytes
of a body but its weight (`budget`). The figures below were measured on CPython 3.10 to 3.13, 64 bits: what the process
grew by, at most while a body is read, parsed and fitted to a schema, and after that.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .strictjson import outside_strings
from .tensors import LENGTH, WIDTHS

# Bytes for each byte of text while it is read: what has come, the body, its text, the strings in it.
READING = 4
# Whatever is in a body, it weighs no more than this for each byte; so a small one need not be looked at.
WORST = 64
SMALL = 1024
# Bytes for each value, beside its text: at the peak, when lists are rebuilt to fit a shape and integers become floats,
# and afterwards. An object has room for five members; more of them, and all pairs until it is made, come on top.
ARRAY, ARRAY_KEPT = 192, 104
OBJECT, OBJECT_KEPT = 320, 288
MEMBER, MEMBER_KEPT = 192, 64
STRING, STRING_KEPT = 96, 96
NUMBER, NUMBER_KEPT = 96, 48
# For each element of a binary tensor, beside its own bytes; the interpreter has all integers up to 255 already.
ELEMENT, ELEMENT_KEPT = 96, 48
ELEMENT_OF_BYTE = 64

_WIDE = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")  # makes all of a string's characters take four bytes


class Weight(NamedTuple):
    """Bytes of memory: at most while a body is parsed, and what its values take after that."""

    peak: int
    kept: int

    def __add__(self, other: Weight) -> Weight:  # type: ignore[override]
        return Weight(self.peak + other.peak, self.kept + other.kept)


def of_json(body: bytes, *, texts_too: bool = False) -> Weight:
    """Weigh JSON text; with `texts_too` also what its strings become if the schema takes them for JSON."""
    size = len(body)
    if size <= SMALL:
        return Weight(size * WORST, size * WORST)
    width = 1 if body.isascii() and b"\\u" not in body else 4 if _WIDE.search(body) else 2
    text = Weight(2 * size + 2 * width * size, width * size)
    values = _values(body, body.count(b'"') // 2)
    if texts_too or values.peak <= size:
        return text + values
    # Text is full of commas and brackets. A run of backslashes escapes in pairs from its left.
    quotes = body.replace(rb"\\", b"").replace(rb"\"", b"").count(b'"')
    return text + _values(b"".join(outside_strings(body, b"[{,:")), (quotes + 1) // 2)


def _values(structure: bytes, strings: int) -> Weight:
    arrays, objects, members = structure.count(b"["), structure.count(b"{"), structure.count(b":")
    arrays += structure.count(b"\\u")  # it may stand for a bracket
    values = structure.count(b",") + 1  # neither arrays nor objects, but what they end with
    numbers = max(0, values - max(0, strings - members))
    return Weight(
        ARRAY * arrays + OBJECT * objects + MEMBER * members + STRING * strings + NUMBER * numbers,
        ARRAY_KEPT * arrays
        + OBJECT_KEPT * objects
        + MEMBER_KEPT * members
        + STRING_KEPT * strings
        + NUMBER_KEPT * numbers,
    )


def of_query(query: str) -> Weight:
    """Weigh a query, of whose values each may be JSON; it is short (`http1.MAX_TARGET`)."""
    return Weight(len(query) * WORST, len(query) * WORST)


def of_tensor(size: int, datatype: str) -> Weight:
    """Weigh a binary tensor of `size` bytes."""
    elements = size // WIDTHS.get(datatype, LENGTH.size) + 1
    return Weight(
        3 * size + (ELEMENT_OF_BYTE if datatype in ("BOOL", "UINT8") else ELEMENT) * elements,
        size + ELEMENT_KEPT * elements,
    )
