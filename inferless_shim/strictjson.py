"""JSON text to Python values, read strictly (RFC 8259) and within bounds; their shapes, and them in words. No I/O.

`json.loads` takes NaN, lone surrogates and repeated keys, and recurses as deep as the text says; none of that reaches
an app. What the parser's hooks cannot know is looked for before it runs, in a few passes that each run in C.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NoReturn

from .errors import BadRequest

MAX_NESTING = 64  # CONTRACT.md §7; Jackson's and .NET's parsers stop at 1,000 and 64
MAX_DIGITS = 4300  # what int() reads unless told otherwise (sys.set_int_max_str_digits)

# One step down for an opening bracket, one up for a closing one (0xff is -1 as a signed byte).
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_EVERYTHING = bytes(range(256))
BLOCK = 16384  # bytes looked at together: a list of all strings in a body would be 50 times its size
# Half of a surrogate pair, without its other half at its side.
_HIGH = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(rf"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}")


def loads(body: bytes, what: str = "The body") -> object:
    """Read one JSON value. Raises BadRequest, one sentence that says what is wrong in `what`."""
    text = _decode(body, what)
    if _nests_too_deep(body):
        raise BadRequest(f"{what} nests lists and objects more than {MAX_NESTING} deep; make it flatter.")
    _refuse_lone_surrogates(text, what)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"{what} is not valid JSON: {_diagnosis(error)}.") from None
    except _Refused as refused:
        raise BadRequest(f"{what} {refused}.") from None


def _decode(body: bytes, what: str) -> str:
    if not body.strip():
        raise BadRequest(f"{what} is empty; send a JSON object.")
    encoding = json.detect_encoding(body)
    if encoding == "utf-8-sig":
        raise BadRequest(f"{what} starts with a byte order mark; send UTF-8 without one.")
    if encoding != "utf-8":
        raise BadRequest(f"{what} is not UTF-8 (it looks like {encoding[:6].upper()}); encode JSON as UTF-8.")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{what} is not UTF-8 at byte {error.start}; encode JSON as UTF-8.") from None


def _nests_too_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= MAX_NESTING:
        return False
    depth = 0
    for brackets in outside_strings(body, b"[{]}"):
        steps = memoryview(brackets.translate(_STEPS)).cast("b")
        *_, depth = depths = list(accumulate(steps, initial=depth))
        if max(depths) > MAX_NESTING:
            return True
    return False


def outside_strings(body: bytes, wanted: bytes) -> Iterator[bytes]:
    """Yield the `wanted` bytes of JSON text that stand outside of its strings, in order, a block at a time."""
    # A run of backslashes escapes in pairs from its left; what is then left of it escapes the next character.
    text = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _EVERYTHING.translate(None, wanted + b'"'))
    inside = 0
    for start in range(0, len(text), BLOCK):
        parts = text[start : start + BLOCK].split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= len(parts) - 1 & 1


def _refuse_lone_surrogates(text: str, what: str) -> None:
    # UTF-8 has no surrogates, so only an escape can make one.
    if "\\u" not in text:
        return
    # Blanked, not deleted: positions stay true, and halves that an escaped backslash keeps apart stay apart.
    lone = _LONE_SURROGATE.search(text.replace("\\\\", "  "))
    if lone:
        line, column = text.count("\n", 0, lone.start()) + 1, lone.start() - text.rfind("\n", 0, lone.start())
        raise BadRequest(
            f"{what} has half a surrogate pair, {lone[0]}, at line {line}, column {column}; "
            "send both halves, or the character itself."
        )


def _diagnosis(error: json.JSONDecodeError) -> str:
    where = f"at line {error.lineno}, column {error.colno}"
    if error.msg == "Extra data":
        return f"something follows the value {where}; send one value and nothing after it"
    if error.pos >= len(error.doc):
        return f"it ends too early {where}; send all of it"
    problem = error.msg.removesuffix(" at")
    return f"{problem[0].lower()}{problem[1:]} {where}; correct the text there"


# What the parser's hooks refuse. ------------------------------------------------------------------------------------


class _Refused(Exception):
    """Says what is wrong, without its subject."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise _Refused(f"has the key {quoted(repeated)} twice in one object; send each key once")
    return result


def _integer(digits: str) -> int:
    # Before int(), whose time grows with the square of their number.
    if len(digits) - digits.startswith("-") > MAX_DIGITS:
        raise _Refused(f"has an integer of more than {MAX_DIGITS:,} digits; send it as a string")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Refused(f"has the number {digits[:60]}, which no float can hold; send it as a string")
    return value


def _constant(name: str) -> NoReturn:
    raise _Refused(f"has {name}, which JSON does not know; send a finite number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


# Values in JSON's types. --------------------------------------------------------------------------------------------


def measure(value: object) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of nested lists and their elements, row by row; a scalar has shape (). Raises ValueError."""
    shape: tuple[int, ...] = ()
    elements: list[Any] = [value]
    while list in (types := set(map(type, elements))):
        lengths = set(map(len, elements)) if len(types) == 1 else set()
        if len(lengths) != 1:
            raise ValueError("lists whose rows differ in length")
        shape += (lengths.pop(),)
        elements = list(chain.from_iterable(elements))
    return shape, elements


def nest(elements: list[Any], shape: Sequence[int]) -> list[Any]:
    """Return `elements` as nested lists of `shape`; nothing nests to []."""
    if not elements:
        return []
    for length in reversed(shape[1:]):
        elements = [elements[start : start + length] for start in range(0, len(elements), length)]
    return elements


# Values in words, short enough for a sentence. ----------------------------------------------------------------------


def quoted(text: str) -> str:
    """Quote `text` as JSON does, in at most 60 characters."""
    shown = json.dumps(text[:60], ensure_ascii=False)
    return shown if len(text) <= 60 and len(shown) <= 60 else shown[:58].rstrip("\\") + '…"'


def describe(value: object) -> str:
    """Say in at most 80 characters what `value` is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return f"the integer {value}" if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)} element{'' if len(value) == 1 else 's'}"
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__[:50]}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `word` was probably meant to be."""
    names = {name.upper(): name for name in known}
    close = difflib.get_close_matches(word[:80].upper(), names, n=1)
    return names[close[0]] if close else None
