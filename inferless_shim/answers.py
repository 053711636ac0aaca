"""Results to v2, generate and flat bodies; what server and model say of themselves. No I/O.

An app's dict goes out as tensors, in JSON or, where the client asks for it, as bytes behind the JSON (Triton's binary
tensor data extension). numpy and torch values are known by dtype and shape; neither is imported.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import __version__, tensors
from .errors import BadRequest
from .outputs import SCALARS, VERSION, Answer, as_dict, encode, encode_value, named_fault, plain
from .protocol import HEADER_LENGTH, Call
from .schema import Schema
from .strictjson import measure, quoted

BINARY = "application/octet-stream"
PLATFORM = "inferless"
EXTENSIONS = (
    "binary_tensor_data",
    "generate",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
)
Outputs = dict[str, tuple[str, list[int]]]  # v2 datatype and shape, by name

# numpy's names of its dtypes; torch's are the same after "torch.".
_DTYPES = {name.lower(): name for name in tensors.WIDTHS if name not in tensors.FLOATS}
_DTYPES |= {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16"}
_KINDS = {
    frozenset({bool}): "BOOL",
    frozenset({int}): "INT64",
    frozenset({float}): "FP64",
    frozenset({int, float}): "FP64",
    frozenset({str}): "BYTES",
    frozenset({bytes}): "BYTES",
    frozenset({str, bytes}): "BYTES",
    frozenset(): "FP64",  # an empty list says nothing; this is numpy's default
}


# Inference. ---------------------------------------------------------------------------------------------------------


def flat_response(result: Any) -> Answer:
    """Dress an app's dict as the JSON that it is, and so anything else that it returned."""
    return Answer(encode(result) if isinstance(result, dict) else encode_value(result))


def infer_response(result: Any, *, model: str, call: Call) -> Answer:
    """Dress an app's answer as a v2 body.

    Raises BadRequest for an output that it does not have, ValueError that names one that cannot be sent.
    """
    values = {str(name): value for name, value in as_dict(result).items()}
    wanted = dict.fromkeys(values, call.binary) if call.outputs is None else call.outputs
    for name in wanted:
        if name not in values:
            raise BadRequest(f"{quoted(name)} is not an output of this app; it gave: {', '.join(values) or 'none'}.")
    made = [_output(name, values[name], binary) for name, binary in wanted.items()]
    head = {"model_name": model, "model_version": VERSION} | ({} if call.id is None else {"id": call.id})
    try:
        body = encode(head | {"outputs": [output for output, _ in made]})
    except (TypeError, ValueError) as error:
        raise named_fault({name: values[name] for name in wanted}, error) from None
    blobs = [blob for _, blob in made if blob is not None]
    if not blobs:
        return Answer(body)
    return Answer(b"".join([body, *blobs]), BINARY, ((HEADER_LENGTH, str(len(body))),))


def generate_response(results: Sequence[Any], *, model: str, id: str | None = None) -> Answer:
    """Make one flat JSON of what an app sent, with the names of model and version."""
    whole = as_dict(joined(results))
    names = {"model_name": model, "model_version": VERSION} | ({"id": id} if id is not None else {})
    # The app's own keys of these names win.
    return Answer(encode(whole | {name: value for name, value in names.items() if name not in whole}))


def joined(results: Sequence[Any]) -> Any:
    """Return the one result as it is; of several one dict: strings in order, other values from the last that has them.

    An app that does not stream may send all the same.
    """
    if len(results) == 1:
        return results[0]
    whole: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for output in map(as_dict, results):
        whole.update(output)
        for name, value in output.items():
            if isinstance(value, str):
                texts.setdefault(name, []).append(value)
    return whole | {name: "".join(parts) for name, parts in texts.items()}


def _output(name: str, value: Any, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    """Return a tensor as its JSON says it, and its binary data, None if the JSON holds the data."""
    try:
        if binary:
            datatype, shape, data = _as_bytes(value)
            parameters = {"binary_data_size": len(data)}
            return {"name": name, "datatype": datatype, "shape": shape or [1], "parameters": parameters}, data
        datatype, shape, elements = _typed(value)
        if datatype in tensors.FLOATS and not all(map(math.isfinite, elements)):
            remedy = "send null or a string, or ask for it as binary data"
            raise ValueError(f"it holds NaN or Infinity, which JSON has no words for; {remedy}")
        return {"name": name, "datatype": datatype, "shape": shape or [1], "data": elements}, None
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"output {name!r} cannot be sent: {error}") from None


# Values. ------------------------------------------------------------------------------------------------------------


class _Typed(NamedTuple):
    """A value as the protocol sees it; a single one has shape [].

    Its elements stand row by row; those of BYTES are str, bytes or bytearray.
    """

    datatype: str
    shape: list[int]
    elements: list[Any]


