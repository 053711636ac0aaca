"""`GET /infer?NAME=value`: a query becomes a Call, and the reserved names that are no inputs. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from . import strictjson
from .errors import BadRequest
from .protocol import Call, checked, repeated
from .schema import BOOLEAN, INTEGER, NUMBER, Fault, Input, Schema, refusal
from .strictjson import describe

RESERVED = ("last_event_id", "token", "progress")  # query names that are not inputs, unless the schema declares them
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DECIMAL_INTEGER = re.compile(rf"-?[0-9]{{1,{strictjson.MAX_DIGITS}}}")
_DECIMAL = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def read_query(query: str, schema: Schema) -> tuple[Call, dict[str, str]]:
    """Read `GET /infer?NAME=value`: the inputs, and the reserved names that are not inputs. Raises BadRequest."""
    faults: list[Fault] = []
    values: dict[str, object] = {}
    reserved: dict[str, str] = {}
    for name, text in _pairs(query):
        declared = schema.inputs.get(name)
        if name in values or name in reserved:
            faults.append(repeated(name))
        elif declared is None:
            (reserved if name in RESERVED else values)[name] = text
        else:
            try:
                values[name] = _parsed(text, declared)
            except BadRequest as error:
                faults.append(Fault(name, declared.expected, describe(text), sentence=error.message))
    return Call(None, checked(schema, values, {}, faults)), reserved


def reserved_query(query: str) -> dict[str, str]:
    """Read the reserved names of a route that takes no inputs from its query. Raises BadRequest."""
    reserved: dict[str, str] = {}
    for name, text in _pairs(query):
        if name in reserved:
            raise refusal([repeated(name)])
        if name in RESERVED:
            reserved[name] = text
    return reserved


def token(query: str) -> str | None:
    """Return the token for one stream in a query; None if there is none, or several, or the query is malformed."""
    try:
        return reserved_query(query).get("token")
    except BadRequest:
        return None


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    for field in filter(None, query.split("&")):
        name, _, text = field.partition("=")
        yield _decoded(name), _decoded(text)


def _decoded(text: str) -> str:
    if not text.isascii() or _BAD_ESCAPE.search(text):
        raise BadRequest("The query has a stray % or a character outside ASCII; percent-encode its UTF-8 bytes.")
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise BadRequest("The query is not UTF-8; percent-encode the UTF-8 bytes of each character.") from None


def _parsed(text: str, declared: Input) -> object:
    """Turn text to a value, where it reads as one; else leave it for the schema to refuse."""
    if declared.shape != (1,) and text.startswith("["):
        return strictjson.loads(text.encode(), declared.name)
    if declared.family is BOOLEAN:
        return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
    if declared.family is INTEGER and _DECIMAL_INTEGER.fullmatch(text):
        return int(text)
    return float(text) if declared.family is NUMBER and _DECIMAL.fullmatch(text) else text
