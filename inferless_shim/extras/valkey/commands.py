"""Commands to the store as bytes (RESP), and scripts that are known to it by their hash. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

Argument = bytes | bytearray | str | int


def command(*arguments: Argument) -> bytes:
    """Write a command as the protocol has it."""
    parts: list[bytes | bytearray] = [b"*%d\r\n" % len(arguments)]
    for each in arguments:
        data = each if isinstance(each, (bytes, bytearray)) else str(each).encode()
        parts += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"".join(parts)


class Script:
    """What the store does in one step, in Lua. It must have been loaded with `load` since the store was started."""

    def __init__(self, source: str) -> None:
        self.load = command("SCRIPT", "LOAD", source)
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def run(self, keys: Sequence[str], *arguments: Argument) -> bytes:
        """Write the command that runs it."""
        return command("EVALSHA", self._sha, len(keys), *keys, *arguments)


def milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
