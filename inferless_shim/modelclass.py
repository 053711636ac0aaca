"""What we need to know of a pydantic class, read off the class itself: pydantic is not imported. No I/O.

Either major version will do. Its words for what is wrong become faults like those of a schema (`schema.Fault`), whose
texts are short whatever the value is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from .schema import MAX_FAULTS, NOTHING, Fault
from .strictjson import describe, quoted

MAX_ERRORS = 10_000  # that are looked at; a list of 10 MiB can hold a million, and each takes half a kilobyte
WHOLE = "the inputs"  # the name of a fault that is of no one input
PLAIN_TYPES = frozenset({"int_type", "float_type", "bool_type"})  # what pydantic calls a wrong one, when it is strict


class Field(NamedTuple):
    """A field of a class: `names` are those that validation takes, best first; `output` is what a dump calls it.

    `example` is always there; `given` says whether the class's author wrote it.
    """

    names: tuple[str, ...]
    output: str
    annotation: Any
    required: bool
    example: object
    given: bool


def is_model(candidate: object) -> bool:
    """Whether `candidate` is a pydantic class, of either major version."""
    return isinstance(candidate, type) and (
        hasattr(candidate, "model_validate") or (hasattr(candidate, "parse_obj") and hasattr(candidate, "__fields__"))
    )


def complete(made: Any) -> None:
    """Resolve annotations that were not known when the class was made. Raises what pydantic raises."""
    if hasattr(made, "model_rebuild"):
        made.model_rebuild()
    else:
        made.update_forward_refs()


def fields(made: Any) -> Iterator[Field]:
    """Yield the fields of a class, in order."""
    schema = _json_schema(made)
    shown = _first(schema)
    own = shown if isinstance(shown, dict) else {}
    infos = made.model_fields if hasattr(made, "model_validate") else made.__fields__
    for name, info in infos.items():
        names, annotation = _accepted(made, name, info)
        node = schema.get("properties", {}).get(names[0], {})
        given = _first(node)
        given = own.get(names[0], own.get(name, NOTHING)) if given is NOTHING else given
        example = _sample(node, schema) if given is NOTHING else given
        yield Field(names, _output(name, info), annotation, _is_required(info), example, given is not NOTHING)


def computed(made: Any) -> list[tuple[str, Any]]:
    """Return name and type of what a dump has beyond the fields."""
    found = getattr(getattr(made, "__pydantic_decorators__", None), "computed_fields", {})
    return [(each.info.alias or name, each.info.return_type) for name, each in found.items()]


def allows_extra(made: Any) -> bool:
    config = made.model_config if hasattr(made, "model_validate") else vars(made.__config__)
    return str(getattr(config.get("extra"), "value", config.get("extra"))) == "allow"


def _accepted(made: Any, name: str, info: Any) -> tuple[tuple[str, ...], Any]:
    """Return the names that validation takes for a field, and what it takes under them."""
    if not hasattr(made, "model_validate"):
        by_name = made.__config__.allow_population_by_field_name
        return tuple(dict.fromkeys((info.alias, *([name] if by_name else [])))), _v1_annotation(info)
    config, alias = made.model_config, info.validation_alias
    choices = getattr(alias, "choices", [alias] if alias else [])
    names = [each for each in choices if isinstance(each, str)] if config.get("validate_by_alias", True) else []
    annotation = info.annotation
    if choices and not names and config.get("validate_by_alias", True):  # a path into another input
        names, annotation = [str(choices[0].path[0])], Any
    if config.get("populate_by_name") or config.get("validate_by_name") or not names:
        names.append(name)
    is_text = any(type(each).__name__ == "Json" for each in info.metadata)  # which holds JSON, and which it parses
    return tuple(dict.fromkeys(names)), str if is_text else annotation


def _v1_annotation(info: Any) -> Any:
    return info.annotation | None if info.allow_none else info.annotation


def _output(name: str, info: Any) -> str:
    return str(getattr(info, "serialization_alias", None) or getattr(info, "alias", None) or name)


def _is_required(info: Any) -> bool:
    return bool(info.is_required() if callable(getattr(info, "is_required", None)) else info.required)


# Examples, of the class's JSON schema. ------------------------------------------------------------------------------

_FORMATS = {
    "date-time": "2024-01-01T00:00:00Z", "date": "2024-01-01", "time": "00:00:00Z", "duration": "PT1S",
    "email": "name@example.com", "uri": "https://example.com/", "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "127.0.0.1", "json-string": "{}",
}  # fmt: skip


def _json_schema(made: Any) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = made.model_json_schema() if hasattr(made, "model_json_schema") else made.schema()
    except Exception:  # types that JSON schema has no words for
        return {}
    return schema


def _first(node: Mapping[str, Any]) -> Any:
    """Return the example that a node of a JSON schema has, or else its default; NOTHING if it has neither."""
    examples = node.get("examples")
    if isinstance(examples, list) and examples:
        return examples[0]
    return next((node[key] for key in ("example", "default", "const") if node.get(key) is not None), NOTHING)


def _sample(node: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> Any:
    """Make a value that fits a node of a JSON schema, as far as its simple rules go."""
    if "$ref" in node:
        definitions = schema.get("$defs") or schema.get("definitions") or {}
        node = definitions.get(node["$ref"].rpartition("/")[2], {})
    if (given := _first(node)) is not NOTHING or depth > 8:
        return None if given is NOTHING else given
    if node.get("enum"):
        return node["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        for choice in node.get(key, ()):
            if choice.get("type") != "null":
                return _sample(choice, schema, depth + 1)
    kind = node.get("type", "string")
    if kind == "object":
        needed = node.get("required", ())
        return {name: _sample(node.get("properties", {}).get(name, {}), schema, depth + 1) for name in needed}
    if kind == "array":
        items = node.get("prefixItems") or node.get("items", {})
        items = items if isinstance(items, list) else [items] * max(1, node.get("minItems", 1))
        return [_sample(each, schema, depth + 1) for each in items[:100]]
    return _scalar(kind, node)


def _scalar(kind: str, node: Mapping[str, Any]) -> Any:
    if kind in ("integer", "number"):
        step = node.get("multipleOf", 1)
        least = [node["minimum"]] if "minimum" in node else []
        least += [node["exclusiveMinimum"] + step] if "exclusiveMinimum" in node else []
        most = [node["maximum"]] if "maximum" in node else []
        most += [node["exclusiveMaximum"] - step] if "exclusiveMaximum" in node else []
        return min([max(least, default=step), *most])
    if kind == "boolean":
        return True
    text = _FORMATS.get(node.get("format", ""), "text")
    return text.ljust(min(node.get("minLength", 0), 1000), "x")[: node.get("maxLength")]


# Validation. --------------------------------------------------------------------------------------------------------


def validate(made: Any, values: Mapping[str, Any]) -> Any:
    """Make an instance. Raises what pydantic, or a validator of the class, raises: see `faults`."""
    return made.model_validate(values) if hasattr(made, "model_validate") else made.parse_obj(values)


def dump(instance: Any) -> dict[str, Any]:
    """Return an instance as a dict in JSON's types, under its aliases; values that have none, such as arrays, stay."""
    dumped: dict[str, Any]
    if not hasattr(instance, "model_dump"):
        try:
            dumped = json.loads(instance.json(by_alias=True))
        except TypeError:
            dumped = instance.dict(by_alias=True)
        return dumped
    try:
        dumped = instance.model_dump(mode="json", by_alias=True, warnings=False)
    except ValueError:  # PydanticSerializationError
        dumped = instance.model_dump(by_alias=True, warnings=False)
    return dumped


