"""What a type annotation says of the JSON values that it stands for: datatype, shape, and little more. No I/O."""

from __future__ import annotations

import collections
import enum
import inspect
import types
import typing
from collections import abc
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from .modelclass import is_model
from .schema import Input

MAX_DEPTH = 8  # of types in types; an alias may hold itself
_DATATYPES = {bool: "BOOL", int: "INT64", float: "FP64", str: "STRING"}  # bool first: it is an int
_LISTS = {
    list, tuple, set, frozenset, collections.deque, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable,
    abc.Set, abc.MutableSet,
}  # fmt: skip


class Kind(NamedTuple):
    """What an annotation says of JSON values.

    `optional` if it says None, `null` if null is a value to it; `wants` are the JSON types, list and dict, that it
    takes and that may therefore come as text; `choices` are all the values that it takes; `target` is the class of an
    enum or a model.
    """

    datatype: str = "JSON"
    shape: tuple[int, ...] = (1,)
    optional: bool = False
    null: bool = False
    wants: tuple[type, ...] = ()
    words: str = ""
    choices: tuple[Any, ...] = ()
    target: Any = None


ANY = Kind(null=True)
OBJECT = Kind(wants=(dict,), words="a JSON object")
LIST = Kind(wants=(list,), words="a JSON list")


def kind_of(annotation: Any, depth: int = 0) -> Kind:
    """Return what `annotation` says; ANY where it says nothing that we know."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if depth > MAX_DEPTH or annotation in (Any, object, inspect.Parameter.empty):
        return ANY
    if origin is typing.Annotated:
        return kind_of(arguments[0], depth + 1)
    for alias in ("__supertype__", "__value__"):  # of NewType, and of `type X = …`
        if hasattr(annotation, alias):
            return kind_of(getattr(annotation, alias), depth + 1)
    if origin in (Union, types.UnionType):
        return _union_kind(arguments, depth)
    if origin is Literal:
        return _choice_kind(arguments)
    bare = origin or annotation
    if bare in _LISTS:
        return _list_kind(bare, arguments, depth)
    return _class_kind(bare) if isinstance(bare, type) else Kind()


def _class_kind(made: type) -> Kind:
    if issubclass(made, enum.Enum):
        return _choice_kind([member.value for member in made])._replace(target=made)
    for base, datatype in _DATATYPES.items():
        if issubclass(made, base):
            return Kind(datatype)
    if is_model(made):
        return OBJECT._replace(target=made)
    if issubclass(made, abc.Mapping) or hasattr(made, "__dataclass_fields__"):
        return OBJECT
    return LIST if issubclass(made, (tuple, list, set, frozenset)) else Kind()


def _choice_kind(values: Iterable[Any]) -> Kind:
    choices = tuple(value for value in values if value is not None)
    optional = None in values
    datatypes = {_DATATYPES.get(type(value), "JSON") for value in choices}
    datatype = datatypes.pop() if len(datatypes) == 1 else "JSON"
    return Kind(datatype, optional=optional, null=optional, choices=choices)


def _union_kind(members: Sequence[Any], depth: int) -> Kind:
    kinds = [kind_of(member, depth + 1) for member in members if member is not type(None)]
    optional = len(kinds) < len(members) or any(kind.optional for kind in kinds)
    if len(kinds) == 1:
        return kinds[0]._replace(optional=optional, null=optional or kinds[0].null)
    takes_text = any(_takes_text(kind) for kind in kinds)
    wants = () if takes_text else tuple(dict.fromkeys(want for kind in kinds for want in kind.wants))
    words = " or ".join(dict.fromkeys(_words(kind) for kind in kinds))
    return Kind(optional=optional, null=optional or ANY in kinds, wants=wants, words=words[:200])


def _list_kind(bare: Any, arguments: tuple[Any, ...], depth: int) -> Kind:
    """Return the kind of a list of one plain type, nested or not; any other is JSON."""
    members = [kind_of(each, depth + 1)._replace(choices=(), target=None) for each in arguments if each is not ...]
    if not members or any(each != members[0] for each in members) or members[0].datatype == "JSON" or members[0].null:
        return LIST
    is_fixed = bare is tuple and ... not in arguments and len(members) > 1
    inner = members[0].shape if members[0].shape != (1,) else ()
    length = len(members) if is_fixed else -1
    return Kind(members[0].datatype, (length, *inner), wants=(list,))


def _takes_text(kind: Kind) -> bool:
    return kind.shape == (1,) and (kind.datatype == "STRING" or (kind.datatype == "JSON" and not kind.wants))


def _words(kind: Kind) -> str:
    return kind.words or Input("", kind.datatype, kind.shape, True).expected
