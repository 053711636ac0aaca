"""How many connections each client has (`--max-connections-per-client`), and whether it may have another. No I/O."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable


class Clients:
    """Counts by address; an IPv6 client by its /64, of which it has every address (RFC 6177 §2). `most` 0 is no bound.

    `exempt` tells a proxy's address, which is never counted: those that it speaks for are.
    """

    def __init__(self, most: int, exempt: Callable[[str], bool] = lambda address: False) -> None:
        self.most = most
        self._exempt = exempt
        self._lock = threading.Lock()  # guards _present
        self._present: dict[str, int] = {}

    def enter(self, address: str) -> bool:
        """Count one more of this client's; return False, without counting it, if that would be too many."""
        if not self.most or self._exempt(address):
            return True
        client = network(address)
        with self._lock:
            if self._present.get(client, 0) >= self.most:
                return False
            self._present[client] = self._present.get(client, 0) + 1
            return True

    def leave(self, address: str) -> None:
        """Take back one that has entered."""
        if not self.most or self._exempt(address):
            return
        client = network(address)
        with self._lock:
            self._present[client] -= 1
            if not self._present[client]:
                del self._present[client]


def network(address: str) -> str:
    """Return what stands for a client: its IPv4 address, or its IPv6 network."""
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