def without_arrays(value: Any) -> Any:
    """Return a value with lists for the arrays in it; numpy's and torch's are known by `tolist`."""
    if hasattr(value, "tolist"):
        return (value.detach() if hasattr(value, "detach") else value).tolist()
    if isinstance(value, Mapping):
        return {name: without_arrays(each) for name, each in value.items()}
    return [*map(without_arrays, value)] if isinstance(value, (list, tuple)) else value


def coercions(made: Any, values: Mapping[str, Any], *, within: str = "") -> list[Fault]:
    """Return the faults of values that pydantic takes for integers, numbers or booleans and we do not, however deep.

    `within` is the input that `values` is, if it is one.
    """
    if not hasattr(made, "model_validate_json"):
        return []
    try:
        made.model_validate_json(json.dumps(values), strict=True)
    except Exception as error:
        places = _by_place(error, values, ())
        return [_fault(place, wrong, within) for place, wrong in places.items() if _is_coerced(wrong)][:MAX_FAULTS]
    return []


def _is_coerced(wrong: list[_Complaint]) -> bool:
    kinds, value = {each.kind for each in wrong}, wrong[0].value
    if isinstance(value, bool):
        return not kinds.isdisjoint(PLAIN_TYPES)
    is_scalar = isinstance(value, (str, int, float)) and not (isinstance(value, float) and value.is_integer())
    return is_scalar and kinds <= PLAIN_TYPES


