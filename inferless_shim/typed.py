"""Inputs that an app declares in types: an `@inferless.request` class, or the parameters of a function. No I/O.

They become a Schema like INPUT_SCHEMA's. What a type says beyond datatype and shape, a pydantic class checks itself
(`modelclass`). Strict where JSON is: `true` is no integer, however deep it lies (CONTRACT.md §7).
"""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from . import modelclass, strictjson
from .errors import BadRequest, StartupError
from .kinds import ANY, LIST, OBJECT, Kind, kind_of
from .schema import (
    EXCLUSIVE,
    JSON,
    MAX_FAULTS,
    NOTHING,
    STRING,
    Fault,
    Input,
    Rules,
    Schema,
    Shapes,
    refusal,
    streaming_faults,
)
from .strictjson import describe, quoted
from .tensors import v2_name

# Inputs. ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypedInput(Input):
    """An input of a kind. `names` are those that a request may use for it; an `absent` one is None to the app."""

    kind: Kind = ANY
    names: tuple[str, ...] = ()
    absent: bool = False

    @property
    def expected(self) -> str:
        # super() alone would mean the class as it was before it got its slots.
        return self.kind.words or super(TypedInput, self).expected

    def fit(self, value: Any, tensor_shape: Sequence[int] | None = None) -> Any:
        """Return what the class or the function gets for `value`: always a list where it wants one. Raises Fault."""
        if self.kind.wants and self.family is not STRING:
            parsed = _parsed(value, self.kind.wants, tensor_shape is not None)
            value, tensor_shape = (value, tensor_shape) if parsed is None else (parsed, None)
        if tensor_shape is None and self._has_rows(value):
            return self._fit_rows(value)
        fitted = Input.fit(self, value, tensor_shape)
        return fitted if self.family is JSON or self.shape == (1,) or type(fitted) is list else [fitted]

    def _has_rows(self, value: Any) -> bool:
        if len(self.shape) == 1 or type(value) is not list or (self.batched and len(value) == 1):
            return False
        return {*map(type, value)} <= {list}

    def _fit_rows(self, rows: list[Any]) -> list[Any]:
        """Fit each row by itself: they may differ in length."""
        if self.shape[0] not in (-1, len(rows)):
            raise Fault(self.name, self.expected, f"{len(rows)} lists", f"send {self.shape[0]}")
        inner = self.kind._replace(shape=self.shape[1:])
        row = replace(self, shape=inner.shape, kind=inner, batched=False)
        return [replace(row, name=f"{self.name}.{number}").fit(each) for number, each in enumerate(rows)]


def _parsed(value: Any, wanted: tuple[type, ...], is_tensor: bool) -> Any:
    """Return what JSON text holds, if that is wanted; None else. A tensor has its one text in lists."""
    while is_tensor and type(value) is list and len(value) == 1:
        value = value[0]
    if type(value) is not str or not value.lstrip().startswith(("[", "{")):
        return None
    try:
        parsed = strictjson.loads(value.encode())
    except BadRequest:
        return None
    return parsed if isinstance(parsed, wanted) else None


class _TypedSchema(Schema):
    """What a class and a signature have in common. `is_open` if any other name may be sent as well."""

    reads_texts = True

    def __init__(self, inputs: Iterable[TypedInput], warnings: list[str], rules: Rules, *, is_open: bool) -> None:
        """Raises StartupError for what streaming does not allow, as `compile_schema` does."""
        self.typed = {declared.name: declared for declared in inputs}
        self.is_open = is_open
        self._known = {name for declared in self.typed.values() for name in declared.names}
        super().__init__(dict(self.typed), warnings)
        self._restrict(rules)

    def _restrict(self, rules: Rules) -> None:
        limits = [each for declared in self.typed.values() for each in streaming_faults(declared, rules.relaxed)]
        faults = [EXCLUSIVE] if rules.streaming and rules.batched else []
        if rules.streaming:
            (self.warnings if rules.relaxed else faults).extend(limits)
        if faults:
            raise StartupError("\n".join(faults))

    def _arrange(self, values: Mapping[str, object], shapes: Shapes) -> tuple[dict[str, Any], list[Fault]]:
        """Return the values that fit by datatype and shape, and the faults of the others and of unknown names."""
        inputs: dict[str, Any] = {}
        faults: list[Fault] = []
        for declared in self.typed.values():
            name = next((name for name in declared.names if name in values), declared.name)
            value = values.get(name)
            if value is not None:
                try:
                    inputs[declared.name] = (declared if name == declared.name else replace(declared, name=name)).fit(
                        value, shapes.get(name)
                    )
                except Fault as fault:
                    faults.append(fault)
            elif declared.absent or (declared.kind.null and name in values):
                inputs[declared.name] = None
            elif declared.required:
                faults.append(declared.missing("null" if name in values else "nothing"))
        others = [name for name in values if name not in self._known]
        if self.is_open:
            any_input = Input("", "JSON", (1,), False)
            inputs |= {name: any_input.fit(values[name], shapes.get(name)) for name in others}
        else:
            faults += [self.unknown(name) for name in islice(others, MAX_FAULTS)]
        return inputs, faults