def _typed(value: Any) -> _Typed:
    """Find datatype and shape of a value. What v2 has no datatype for goes out as JSON text, in BYTES."""
    datatype = _datatype(value)
    shape: Sequence[int] = value.shape if datatype else ()
    value = _listed(value)
    try:
        true_shape, elements = measure(value)
    except ValueError:  # rows of different lengths
        true_shape, elements = (), [value]
    datatype = datatype or _KINDS.get(frozenset(map(_base, set(map(type, elements)))))
    if datatype == "INT64" and not (min(elements) >= -(1 << 63) and max(elements) < 1 << 63):
        datatype = "UINT64" if min(elements) >= 0 and max(elements) < 1 << 64 else None
    if datatype is None:
        return _Typed("BYTES", [], [json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain)])
    if datatype in tensors.FLOATS:
        elements = [*map(float, elements)]
    return _Typed(datatype, [*(shape or true_shape)], elements)


def _datatype(value: Any) -> str | None:
    """Return the v2 datatype of an array or a scalar of numpy's or torch's, None for all else."""
    dtype = getattr(value, "dtype", None) if hasattr(value, "tolist") else None
    return _DTYPES.get(str(getattr(dtype, "name", dtype)).removeprefix("torch."))


def _listed(value: Any) -> Any:
    """Turn arrays, tuples and sets into lists, however deep; scalars and dicts are left as they are."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, bytearray, Mapping)):
        return value
    if not isinstance(value, list):
        return _listed(plain(value))
    return value if type(value) is list and SCALARS.issuperset(map(type, value)) else [*map(_listed, value)]


def _base(kind: type) -> type:
    """Return which of the types that v2 has datatypes for a type is one of, else object."""
    if issubclass(kind, bytearray):
        return bytes
    return next((base for base in (bool, int, float, str, bytes) if issubclass(kind, base)), object)


def _as_bytes(value: Any) -> tuple[str, list[int], bytes]:
    """Return datatype, shape ([] of a single value) and binary data."""
    datatype = _datatype(value)
    data = _own_bytes(value, tensors.WIDTHS[datatype]) if datatype else None
    if datatype is not None and data is not None:
        return datatype, [*value.shape], data
    typed = _typed(value)
    return typed.datatype, typed.shape, tensors.write(typed.elements, typed.datatype)


def _own_bytes(value: Any, width: int) -> bytes | None:
    """Return an array as it lies in memory, if that is also how it travels: a hundred times faster than by elements."""
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):  # torch's tensors, and dtypes that the buffer protocol does not know
        return None
    foreign = sys.byteorder == "big" or view.format.startswith((">", "!")) or view.itemsize != width
    return None if foreign else view.tobytes()


# What is told before anybody infers. --------------------------------------------------------------------------------


def learn(result: Any) -> Outputs:
    """Read off an app's answer what its outputs are: a single value has shape [1], and every length may vary.

    What says nothing yet is left out: null, and lists without an element.
    """
    outputs: Outputs = {}
    for name, value in as_dict(result).items():
        try:
            typed = _typed(value)
        except Exception:  # it could be sent, as something else than tensors; what is told about it can wait
            continue
        if value is not None and typed.elements:
            outputs[str(name)] = typed.datatype, [-1] * len(typed.shape) or [1]
    return outputs


def server_metadata() -> dict[str, Any]:
    """Answer GET /v2."""
    return {"name": "inferless-shim", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: str, schema: Schema, outputs: Outputs) -> dict[str, Any]:
    """Answer GET /v2/models/<name>."""
    inputs = [
        {"name": name, "datatype": tensors.v2_name(declared.datatype), "shape": list(declared.shape)}
        for name, declared in schema.inputs.items()
    ]
    told = [{"name": name, "datatype": datatype, "shape": shape} for name, (datatype, shape) in outputs.items()]
    return {"name": model, "versions": [VERSION], "platform": PLATFORM, "inputs": inputs, "outputs": told}


def model_config(
    model: str, schema: Schema, outputs: Outputs, *, batch_size: int = 0, streaming: bool = False
) -> dict[str, Any]:
    """Answer GET /v2/models/<name>/config with what Triton's ModelConfig has and is true here."""
    inputs = [
        {
            "name": name,
            "data_type": _config_type(tensors.v2_name(declared.datatype)),
            "dims": list(declared.shape),
            "optional": not declared.required,
        }
        for name, declared in schema.inputs.items()
    ]
    told = [
        {"name": name, "data_type": _config_type(datatype), "dims": shape}
        for name, (datatype, shape) in outputs.items()
    ]
    return {
        "name": model,
        "platform": PLATFORM,
        "max_batch_size": batch_size,
        "input": inputs,
        "output": told,
        "model_transaction_policy": {"decoupled": streaming},
    }


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def index_entry(model: str, state: str, reason: str) -> dict[str, str]:
    """Return a model's line in the repository's index. `state` is one of Triton's."""
    return {"name": model, "version": VERSION, "state": state, "reason": reason}
