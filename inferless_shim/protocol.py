"""Request forms to inputs; results to v2, generate and flat bodies. No I/O.

A request carries an app's inputs as v2 tensors, in a `parameters` envelope, or as bare keys (CONTRACT.md §4, §5, §7);
which form it is depends on the body alone, not on the route. Knows nothing of HTTP beyond a query's text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from . import __version__, strictjson
from .errors import BadRequest
from .schema import BOOLEAN, INTEGER, MAX_FAULTS, NUMBER, RANGES, Fault, Input, Schema, Shapes, refusal
from .strictjson import describe, measure, plain, quoted

RESERVED = ("last_event_id", "token", "progress")  # query names that are not inputs, unless the schema declares them
VERSION = "1"  # of every model


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for. `outputs` are the v2 outputs that it wants, None for all."""

    id: str | None
    inputs: dict[str, Any]
    outputs: list[str] | None = None


# Bodies. ------------------------------------------------------------------------------------------------------------


def read_body(body: bytes, schema: Schema) -> Call:
    """Read a request in any of the three forms. Raises BadRequest that tells all faults at once.

    An app's own input called `inputs` or `parameters` wins over the envelope of that name. `id` is the request's, but
    among bare keys of an app that has such an input.
    """
    request = strictjson.loads(body)
    if not isinstance(request, dict):
        raise BadRequest(f"The body must be a JSON object, got {describe(request)}; send the inputs by name.")
    return _read_tensors(request, schema) if _is_envelope("inputs", request, schema) else _read_names(request, schema)


def _is_envelope(key: str, request: dict[str, Any], schema: Schema) -> bool:
    """Tell the protocol's own `inputs` and `parameters` from the app's: no input takes an object or a list of them."""
    value = request.get(key)
    if key not in schema.inputs:
        return value is not None
    return isinstance(value[0] if isinstance(value, list) and value else value, dict)


def _read_names(request: dict[str, Any], schema: Schema) -> Call:
    faults: list[Fault] = []
    request_id = None
    if _is_envelope("parameters", request, schema):
        request_id = _read_id(request.pop("id", None), faults)
        parameters = request.pop("parameters")
        if isinstance(parameters, dict):
            # Inputs may stand beside the envelope, as in Triton's generate.
            faults += map(_repeated, [name for name in request if name in parameters][:MAX_FAULTS])
            request |= parameters
        else:
            faults.append(Fault("parameters", "an object", describe(parameters), "put the inputs into it by name"))
    elif "id" not in schema.inputs:
        request_id = _read_id(request.pop("id", None), faults)
    return Call(request_id, _checked(schema, request, {}, faults))


def _read_tensors(request: dict[str, Any], schema: Schema) -> Call:
    faults: list[Fault] = []
    request_id = _read_id(request.get("id"), faults)
    outputs = _read_outputs(request.get("outputs"), faults)
    beside = schema.inputs.keys() & request.keys() - {"id", "inputs", "outputs", "parameters"}
    faults += [Fault(name, "a tensor in inputs", "a key beside it", "move it") for name in sorted(beside)]
    values: dict[str, object] = {}
    shapes: dict[str, Sequence[int]] = {}
    tensors = request["inputs"]
    if not isinstance(tensors, list):
        remedy = 'send [{"name": …, "shape": [1], "datatype": …, "data": […]}], or the inputs by name'
        faults.append(Fault("inputs", "a list of tensors", describe(tensors), remedy))
        tensors = []
    for position, tensor in enumerate(tensors):
        if len(faults) >= MAX_FAULTS:
            break
        try:
            name, data, shape = _read_tensor(tensor, position)
            if name in values:
                raise _repeated(name)
            values[name], shapes[name] = data, shape
        except Fault as fault:
            faults.append(fault)
    return Call(request_id, _checked(schema, values, shapes, faults), outputs)


def _read_tensor(tensor: object, position: int) -> tuple[str, list[Any], Sequence[int]]:
    """Return name, data and shape, () if it has none. Its datatype is not looked at: the schema decides."""
    if not isinstance(tensor, dict):
        raise Fault(f"inputs[{position}]", "an object with name and data", describe(tensor), "send a tensor")
    name, data, shape = tensor.get("name"), tensor.get("data"), tensor.get("shape")
    if not isinstance(name, str):
        raise Fault(f"inputs[{position}].name", "a string", describe(name), "name the input")
    if not isinstance(data, list):
        got = f"data that is {describe(data)}" if "data" in tensor else "no data"
        raise Fault(name, "a tensor with a list for data", got, "send its data as JSON (binary tensors are not read)")
    if shape is None:
        return name, data, ()
    # A length is an int64 in the protocol; data cannot nest deeper than JSON text may.
    are_lengths = isinstance(shape, list) and all(type(length) is int and 0 <= length < 1 << 63 for length in shape)
    if not are_lengths or len(shape) > strictjson.MAX_NESTING:
        got = f"a shape that is {describe(shape)}"
        raise Fault(name, "a tensor whose shape is a list of lengths", got, "send the shape of its data")
    return name, data, shape


def _read_id(value: object, faults: list[Fault]) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    faults.append(Fault("id", "a string", describe(value), "put the request's id in quotes"))
    return None


def _read_outputs(value: object, faults: list[Fault]) -> list[str] | None:
    wanted = value if isinstance(value, list) else []
    names = [output["name"] for output in wanted if isinstance(output, dict) and isinstance(output.get("name"), str)]
    if len(names) < len(wanted) or not isinstance(value, list | None):
        faults.append(Fault("outputs", "a list of objects with a name", describe(value), "leave it out for all"))
    return names or None


def _repeated(name: str) -> Fault:
    return Fault(name, "one value", "several", sentence=f"{quoted(name)} is given more than once; send it once.")


