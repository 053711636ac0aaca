"""Request forms to inputs: a body becomes a Call. No I/O.

A request carries an app's inputs as v2 tensors, in a `parameters` envelope, or as bare keys (CONTRACT.md §4, §5, §7);
which form it is depends on the body alone, not on the route. Tensors may lie behind the JSON as bytes (Triton's binary
tensor data extension). Knows nothing of HTTP beyond where a body's JSON ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import strictjson, tensors, weights
from .errors import BadRequest
from .schema import JSON, MAX_FAULTS, Fault, Schema, Shapes, refusal
from .strictjson import describe, quoted

HEADER_LENGTH = "Inference-Header-Content-Length"  # the field that says how long a body's JSON is, in bytes
_LENGTH = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for.

    `outputs` are the v2 outputs that it wants, and whether as binary data; None for all, as binary data if `binary`.
    """

    id: str | None
    inputs: dict[str, Any]
    outputs: dict[str, bool] | None = None
    binary: bool = False


Weigh = Callable[[weights.Weight], None]  # takes the memory that values are about to need; raises if there is none


def read_body(body: bytes, schema: Schema, header_length: str | None, *, weigh: Weigh) -> Call:
    """Read a request in any of the three forms. Raises BadRequest that tells all faults at once.

    An app's own input called `inputs` or `parameters` wins over the envelope of that name. `id` is the request's, but
    among bare keys of an app that has such an input. `header_length` is the value of HEADER_LENGTH: binary data
    follows that many bytes of JSON.
    """
    text, binary = _split(body, header_length, weigh)
    weigh(weights.of_json(text, texts_too=schema.reads_texts))
    request = strictjson.loads(text)
    if not isinstance(request, dict):
        raise BadRequest(f"The body must be a JSON object, got {describe(request)}; send the inputs by name.")
    if _is_envelope("inputs", request, schema):
        return _read_tensors(request, schema, binary)
    if binary.left:
        raise refusal([binary.unclaimed()])
    return _read_names(request, schema)


class _Binary:
    """What follows the JSON of a body: each binary tensor takes its bytes from it in turn."""

    def __init__(self, data: memoryview, weigh: Weigh) -> None:
        self.left = data
        self.weigh = weigh

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes, fewer if there are no more."""
        taken, self.left = self.left[:size], self.left[size:]
        return taken

    def unclaimed(self) -> Fault:
        """Make the fault of bytes that no tensor took."""
        remedy = "give each binary tensor its binary_data_size, and send no more than they take"
        return Fault("inputs", "tensors that take all of the binary data", f"{len(self.left)} bytes more", remedy)


def _split(body: bytes, header_length: str | None, weigh: Weigh) -> tuple[bytes, _Binary]:
    """Part a body's JSON from its binary data."""
    if header_length is None:
        return body, _Binary(memoryview(b""), weigh)
    if not _LENGTH.fullmatch(header_length):
        raise BadRequest(f"{HEADER_LENGTH} is not one decimal number; send the size of the body's JSON in bytes.")
    length = int(header_length)
    if length > len(body):
        raise BadRequest(
            f"{HEADER_LENGTH} says {length}, but the body has {len(body)} bytes; send the size of its JSON in bytes."
        )
    return body[:length], _Binary(memoryview(body)[length:], weigh)


def _is_envelope(key: str, request: dict[str, Any], schema: Schema) -> bool:
    """Tell the protocol's own `inputs` and `parameters` from the app's.

    No input takes an object or a list of them, but one of any JSON: that is the app's whatever is sent.
    """
    value, declared = request.get(key), schema.inputs.get(key)
    if declared is None:
        return value is not None
    if declared.family is JSON:
        return False
    return isinstance(value[0] if isinstance(value, list) and value else value, dict)


def _read_names(request: dict[str, Any], schema: Schema) -> Call:
    faults: list[Fault] = []
    request_id = None
    if _is_envelope("parameters", request, schema):
        request_id = _read_id(request.pop("id", None), faults)
        parameters = request.pop("parameters")
        if isinstance(parameters, dict):
            # Inputs may stand beside the envelope, as in Triton's generate.
            faults += map(repeated, [name for name in request if name in parameters][:MAX_FAULTS])
            request |= parameters
        else:
            faults.append(Fault("parameters", "an object", describe(parameters), "put the inputs into it by name"))
    elif "id" not in schema.inputs:
        request_id = _read_id(request.pop("id", None), faults)
    return Call(request_id, checked(schema, request, {}, faults))