# Classes. -----------------------------------------------------------------------------------------------------------


class _Checked(dict[str, Any]):
    """Inputs that passed, and the instance that was made of them: a validator may be costly, so it runs once."""

    made: Any = None


class RequestSchema(_TypedSchema):
    """The inputs of an app whose `infer` takes an instance of a pydantic class (`@inferless.request`)."""

    def __init__(self, made: Any, rules: Rules) -> None:
        """Read the class. Raises StartupError, for what streaming does not allow as `compile_schema` does."""
        _require_model(made, "request")
        self.made = made
        fields = list(modelclass.fields(made))
        inputs = [_field_input(field, rules.batched) for field in fields]
        warnings = [
            f"An example in {made.__name__} does not fit: {fault.sentence}"
            for field, declared in zip(fields, inputs, strict=True)
            if field.given and (fault := _misfit(declared)) is not None
        ]
        super().__init__(inputs, warnings, rules, is_open=modelclass.allows_extra(made))
        self._is_deep = any(declared.family is JSON for declared in inputs) or self.is_open

    def examine(self, values: Mapping[str, object], tensor_shapes: Shapes) -> tuple[dict[str, Any], list[Fault]]:
        """Return the inputs by name, which `build` takes, and all faults: ours, then the class's own."""
        arranged, faults = self._arrange(values, tensor_shapes)
        inputs = _Checked(arranged)
        told = {fault.told["input"] for fault in faults}
        told |= {name.partition(".")[0] for name in told}
        told |= {declared.name for declared in self.typed.values() if not told.isdisjoint(declared.names)}
        try:
            inputs.made = modelclass.validate(self.made, dict(arranged))
        except Exception as error:  # a validator may raise anything
            faults += modelclass.faults(error, arranged, told=told)
        if self._is_deep:
            told = {fault.told["input"] for fault in faults}
            coerced = modelclass.coercions(self.made, arranged)
            faults += [fault for fault in coerced if fault.told["input"] not in told]
        return inputs, faults[:MAX_FAULTS]

    def build(self, inputs: dict[str, Any]) -> Any:
        """Return the instance that `infer` gets. Raises BadRequest if the class refuses the inputs after all."""
        if isinstance(inputs, _Checked) and inputs.made is not None:
            return inputs.made
        try:
            return modelclass.validate(self.made, dict(inputs))
        except Exception as error:
            raise refusal(modelclass.faults(error, inputs)) from None


class ResponseSchema:
    """What an app answers, by a pydantic class (`@inferless.response`). `outputs` are name, v2 datatype, shape."""

    def __init__(self, made: Any) -> None:
        """Read the class. Raises StartupError."""
        _require_model(made, "response")
        self.made = made
        declared = [(field.output, field.annotation) for field in modelclass.fields(made)] + modelclass.computed(made)
        self.outputs = [_output(name, kind_of(annotation)) for name, annotation in declared]

    def check(self, result: Any) -> dict[str, Any]:
        """Return an answer as a dict, in JSON's types but for arrays. Raises ValueError that says what does not fit."""
        if isinstance(result, self.made):
            return modelclass.dump(result)
        result = dumped(result)  # an instance of another class is checked like a dict
        if not isinstance(result, Mapping):
            wanted = f"a dict or an instance of {self.made.__name__}"
            raise _misanswer(f"it must be {wanted}, got {describe(result)}; return one of them")
        try:
            made = modelclass.validate(self.made, dict(result))
        except Exception:
            made = self._made_again(modelclass.without_arrays(result))
        return modelclass.dump(made)

    def _made_again(self, result: dict[str, Any]) -> Any:
        try:
            return modelclass.validate(self.made, result)
        except Exception as error:
            faults = modelclass.faults(error, result)
            others = f" ({len(faults) - 1} more like it)" if len(faults) > 1 else ""
            raise _misanswer(faults[0].sentence.removesuffix(".") + others) from None


def dumped(result: Any) -> Any:
    """Return a pydantic instance as a dict, and anything else as it is."""
    return modelclass.dump(result) if modelclass.is_model(type(result)) else result


def _misanswer(what: str) -> ValueError:
    return ValueError(f"the app's answer does not fit its response class: {what}")


def _output(name: str, kind: Kind) -> tuple[str, str, list[int]]:
    return name, v2_name(kind.datatype), list(kind.shape)


