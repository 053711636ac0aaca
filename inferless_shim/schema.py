"""INPUT_SCHEMA compiled to a checker: what an app declares, and whether a request's values fit. No I/O.

Knows values and shapes, nothing of the forms in which a request carries them (that is `protocol`). An app never sees a
value that its schema does not allow; integer width alone is advisory, as on Inferless (CONTRACT.md §7).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from .errors import BadRequest, StartupError
from .strictjson import describe, measure, nearest, nest, quoted

MAX_FAULTS = 50  # told in one answer; a body of 10 MiB could hold a million
Shapes = Mapping[str, Sequence[int]]  # of v2 tensors, by input


class Fault(Exception):
    """One thing that is wrong with a request: clauses for a program, a sentence with the remedy for a person."""

    def __init__(self, input: str, expected: str, got: str, remedy: str = "", *, sentence: str = "") -> None:
        input, got = (text if len(text) <= 80 else text[:79] + "…" for text in (input, got))
        self.sentence = sentence or f"{input} must be {expected}, got {got}; {remedy}."
        self.told = {"input": input, "expected": expected, "got": got}
        super().__init__(self.sentence)


def refusal(faults: Sequence[Fault]) -> BadRequest:
    """Make one error of `faults`, of which there is at least one."""
    several = f"{len(faults)} faults, the first of them: " if len(faults) > 1 else ""
    return BadRequest(several + faults[0].sentence, faults=[fault.told for fault in faults[:MAX_FAULTS]])


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Datatypes that take the same JSON values. `convert` returns what the app gets, or None."""

    one: str
    many: str
    remedy: str
    convert: Callable[[Any], Any]
    placeholder: object


def _integer(value: object) -> int | None:
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _number(value: object) -> float | None:
    if type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    return value if type(value) is float and math.isfinite(value) else None


def _boolean(value: object) -> bool | None:
    return value if type(value) is bool else None


def _string(value: object) -> str | None:
    return value if type(value) is str else None


INTEGER = Family("an integer", "integers", "send a whole number", _integer, 1)
NUMBER = Family("a number", "numbers", "send a number", _number, 1.0)
BOOLEAN = Family("true or false", "booleans", "send true or false", _boolean, True)
STRING = Family("a string", "strings", "send text in quotes", _string, "text")
# Of inputs that a class or a signature declares (`typed`); INPUT_SCHEMA has no word for it.
JSON = Family("any JSON value", "JSON values", "send JSON", lambda value: value, "text")

_SIGNED = {f"INT{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)}
_UNSIGNED = {f"UINT{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)}
RANGES = _SIGNED | _UNSIGNED
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("STRING", "BYTES"), STRING),
    **dict.fromkeys(("BOOL", "BOOLEAN"), BOOLEAN),
    **dict.fromkeys(("INT", *RANGES), INTEGER),
    **dict.fromkeys(("FP16", "FP32", "FP64", "BF16"), NUMBER),
}


NOTHING: Any = type("Nothing", (), {"__repr__": lambda self: "nothing"})()  # where None would be a value