def _read_tensors(request: dict[str, Any], schema: Schema, binary: _Binary) -> Call:
    faults: list[Fault] = []
    request_id = _read_id(request.get("id"), faults)
    all_binary = bool(_read_flag(request, "binary_data_output", "parameters", faults))
    outputs = _read_outputs(request.get("outputs"), all_binary, faults)
    beside = schema.inputs.keys() & request.keys() - {"id", "inputs", "outputs", "parameters"}
    faults += [Fault(name, "a tensor in inputs", "a key beside it", "move it") for name in sorted(beside)]
    sent = request["inputs"]
    if not isinstance(sent, list):
        remedy = 'send [{"name": …, "shape": [1], "datatype": …, "data": […]}], or the inputs by name'
        faults.append(Fault("inputs", "a list of tensors", describe(sent), remedy))
        sent = []
    values, shapes = _read_inputs(sent, binary, faults)
    if binary.left and not faults:
        faults.append(binary.unclaimed())
    return Call(request_id, checked(schema, values, shapes, faults), outputs, all_binary)


def _read_inputs(
    sent: list[object], binary: _Binary, faults: list[Fault]
) -> tuple[dict[str, object], dict[str, Sequence[int]]]:
    """Return the tensors' data and shapes by name; a shape is () where there is none."""
    values: dict[str, object] = {}
    shapes: dict[str, Sequence[int]] = {}
    for position, tensor in enumerate(sent):
        if len(faults) >= MAX_FAULTS:
            break
        try:
            name, data, shape = _read_tensor(tensor, f"inputs[{position}]", binary)
            if name in values:
                raise repeated(name)
            values[name], shapes[name] = data, shape
        except Fault as fault:
            faults.append(fault)
    return values, shapes


def _read_tensor(tensor: object, place: str, binary: _Binary) -> tuple[str, list[Any], Sequence[int]]:
    """Return name, data and shape. The datatype of JSON data is not looked at: the schema decides."""
    if not isinstance(tensor, dict):
        raise Fault(place, "an object with name and data", describe(tensor), "send a tensor")
    name = tensor.get("name")
    size = _read_size(tensor, name if isinstance(name, str) else place)
    # Taken before anything else is looked at: what comes next is the next tensor's, whatever is wrong with this one.
    taken = None if size is None else binary.take(size)
    if not isinstance(name, str):
        raise Fault(f"{place}.name", "a string", describe(name), "name the input")
    if taken is None:
        return name, _read_data(tensor, name), _read_shape(tensor, name) or ()
    if len(taken) != size:
        remedy = f"send them after the JSON, and the size of that as {HEADER_LENGTH}"
        raise Fault(name, f"a tensor of {size} bytes of binary data", f"{len(taken)}", remedy)
    shape = _read_shape(tensor, name)
    return name, _read_binary(tensor, name, taken, shape, binary.weigh), shape or ()


def _read_size(tensor: dict[str, Any], name: str) -> int | None:
    """Return how much binary data a tensor has, None if its data is JSON."""
    parameters = tensor.get("parameters")
    if not isinstance(parameters, dict | None):
        raise Fault(name, "a tensor whose parameters are an object", describe(parameters), "leave them out")
    size = (parameters or {}).get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or not 0 <= size < 1 << 63:
        got = f"a binary_data_size that is {describe(size)}"
        raise Fault(name, "a tensor whose binary_data_size is a number of bytes", got, "send the size of its data")
    return size


def _read_data(tensor: dict[str, Any], name: str) -> list[Any]:
    data = tensor.get("data")
    if not isinstance(data, list):
        got = f"data that is {describe(data)}" if "data" in tensor else "no data"
        raise Fault(name, "a tensor with a list for data", got, "send its data as JSON, or as binary data")
    return data