def _require_model(made: Any, role: str) -> None:
    if not modelclass.is_model(made):
        name = getattr(made, "__name__", repr(made)[:60])
        raise StartupError(f"@inferless.{role} is on {name}, which is no pydantic class; derive it from BaseModel.")
    try:
        modelclass.complete(made)
    except Exception as error:
        raise StartupError(f"{made.__name__} has a type that cannot be resolved: {error}") from None


def _field_input(field: modelclass.Field, batched: bool) -> TypedInput:
    kind = kind_of(field.annotation)
    return TypedInput(
        field.names[0], kind.datatype, kind.shape, field.required and not kind.optional, field.example, batched,
        kind, field.names, absent=field.required and kind.optional,
    )  # fmt: skip


def _misfit(declared: Input) -> Fault | None:
    try:
        declared.fit(declared.example)
    except Fault as fault:
        return fault
    return None


# Functions. ---------------------------------------------------------------------------------------------------------


class SignatureSchema(_TypedSchema):
    """The inputs of an app whose `infer` takes them by name: `parameters` are those that are inputs, in order.

    A parameter with a default is not required, one without an annotation takes any JSON value, and `**options` takes
    any other name.
    """

    def __init__(self, function: Callable[..., Any], parameters: Iterable[inspect.Parameter], rules: Rules) -> None:
        """Read the annotations of `parameters`. Raises StartupError for what streaming does not allow."""
        taken = [each for each in parameters if each.kind is not each.VAR_POSITIONAL]
        hints = _hints(function)
        named = [each for each in taken if each.kind is not each.VAR_KEYWORD]
        inputs = [_parameter_input(each, hints.get(each.name, each.annotation), rules.batched) for each in named]
        super().__init__(inputs, [], rules, is_open=len(named) < len(taken))

    def examine(self, values: Mapping[str, object], tensor_shapes: Shapes) -> tuple[dict[str, Any], list[Fault]]:
        """Return the arguments by name, in JSON's types, and all faults. An annotated class checks its own."""
        inputs, faults = self._arrange(values, tensor_shapes)
        for declared in self.typed.values():
            value = inputs.get(declared.name)
            if value is not None:
                faults += _type_faults(declared, value)
        return inputs, faults[:MAX_FAULTS]

    def build(self, inputs: dict[str, Any]) -> Any:
        """Return the keyword arguments of `infer`: enums and pydantic classes made of their values."""
        return {name: _made(self.typed.get(name), value) for name, value in inputs.items()}


def _hints(function: Any) -> dict[str, Any]:
    """Return a function's annotations; what is text and cannot be resolved is left out."""
    try:
        return typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # a name that is known to type checkers alone, or anything that an annotation may do
        return {}


def _parameter_input(parameter: inspect.Parameter, annotation: Any, batched: bool) -> TypedInput:
    kind = Kind(null=True) if isinstance(annotation, str) else kind_of(annotation)
    default = NOTHING if parameter.default is parameter.empty else parameter.default
    if default is None:
        kind = kind._replace(optional=True, null=True)
    required = default is NOTHING and not kind.optional
    example = default.value if isinstance(default, enum.Enum) else default
    if example is NOTHING or example is None:
        example = kind.choices[0] if kind.choices else _placeholder(kind)
    return TypedInput(
        parameter.name, kind.datatype, kind.shape, required, example, batched, kind, (parameter.name,),
        absent=default is NOTHING and kind.optional,
    )  # fmt: skip


def _placeholder(kind: Kind) -> Any:
    if kind.datatype != "JSON":
        return None  # Input.sample has one
    if modelclass.is_model(kind.target):
        return {field.names[0]: field.example for field in modelclass.fields(kind.target) if field.required}
    return kind.wants[0]() if kind.wants else JSON.placeholder


def _type_faults(declared: TypedInput, value: Any) -> list[Fault]:
    kind, target = declared.kind, declared.kind.target
    if kind.words in (OBJECT.words, LIST.words) and not isinstance(value, kind.wants):
        return [Fault(declared.name, declared.expected, describe(value), "send one")]
    if kind.choices and not any(type(each) is type(value) and each == value for each in kind.choices):
        known = " or ".join(quoted(each) if type(each) is str else describe(each) for each in kind.choices[:10])
        return [Fault(declared.name, known[:200], describe(value), "send one of them")]
    if not modelclass.is_model(target):
        return []
    try:
        modelclass.validate(target, value)
    except Exception as error:
        return modelclass.faults(error, value, within=declared.name)
    return modelclass.coercions(target, value, within=declared.name)


def _made(declared: TypedInput | None, value: Any) -> Any:
    target = declared.kind.target if declared is not None else None
    if target is None or value is None:
        return value
    return modelclass.validate(target, value) if modelclass.is_model(target) else target(value)