def faults(error: Exception, values: Mapping[str, Any], *, told: Collection[str] = (), within: str = "") -> list[Fault]:
    """Turn what `validate` raised to faults, but of inputs that are `told` already, or of all together if any is."""
    places = _by_place(error, values, told)
    return [_fault(place, wrong, within) for place, wrong in islice(places.items(), MAX_FAULTS)]


class _Complaint(NamedTuple):
    """One of pydantic's errors. `place` leads to `value`; what pydantic puts in between for unions is left out."""

    place: tuple[str | int, ...]
    kind: str
    message: str
    value: Any


_Places = dict[tuple[str | int, ...], list[_Complaint]]


def _by_place(error: Exception, values: Mapping[str, Any], told: Collection[str]) -> _Places:
    places: _Places = {}
    for each in _complaints(error, values):
        if not told or (each.place and each.place[0] not in told):
            places.setdefault(each.place, []).append(each)
    return places


def _complaints(error: Exception, values: Mapping[str, Any]) -> Iterator[_Complaint]:
    count = getattr(error, "error_count", None)
    if not callable(getattr(error, "errors", None)):  # a validator's own
        text = f"{type(error).__name__}: {error}"
        yield _Complaint((), "raised", text, NOTHING)
        return
    if count is not None and count() > MAX_ERRORS:
        yield _Complaint((), "many", f"{count()} faults are too many to tell", NOTHING)
        return
    options = {} if count is None else {"include_url": False, "include_context": False}
    for told in error.errors(**options):  # type: ignore[attr-defined]
        place, value = _resolved(told["loc"], values, missing=told["type"].endswith("missing"))
        yield _Complaint(place, told["type"], told["msg"], value)


def _resolved(steps: Collection[Any], value: Any, *, missing: bool) -> tuple[tuple[str | int, ...], Any]:
    place: list[str | int] = []
    last = len(steps) - 1
    for number, step in enumerate(steps):
        is_index = isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value)
        if is_index or (isinstance(value, Mapping) and step in value):
            value = value[step]
        elif missing and number == last:
            value = NOTHING
        else:
            continue
        place.append(step)
    return tuple(place), value


def _fault(place: tuple[str | int, ...], wrong: list[_Complaint], within: str) -> Fault:
    where, first = ".".join(map(str, (within, *place) if within else place))[:80], wrong[0]
    got = "nothing" if first.value is NOTHING else describe(first.value)
    said = _line(re.sub(r"^(Value error|Assertion failed), ", "", first.message))
    if not where:
        return Fault(WHOLE, said, "others", sentence=f"The inputs are refused together: {said}; correct them.")
    if first.kind.endswith("missing"):
        return Fault(where, "a value", got, sentence=f"{where} is required, got nothing; send it.")
    if first.kind in ("extra_forbidden", "value_error.extra"):
        sentence = f"{quoted(where)} is not a name that is known there; leave it out."
        return Fault(where, "no such name", got, sentence=sentence)
    wanted = dict.fromkeys(filter(None, (_expected(each.message) for each in wrong)))
    if not wanted:
        return Fault(where, said, got, sentence=f"{where} is refused: {said}, got {got}; correct it.")
    return Fault(where, _line(" or ".join(islice(wanted, 4))), got, "correct it")


_WORDS = {
    "a valid dictionary": "an object", "a valid dict": "an object", "a valid list": "a list", "a valid array": "a list",
    "a valid integer": "an integer", "a valid number": "a number", "a valid float": "a number",
    "a valid string": "a string", "a valid str": "a string", "a valid boolean": "true or false",
}  # fmt: skip
_VERBS = {"be": "is", "have": "has", "match": "matches"}


def _expected(message: str) -> str:
    """Turn "Input should be …", and its like, to what stands after "must be"; "" if it is not of that kind."""
    message = re.sub(r"^(\w+) type expected$", r"value is not a valid \1", message.partition(", unable to ")[0])
    if plain := re.match(r"(?:Input should be|value is not) (.+)", message, re.DOTALL):
        return _WORDS.get(plain[1], plain[1])
    if rule := re.match(r"ensure this value (.+)", message, re.DOTALL):
        return f"a value that {rule[1]}"
    if rule := re.match(r"(\w+) should (be|have|match) (.+)", message, re.DOTALL):
        return f"a {rule[1].lower()} that {_VERBS[rule[2]]} {rule[3]}"
    return ""


def _line(text: str) -> str:
    line = " ".join(text[:2000].split())
    return line if len(line) <= 200 else line[:199] + "…"
