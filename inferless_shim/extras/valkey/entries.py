"""What a stream's entries in the store say, to and from fields. No I/O.

The id of an entry is `<last>-0` for the events up to number `last`, `0-1` for the one that begins a stream, `<last>-2`
for its end, and the largest id that there is for an end that another replica has declared. So the store itself keeps
them in order, takes each once, and takes nothing more after that last one: it refuses every id that is not larger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...outputs import Answer
from ...tally import State

BEGUN = b"0-1"
LARGEST = 2**64 - 1
DECLARED = b"%d-0" % LARGEST
EVENTS, END = 0, 2  # the second halves of ids

Fields = Mapping[bytes, bytes]


class Events(NamedTuple):
    """Events `first` to `last`; `data` is their whole frames, as they go to clients."""

    first: int
    last: int
    data: bytes


class End(NamedTuple):
    """How a stream has ended, after event `last`; and the answer, if it was none."""

    last: int
    state: State
    failure: tuple[str, str] | None
    cause: str
    answer: Answer


class Interrupted(NamedTuple):
    """Another replica took the producer for dead, when it had written this many events."""

    kept: int


Entry = Events | End | Interrupted | None


def event_id(last: int) -> bytes:
    return b"%d-0" % last


def end_id(last: int) -> bytes:
    return b"%d-2" % last


def read_id(entry_id: bytes) -> tuple[int, int]:
    """Return both halves of an entry's id. Raises ValueError."""
    first, _, second = entry_id.partition(b"-")
    return int(first), int(second)


def fields_of_end(
    state: State, failure: tuple[str, str] | None, cause: str, answer: Answer
) -> dict[str, bytes | bytearray]:
    """Write the fields of an end."""
    code, sentence = failure or ("", "")
    how = {"state": state.name, "code": code, "sentence": sentence, "cause": cause}
    if answer.body:
        how |= {"type": answer.content_type, "fields": json.dumps(answer.fields)}
    return {**{name: value.encode() for name, value in how.items()}, "body": answer.body}


def read(entry_id: bytes, fields: Fields) -> Entry:
    """Read an entry; None for the one that begins a stream. Raises ValueError for what no version of ours writes."""
    number, kind = read_id(entry_id)
    try:
        if entry_id == DECLARED:
            return Interrupted(int(fields[b"kept"]))
        if entry_id == BEGUN:
            return None
        if kind == EVENTS:
            return Events(int(fields[b"first"]), number, fields[b"data"])
        if kind == END:
            return read_end(number, {name: value.decode() for name, value in fields.items() if name != b"body"}, fields)
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"an entry lacks what belongs to it: {error}") from None
    raise ValueError(f"no entry has the id {entry_id!r}")


def read_end(last: int, how: Mapping[bytes, str], fields: Fields) -> End:
    """Read an end. Raises KeyError, ValueError."""
    name, code = how[b"state"], how[b"code"]
    if name not in State.__members__ or name == State.OPEN.name:
        raise ValueError(f"no stream ends as {name!r}")
    answer = Answer(fields[b"body"])
    if answer.body:
        pairs = tuple((str(name), str(value)) for name, value in json.loads(how[b"fields"]))
        answer = Answer(answer.body, how[b"type"], pairs)
    return End(last, State[name], (code, how[b"sentence"]) if code else None, how[b"cause"], answer)


def paired(flat: Sequence[bytes] | None) -> dict[bytes, bytes]:
    """Return a reply of names and values, one after the other, as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}


def split(data: bytes) -> list[bytes]:
    """Split frames that lie one after the other: each is a chunk of HTTP/1.1. Raises ValueError."""
    frames = []
    start = 0
    while start < len(data):
        line = data.index(b"\r\n", start)
        stop = line + 2 + int(data[start:line], 16) + 2
        if stop < line + 4 or data[stop - 2 : stop] != b"\r\n":
            raise ValueError("a frame has not the length that it says")
        frames.append(data[start:stop])
        start = stop
    return frames