def _read_binary(
    tensor: dict[str, Any], name: str, data: memoryview, shape: Sequence[int] | None, weigh: Weigh
) -> list[Any]:
    if tensor.get("data") is not None:
        raise Fault(name, "a tensor with data or binary data", "both", "send one of them")
    if shape is None:
        raise Fault(name, "a binary tensor with a shape", "none", "send the shape of its data")
    declared = tensor.get("datatype")
    datatype = tensors.v2_name(declared) if isinstance(declared, str) else ""
    if datatype not in tensors.DATATYPES:
        known = ", ".join(tensors.DATATYPES)
        raise Fault(name, "a binary tensor of a known datatype", describe(declared), f"send one of {known}")
    weigh(weights.of_tensor(len(data), datatype))
    try:
        return tensors.read(data, datatype, shape)
    except tensors.Malformed as error:
        raise Fault(name, f"a binary {datatype} tensor", error.got, error.remedy) from None


def _read_shape(tensor: dict[str, Any], name: str) -> Sequence[int] | None:
    shape = tensor.get("shape")
    # A length is an int64 in the protocol; data cannot nest deeper than JSON text may.
    is_list = isinstance(shape, list) and len(shape) <= strictjson.MAX_NESTING
    if shape is None or (is_list and all(type(length) is int and 0 <= length < 1 << 63 for length in shape)):
        return shape
    got = f"a shape that is {str(shape)[:40] if is_list else describe(shape)}"
    raise Fault(name, "a tensor whose shape is a list of lengths", got, "send the shape of its data")


def _read_id(value: object, faults: list[Fault]) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    faults.append(Fault("id", "a string", describe(value), "put the request's id in quotes"))
    return None


def _read_outputs(value: object, all_binary: bool, faults: list[Fault]) -> dict[str, bool] | None:
    wanted = value if isinstance(value, list) else []
    named = [each for each in wanted if isinstance(each, dict) and isinstance(each.get("name"), str)]
    if len(named) < len(wanted) or not isinstance(value, list | None):
        faults.append(Fault("outputs", "a list of objects with a name", describe(value), "leave it out for all"))
    outputs: dict[str, bool] = {}
    for position, output in enumerate(named):
        where = f"outputs[{position}].parameters"
        own = _read_flag(output, "binary_data", where, faults)
        outputs[output["name"]] = all_binary if own is None else own
        if isinstance(output.get("parameters"), dict) and output["parameters"].get("classification"):
            sentence = f"The classification of {quoted(output['name'])} is not supported; ask for the output itself."
            faults.append(Fault(f"{where}.classification", "nothing", "a classification", sentence=sentence))
        if isinstance(output.get("parameters"), dict) and "shared_memory_region" in output["parameters"]:
            sentence = f"Shared memory for {quoted(output['name'])} is not supported; take the output from the answer."
            faults.append(Fault(f"{where}.shared_memory_region", "nothing", "a region", sentence=sentence))
    return outputs or None


def _read_flag(holder: dict[str, Any], name: str, where: str, faults: list[Fault]) -> bool | None:
    """Return what the `parameters` of a request or an output say to `name`, None if they do not."""
    parameters = holder.get("parameters")
    if not isinstance(parameters, dict | None):
        faults.append(Fault(where, "an object", describe(parameters), "leave it out"))
        return None
    value = (parameters or {}).get(name)
    if isinstance(value, bool | None):
        return value
    faults.append(Fault(f"{where}.{name}", "true or false", describe(value), "leave it out for JSON"))
    return None


def repeated(name: str) -> Fault:
    """Return the fault of a name that is given more than once."""
    return Fault(name, "one value", "several", sentence=f"{quoted(name)} is given more than once; send it once.")


def checked(schema: Schema, values: Mapping[str, object], shapes: Shapes, faults: list[Fault]) -> dict[str, Any]:
    """Return what `infer` gets. Raises BadRequest that tells `faults`, and those of inputs that have none yet."""
    inputs, more = schema.examine(values, shapes)
    told = {fault.told["input"] for fault in faults}
    faults += [fault for fault in more if fault.told["input"] not in told]
    if faults:
        raise refusal(faults)
    return inputs
