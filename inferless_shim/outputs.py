"""An app's dicts as JSON, and a stream's frames in its dialect. No I/O.

JSON is strict: no NaN, no Infinity, no lone surrogates. numpy and torch values are known by their methods; neither is
imported. A dialect says how a stream's events are dressed, from its first byte to its last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from . import sse

JSON = "application/json; charset=utf-8"
VERSION = "1"  # of every model
RESULT = "result"  # what an answer is called that is no dict
KINDS: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "float",
    str: "string",
    list: "list",
    dict: "object",
}


class Answer(NamedTuple):
    """What an answer that is not a stream is made of: its body, and what its head says of that."""

    body: bytes = b""
    content_type: str = JSON
    fields: tuple[tuple[str, str], ...] = ()


NO_ANSWER = Answer()


class SchemaChanged(ValueError):
    """An event differs from the stream's first in its keys or in a key's JSON type."""


def plain(value: Any) -> Any:
    """Turn what `json` does not know into what it does. Raises TypeError for anything else.

    numpy and torch arrays and scalars have `tolist`; a torch tensor that needs gradients must be detached first.
    """
    if hasattr(value, "tolist"):
        listed = (value.detach() if hasattr(value, "detach") else value).tolist()
        # A numpy.longdouble's is a numpy.longdouble.
        return float(listed) if type(listed) is type(value) and hasattr(value, "__float__") else listed
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, set, frozenset)):
        return list(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot be sent as JSON; convert it first")


encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=plain)
# json's own C encoder, which `JSONEncoder.encode` makes anew at each call: that costs twice a token's text. This one
# has no look-out for circular values, so that it is for flat dicts alone. PyPy has none.
c_make_encoder = getattr(json.encoder, "c_make_encoder", None)
write_flat = c_make_encoder and c_make_encoder(
    None, plain, json.encoder.encode_basestring, None, ":", ",", False, False, False
)
SCALARS = frozenset(KINDS) - {list, dict}


def encode_text(output: Mapping[str, Any]) -> str:
    if write_flat is not None and SCALARS.issuperset(map(type, output.values())):
        return "".join(write_flat(output, 0))
    return encoder.encode(output)


def encode(output: Mapping[str, Any]) -> bytes:
    """Write one dict as JSON text in UTF-8, in one line. Raises ValueError or TypeError that names the key at fault."""
    try:
        return encode_text(output).encode()
    except UnicodeEncodeError:
        return without_lone_surrogates(encode_text(output)).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise named_fault(output, error) from None


def encode_value(value: Any) -> bytes:
    """Write any value as JSON text in UTF-8. Raises ValueError or TypeError."""
    named = encode({RESULT: value})
    return named[named.index(b":") + 1 : -1]


def as_dict(result: Any) -> dict[str, Any]:
    """Return an app's answer as outputs by name: what is no dict is called `result`."""
    return result if isinstance(result, dict) else {RESULT: result}


def without_lone_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone halves by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def named_fault(output: Mapping[str, Any], error: Exception) -> Exception:
    """Say which key of `output` made `error`."""
    for name, value in output.items():
        try:
            encode_text({name: value})
        except (ValueError, TypeError, RecursionError) as fault:
            if isinstance(fault, ValueError) and "JSON compliant" in str(fault):
                return ValueError(
                    f"output {name!r} holds NaN or Infinity, which JSON cannot carry; send null or a string"
                )
            if isinstance(fault, RecursionError):
                return ValueError(f"output {name!r} is nested too deep to be sent as JSON")
            kind = ValueError if isinstance(fault, ValueError) else TypeError
            return kind(f"output {name!r}: {fault}")
    return error


def kind_of(value: Any) -> str:
    """Name the JSON type of `value`. Raises TypeError if it has none."""
    for base in (bool, int, float, str, list, dict):
        if isinstance(value, base):
            return KINDS[base]
    return KINDS.get(type(value)) or kind_of(plain(value))