@dataclass(frozen=True, slots=True)
class Input:
    """One entry of INPUT_SCHEMA. `shape` has -1 where any length will do; shape (1,) gives the app a scalar.

    The datatype JSON, always of shape (1,), takes any JSON value.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    required: bool
    example: object = None
    batched: bool = False  # a request may put a leading dimension of 1 before `shape`

    @property
    def family(self) -> Family:
        return JSON if self.datatype == "JSON" else FAMILIES[self.datatype]

    @property
    def expected(self) -> str:
        if self.shape == (1,):
            return self.family.one
        if self.shape == (-1,):
            return f"a list of {self.family.many}"
        if len(self.shape) == 1:
            return f"a list of {self.shape[0]} {self.family.many}"
        return f"nested lists of {self.family.many}, of shape {list(self.shape)}"

    def fit(self, value: object, tensor_shape: Sequence[int] | None = None) -> Any:
        """Return what the app gets for `value`, a scalar or a list, nested or flat. Raises Fault.

        A v2 tensor's own shape decides, or that of its data if it is (): [1] is a scalar even where [-1] is declared.
        """
        if self.family is JSON:
            return value if tensor_shape is None else _untensored(value, tensor_shape)
        if self.shape == (1,) and type(value) is not list:
            return self._convert([value])[0]
        shape, elements = self._arranged(value, tensor_shape)
        elements = self._convert(elements)
        if shape == (1,) and (self.shape == (1,) or tensor_shape is not None):
            return elements[0]
        return nest(elements, shape)

    def missing(self, got: str) -> Fault:
        """Return the fault of a required input that is not there."""
        sentence = f"{self.name} is required, got {got}; send {self.expected}."
        return Fault(self.name, self.expected, got, sentence=sentence)

    def sample(self) -> Any:
        """Return the example if it fits, else a placeholder."""
        try:
            return self.fit(self.example)
        except Fault:
            lengths = [abs(length) for length in self.shape]
            return self.fit([self.family.placeholder] * math.prod(lengths))

    def _convert(self, elements: list[Any]) -> list[Any]:
        converted = [*map(self.family.convert, elements)]
        if None in converted:
            position = converted.index(None)
            wrong, place = elements[position], f" at position {position}" if len(elements) > 1 else ""
            remedy = self.family.remedy + (" without quotes" if type(wrong) is str else "")
            raise self._fault(describe(wrong) + place, remedy)
        return converted

    def _arranged(self, value: object, tensor_shape: Sequence[int] | None) -> tuple[tuple[int, ...], list[Any]]:
        try:
            true_shape, elements = measure(value)
        except ValueError as error:
            raise self._fault(str(error), "make all rows of one length") from None
        shape = tuple(tensor_shape or true_shape)
        if self.batched and len(shape) == len(self.shape) + 1 and shape[0] == 1:
            shape = shape[1:]
        allowed = len(shape) == len(self.shape) and all(n in (-1, m) for n, m in zip(self.shape, shape, strict=True))
        if tensor_shape is None:
            return (shape if allowed else self._completed(value, true_shape, len(elements))), elements
        if not allowed:
            raise self._fault(f"a tensor of shape {list(shape)}", f"send what fits {list(self.shape)}")
        if math.prod(shape) != len(elements):
            got = f"{describe(elements)} in a tensor of shape {list(shape)}"
            raise self._fault(got, "correct the shape or the data")
        return shape, elements

    def _completed(self, value: object, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
        """Return the shape that a scalar or a flat list of `count` elements takes, where there is only one."""
        known = math.prod(length for length in self.shape if length != -1)
        lacking = count // known if self.shape.count(-1) == 1 else 1
        completed = tuple(lacking if length == -1 else length for length in self.shape)
        if len(shape) <= 1 and math.prod(completed) == count:
            return completed
        got = describe(value) if len(shape) <= 1 else f"lists of shape {list(shape)}"
        raise self._fault(got, "send one value" if self.shape == (1,) else f"send what fits {list(self.shape)}")

    def _fault(self, got: str, remedy: str) -> Fault:
        return Fault(self.name, self.expected, got, remedy)


def _untensored(data: Any, shape: Sequence[int]) -> Any:
    """Return the one element of a tensor of JSON values, or all of them in lists."""
    if len(data) == 1 and all(length == 1 for length in shape):
        return data[0]
    return nest(data, shape) if math.prod(shape) == len(data) > 0 < len(shape) else data


class Schema:
    """The inputs of one app, in order, and what its author should be told about them."""

    reads_texts = False  # whether a text may be read as the JSON that it holds

    def __init__(self, inputs: dict[str, Input], warnings: list[str]) -> None:
        self.inputs = inputs
        self.warnings = warnings

    def examine(self, values: Mapping[str, object], tensor_shapes: Shapes) -> tuple[dict[str, Any], list[Fault]]:
        """Return the values that fit, which `build` takes, and the faults of the others. null counts as absent."""
        inputs: dict[str, Any] = {}
        faults = []
        for name, declared in self.inputs.items():
            value = values.get(name)
            if value is not None:
                try:
                    inputs[name] = declared.fit(value, tensor_shapes.get(name))
                except Fault as fault:
                    faults.append(fault)
            elif declared.required:
                faults.append(declared.missing("null" if name in values else "nothing"))
        if not values.keys() <= self.inputs.keys():
            unknown = (name for name in values if name not in self.inputs)
            faults += [self.unknown(name) for name in islice(unknown, MAX_FAULTS)]
        return inputs, faults

    def build(self, inputs: dict[str, Any]) -> Any:
        """Return what `infer` gets, made of what `examine` returned without a fault."""
        return inputs

    def example(self) -> dict[str, Any]:
        """Return a body that fits: the required inputs, or the first if none is."""
        required = [declared for declared in self.inputs.values() if declared.required]
        chosen = required or list(self.inputs.values())[:1]
        return {declared.name: declared.sample() for declared in chosen}

    def unknown(self, name: str) -> Fault:
        """Return the fault of a name that is not an input's."""
        known = ", ".join(list(self.inputs)[:20]) or "none"
        remedy = f"did you mean {near}?" if (near := nearest(name, self.inputs)) else f"its inputs are: {known}."
        sentence = f"{quoted(name)} is not an input of this app; {remedy}"
        return Fault(name, f"one of the app's inputs: {near or known}", "an unknown name", sentence=sentence)


