"""Who really asks, behind a proxy: X-Forwarded-For and X-Forwarded-Proto, from proxies that are trusted. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from .http1 import Request

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAPPED = "::ffff:"  # how an IPv4 client looks to a socket that listens on ::


class Proxies:
    """The networks in which only proxies of ours are."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self.trusted = trusted

    def seen_through(self, request: Request, peer: str) -> tuple[str, str | None]:
        """Return the client's address and scheme: the peer's own and None unless the peer is a trusted proxy.

        Each proxy adds the address that it was asked from on the right, so the client's is the rightmost that is not a
        proxy's; what stands left of it the client may have made up. What is malformed is worth nothing.
        """
        peer = peer.removeprefix(MAPPED) if "." in peer else peer
        if not self.trusted or not self._trusts(_address(peer)):
            return peer, None
        scheme = (request.field("x-forwarded-proto") or "").lower()
        client = peer
        for text in reversed((request.field("x-forwarded-for") or "").split(",")):
            address = _address(text.strip())
            if address is None:
                return peer, scheme if scheme in ("http", "https") else None
            client = str(address)
            if not self._trusts(address):
                break
        return client, scheme if scheme in ("http", "https") else None

    def trusts(self, peer: str) -> bool:
        """Whether the other end of a connection is one of them."""
        return bool(self.trusted) and self._trusts(_address(peer))

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self.trusted)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