class EventSchema:
    """Names and top-level JSON types of a stream's first event, which all later ones must have (CONTRACT.md §8).

    null fits any type; an integer where a float was is a float. Used by one thread at a time.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, str] | None = None

    def conform(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return `output`, with integers turned to floats where the first event had floats.

        Raises SchemaChanged, and TypeError or ValueError, which name the key, for a value of no JSON type.
        """
        try:
            kinds = {name: KINDS.get(type(value)) or kind_of(value) for name, value in output.items()}
        except (TypeError, ValueError, RecursionError) as error:
            raise named_fault(output, error) from None
        if kinds == self.kinds:
            return output
        if self.kinds is None:
            self.kinds = kinds
            return output
        if kinds.keys() != self.kinds.keys():
            raise SchemaChanged(key_change(list(self.kinds), list(kinds)))
        return self._admit(output, kinds)

    def _admit(self, output: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
        assert self.kinds is not None
        floats = {}
        for name, kind in kinds.items():
            first = self.kinds[name]
            if first == "float" and kind == "integer":
                floats[name] = as_float(name, output[name])
            elif kind not in (first, "null") and first != "null":
                raise SchemaChanged(
                    f"key {name!r} changed from {first} to {kind}; "
                    "every event of a stream must have the same keys and types"
                )
        # A new dict: whoever could not send what conforms puts the old one back.
        self.kinds = self.kinds | {name: kind for name, kind in kinds.items() if self.kinds[name] == "null"}
        return output | floats


def as_float(name: str, value: Any) -> float:
    """Turn an integer, or what stands for one, to a float. Raises ValueError that names the key."""
    try:
        return float(value if isinstance(value, int) else plain(value))
    except OverflowError:
        raise ValueError(f"output {name!r} is too large for a float, which it was in the first event") from None


def key_change(first: list[str], now: list[str]) -> str:
    gone = [repr(name) for name in first if name not in now]
    new = [repr(name) for name in now if name not in first]
    changes = [f"lost {', '.join(gone)}"] if gone else []
    changes += [f"gained {', '.join(new)}"] if new else []
    return f"the keys changed: {' and '.join(changes)}; every event of a stream must have the same keys and types"


def error_text(message: str) -> str:
    """Bound a sentence that may hold an app's own exception text."""
    line = " ".join(message.split())
    return line if len(line) <= 1000 else line[:999] + "…"


def app_raised(error: BaseException) -> str:
    """Tell a client what an app raised: its class and its own text, bounded, without a traceback."""
    try:
        text = str(error)
    except BaseException:
        text = ""  # its __str__ raises
    name = type(error).__name__
    return error_text(f"The app raised {name}: {text}" if text else f"The app raised {name}")


class Dialect(Protocol):
    """How a stream's events look. Each method returns an event's lines after its id, or nothing where none is sent.

    `kind` is what another process knows it by (see `dialect_of`); `events` is how many an interrupted stream has left.
    """

    kind: str

    def event(self, output: dict[str, Any]) -> bytes: ...

    def done(self, events: int, seconds: float) -> bytes | None: ...

    def error(self, code: str, message: str, *, events: int | None = None) -> bytes: ...


class Native:
    """`data:` is exactly the app's dict; the last event is `done` or `error`."""

    kind = "native"

    def event(self, output: dict[str, Any]) -> bytes:
        return b"data: %b\n\n" % encode(output)

    def done(self, events: int, seconds: float) -> bytes | None:
        return sse.body(encode({"events": events, "seconds": round(seconds, 3)}), "done")

    def error(self, code: str, message: str, *, events: int | None = None) -> bytes:
        more = {} if events is None else {"events": events}
        return sse.body(encode({"error": error_text(message), "code": code, **more}), "error")


class Generate:
    """Triton's generate extension: each `data:` names model and version; the end of the body is the end."""

    kind = "generate"

    def __init__(self, model: str) -> None:
        self.model = model
        self.names = {"model_name": model, "model_version": VERSION}
        self._tail = encode(self.names)[1:]

    def event(self, output: dict[str, Any]) -> bytes:
        if output and self.names.keys().isdisjoint(output):
            # As below, without a new dict for each token.
            return b"data: %b,%b\n\n" % (encode(output)[:-1], self._tail)
        # The app's own keys of these names win.
        return b"data: %b\n\n" % encode(output | {name: self.names[name] for name in self.names if name not in output})

    def done(self, events: int, seconds: float) -> bytes | None:
        return None

    def error(self, code: str, message: str, *, events: int | None = None) -> bytes:
        return sse.body(encode({"error": error_text(message)}))


class Watched:
    """Another dialect, whose first event `watch` is shown when its bytes are made; later events cost nothing more."""

    def __init__(self, dialect: Dialect, watch: Callable[[dict[str, Any]], None]) -> None:
        self.event: Callable[[dict[str, Any]], bytes] = self._first
        self.kind = dialect.kind
        self.done, self.error = dialect.done, dialect.error
        self._dialect = dialect
        self._watch = watch

    def _first(self, output: dict[str, Any]) -> bytes:
        lines = self._dialect.event(output)
        self._watch(output)
        self.event = self._dialect.event
        return lines


def dialect_of(kind: str, model: str) -> Dialect | None:
    """Return the dialect of this kind, for a stream that another process began; None if it is no stream.

    Raises ValueError for a kind that is unknown here.
    """
    if kind not in (Native.kind, Generate.kind, ""):
        raise ValueError(f"{kind!r} is no dialect of this version")
    return Native() if kind == Native.kind else Generate(model) if kind else None