# At load. -----------------------------------------------------------------------------------------------------------


EXCLUSIVE = "IS_STREAMING_OUTPUT and BATCH_SIZE exclude each other; remove one of them."


class Rules(NamedTuple):
    """What bounds an app's inputs beside their types.

    `relaxed` (--relaxed-schema) turns what streaming does not allow of an input into warnings.
    """

    streaming: bool = False
    batched: bool = False
    relaxed: bool = False


def compile_schema(raw: object, rules: Rules) -> Schema:
    """Check INPUT_SCHEMA and make a Schema of it. Raises StartupError that tells all faults, one a line."""
    if not isinstance(raw, dict):
        raise StartupError(f"INPUT_SCHEMA must be a dict, got {repr(raw)[:60]}; write {{}} for an app without inputs.")
    faults: list[str] = []
    warnings: list[str] = []
    inputs: dict[str, Input] = {}
    if rules.streaming and rules.batched:
        faults.append(EXCLUSIVE)
    for name, entry in raw.items():
        wrong = list(_entry_faults(name, entry))
        faults += wrong
        if not wrong:
            required, example = entry.get("required", True), entry.get("example")
            declared = Input(name, entry["datatype"].upper(), tuple(entry["shape"]), required, example, rules.batched)
            if rules.streaming:
                (warnings if rules.relaxed else faults).extend(streaming_faults(declared, rules.relaxed))
            warnings += _remarks(declared, entry)
            inputs[name] = declared
    if faults:
        raise StartupError("\n".join(faults))
    return Schema(inputs, warnings)


def _entry_faults(name: object, entry: object) -> Iterator[str]:
    if not isinstance(name, str):
        yield f"INPUT_SCHEMA has the name {repr(name)[:60]}; name each input with a string."
    elif not isinstance(entry, dict):
        yield f'{name} must be a dict, got {repr(entry)[:60]}; write {{"datatype": "STRING", "shape": [1]}}.'
    else:
        datatype, shape, required = entry.get("datatype"), entry.get("shape"), entry.get("required", True)
        if not isinstance(datatype, str) or datatype.upper() not in FAMILIES:
            near = nearest(datatype, FAMILIES) if isinstance(datatype, str) else None
            remedy = f"did you mean {near}?" if near else f"use one of {', '.join(FAMILIES)}."
            yield f"{name} has the datatype {repr(datatype)[:60]}; {remedy}"
        if not (isinstance(shape, list) and shape and all(type(n) is int and (n == -1 or n > 0) for n in shape)):
            rule = "a list of lengths, at least 1 each, or -1 for any"
            yield f"{name} has the shape {repr(shape)[:60]}, which is not {rule}; write [1] for a single value."
        if not isinstance(required, bool):
            yield f"{name} has {repr(required)[:60]} for required; write True or False."


def streaming_faults(declared: Input, relaxed: bool) -> Iterator[str]:
    """Say what streaming does not allow of an input; without the way out, if it is taken already."""
    remedy = "make it a STRING of shape [1] that holds JSON (json.dumps)"
    remedy += "" if relaxed else ", or start with --relaxed-schema"
    if declared.family is NUMBER:
        rule = "a streaming app's inputs are of the INT, STRING and BOOLEAN families"
        yield f"{declared.name} has the datatype {declared.datatype}, but {rule}; {remedy}."
    if declared.shape != (1,):
        yield f"{declared.name} has the shape {list(declared.shape)}, but a streaming app's inputs have [1]; {remedy}."


def _remarks(declared: Input, entry: dict[Any, Any]) -> Iterator[str]:
    unread = [str(key) for key in entry if key not in ("datatype", "shape", "required", "example")]
    if unread:
        yield f"{declared.name} has {', '.join(unread)}, which nothing reads; remove it (an input has no default)."
    try:
        fitted = declared.fit(declared.example) if declared.example is not None else []
    except Fault as fault:
        yield f"An example in INPUT_SCHEMA does not fit: {fault.sentence}"
        return
    low, high = RANGES.get(declared.datatype, (0, 0))
    if low < high and not all(low <= number <= high for number in measure(fitted)[1]):
        rule = f"outside {declared.datatype}; such values reach the app unchanged, as on Inferless"
        yield f"{declared.name} has an example {rule}; declare a wider datatype."
