"""Which names the server may be called by, against DNS rebinding. No I/O.

A page of evil.example whose name is made to point at 127.0.0.1 is of the same origin as what answers there, and may
read it all; only the Host field tells (RFC 9110 §7.2). So on loopback, or when names are listed, others are refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from .errors import Forbidden
from .http1 import Request

LOCAL = ("localhost", "[::1]")


class Hosts:
    """The names of a server that listens on the address `bound` and was told to by the name `name`."""

    def __init__(self, bound: str, name: str, listed: Sequence[str]) -> None:
        self.enforced = bool(listed) or is_loopback(bound)
        # What others reach, probes call by its address; a page is pointed somewhere by a name alone.
        self._addresses_too = not is_loopback(bound)
        self._names = {*LOCAL, canonical(name if ":" not in name else f"[{name}]")}
        self._names.update(each.lstrip(".") for each in listed)
        self._parents = (".localhost", *(each for each in listed if each.startswith(".")))

    def check(self, request: Request) -> None:
        """Raise Forbidden (403) for a name that is not ours. Without a Host (HTTP/1.0) no browser asks."""
        host = request.field("host")
        if self.enforced and host is not None and not self._knows(canonical(host)):
            raise Forbidden("This server does not go by that name; allow it with --allowed-host NAME.")

    def _knows(self, name: str) -> bool:
        if name in self._names or name.endswith(self._parents):
            return True
        return is_address(name.strip("[]")) if self._addresses_too else name.startswith("127.") and is_loopback(name)


def canonical(host: str) -> str:
    """Return a Host field, or a name, as it is compared: lower case, without port and without the last dot."""
    if host.startswith("["):
        address = host[1:].partition("]")[0]
        try:
            return f"[{ipaddress.IPv6Address(address)}]"
        except ValueError:
            return f"[{address}]"
    return host.partition(":")[0].lower().removesuffix(".")


def is_address(text: str) -> bool:
    """Whether this is an IP address, and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an IP address is of this machine alone; False for a name."""
    if not is_address(address):
        return False
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