def _checked(schema: Schema, values: Mapping[str, object], shapes: Shapes, faults: list[Fault]) -> dict[str, Any]:
    """Return what `infer` gets. Raises BadRequest that tells `faults`, and those of inputs that have none yet."""
    inputs, more = schema.examine(values, shapes)
    told = {fault.told["input"] for fault in faults}
    faults += [fault for fault in more if fault.told["input"] not in told]
    if faults:
        raise refusal(faults)
    return inputs


# Queries. -----------------------------------------------------------------------------------------------------------


def read_query(query: str, schema: Schema) -> tuple[Call, dict[str, str]]:
    """Read `GET /infer?NAME=value`: the inputs, and the reserved names that are not inputs. Raises BadRequest."""
    faults: list[Fault] = []
    values: dict[str, object] = {}
    reserved: dict[str, str] = {}
    for name, text in _pairs(query):
        declared = schema.inputs.get(name)
        if name in values or name in reserved:
            faults.append(_repeated(name))
        elif declared is None:
            (reserved if name in RESERVED else values)[name] = text
        else:
            try:
                values[name] = _parsed(text, declared)
            except BadRequest as error:
                faults.append(Fault(name, declared.expected, describe(text), sentence=error.message))
    return Call(None, _checked(schema, values, {}, faults)), reserved


def reserved_query(query: str) -> dict[str, str]:
    """Read the reserved names of a route that takes no inputs from its query. Raises BadRequest."""
    reserved: dict[str, str] = {}
    for name, text in _pairs(query):
        if name in reserved:
            raise refusal([_repeated(name)])
        if name in RESERVED:
            reserved[name] = text
    return reserved


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


_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DECIMAL_INTEGER = re.compile(rf"-?[0-9]{{1,{strictjson.MAX_DIGITS}}}")
_DECIMAL = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


# Answers. -----------------------------------------------------------------------------------------------------------

_FLOATS = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16"}
_DTYPES = {name.lower(): name for name in ("BOOL", *RANGES)} | _FLOATS
_KINDS = {
    frozenset({bool}): "BOOL",
    frozenset({int}): "INT64",
    frozenset({float}): "FP64",
    frozenset({int, float}): "FP64",
    frozenset({str}): "BYTES",
    frozenset(): "FP64",  # an empty list says nothing; this is numpy's default
}


def infer_response(
    result: Mapping[str, object], *, model: str, id: str | None, requested: list[str] | None
) -> dict[str, Any]:
    """Dress an app's dict as a v2 body. Raises BadRequest for an unknown output, ValueError that names one at fault."""
    values = {str(name): value for name, value in result.items()}
    for name in requested or ():
        if name not in values:
            raise BadRequest(f"{quoted(name)} is not an output of this app; it gave: {', '.join(values) or 'none'}.")
    body: dict[str, Any] = {"model_name": model, "model_version": VERSION}
    if id is not None:
        body["id"] = id
    body["outputs"] = [_tensor(name, values[name]) for name in requested or values]
    return body


def _tensor(name: str, value: object) -> dict[str, Any]:
    try:
        datatype, shape, data = _typed(value)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"output {name!r} cannot be sent: {error}") from None
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def _typed(value: Any) -> tuple[str, Sequence[int], list[Any]]:
    """Return datatype, shape and data, row by row. What v2 has no datatype for goes out as JSON text, in BYTES."""
    dtype = getattr(value, "dtype", None) if hasattr(value, "tolist") else None
    datatype = _DTYPES.get(str(getattr(dtype, "name", dtype)).removeprefix("torch."))
    shape: Sequence[int] = value.shape if datatype else ()
    value = plain(value)
    try:
        true_shape, elements = measure(value)
    except ValueError:  # rows of different lengths
        true_shape, elements = (), [value]
    bases = (bool, int, float, str, object)
    kinds = frozenset(next(base for base in bases if issubclass(kind, base)) for kind in set(map(type, elements)))
    datatype = datatype or _KINDS.get(kinds)
    if datatype is None:
        return "BYTES", (1,), [json.dumps(value, ensure_ascii=False, allow_nan=False)]
    if datatype in _FLOATS.values():
        elements = [*map(float, elements)]
        if not all(map(math.isfinite, elements)):
            raise ValueError("it holds NaN or Infinity, which JSON has no words for; send null or a string")
    return datatype, shape or true_shape or (1,), elements


def generate_response(outputs: Sequence[Mapping[str, Any]], *, model: str, id: str | None = None) -> dict[str, Any]:
    """Join a stream's dicts to one: strings in order, other values from the last dict that has them."""
    joined: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for output in outputs:
        joined.update(output)
        for name, value in output.items():
            if isinstance(value, str):
                texts.setdefault(name, []).append(value)
    joined.update((name, "".join(parts)) for name, parts in texts.items())
    names = {"model_name": model, "model_version": VERSION} | ({"id": id} if id is not None else {})
    return joined | {name: value for name, value in names.items() if name not in joined}  # the app's own win


def server_metadata() -> dict[str, Any]:
    """Answer GET /v2."""
    return {"name": "inferless-shim", "version": __version__, "extensions": []}


def model_metadata(model: str, schema: Schema) -> dict[str, Any]:
    """Answer GET /v2/models/<name>. What an app sends back is not declared anywhere."""
    v2_names = {"STRING": "BYTES", "INT": "INT64", "BOOLEAN": "BOOL"}
    inputs = [
        {"name": name, "datatype": v2_names.get(declared.datatype, declared.datatype), "shape": list(declared.shape)}
        for name, declared in schema.inputs.items()
    ]
    return {"name": model, "versions": [VERSION], "platform": "inferless", "inputs": inputs, "outputs": []}
