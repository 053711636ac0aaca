"""The trace that a request belongs to: the `traceparent` field of W3C Trace Context (§3.2), read strictly. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

# Version, trace id, parent id, flags; a version that is not known yet may go on after another dash (§3.2.2, §4.3).
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
VERSION, INVALID_VERSION = "00", "ff"
SAMPLED = 1  # the one flag whose meaning a later version keeps (§3.2.2.5)


class Trace(NamedTuple):
    """`traceparent` is of version 00, whatever came: that is what an app may pass on."""

    id: str
    traceparent: str


def read_traceparent(value: str | None) -> Trace | None:
    """Return the trace that a request belongs to; None if its field is missing or invalid, which is no error (§4.3)."""
    match = TRACEPARENT.fullmatch(value or "")
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == INVALID_VERSION or (version == VERSION and more) or not trace.strip("0") or not parent.strip("0"):
        return None
    if version != VERSION:
        flags = f"{int(flags, 16) & SAMPLED:02x}"
    return Trace(trace, f"{VERSION}-{trace}-{parent}-{flags}")
