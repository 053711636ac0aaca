"""What the keys in the store are called. No I/O.

All begin with `shim:<model>:`, so that a model has its own streams in a store that others use as well. A client's
Idempotency-Key and its owner are in no name but as a hash, and API keys are nowhere.
"""

from __future__ import annotations

import hashlib
import re

from ...idempotency import IdempotencyKey

STREAM_ID = re.compile(r"[0-9a-f]{32}")  # sse.new_stream_id's


class Names:
    """The names of one model's keys."""

    def __init__(self, model: str) -> None:
        self.prefix = f"shim:{model}:"
        self.epoch = f"{self.prefix}epoch"

    def head(self, stream_id: str) -> str:
        """A hash: whose stream it is, which replica runs it, how its events look."""
        return f"{self.prefix}head:{stream_id}"

    def stream(self, stream_id: str) -> str:
        """A Redis Stream: the events, in batches, and the end."""
        return f"{self.prefix}stream:{stream_id}"

    def claim(self, place: str) -> str:
        """A hash: which stream an Idempotency-Key has made, and what the request was."""
        return f"{self.prefix}key:{place}"

    def lease(self, replica: str) -> str:
        """A string that expires unless its replica lives."""
        return f"{self.prefix}lease:{replica}"

    def control(self, replica: str) -> str:
        """A Redis Stream: what others ask of a replica."""
        return f"{self.prefix}control:{replica}"


def place(key: IdempotencyKey) -> str:
    """Return where the claim of a client's key is: the same on every replica, and no way back to the key."""
    return hashlib.sha256("\0".join(key.place).encode()).hexdigest()
