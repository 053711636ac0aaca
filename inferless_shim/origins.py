"""Which web pages may call: our own, and those of the origins in `--cors`. No I/O.

A page elsewhere could otherwise run the model on its visitor's localhost (CONTRACT.md §8, Fetch §3.2). No answer allows
credentials: a page sends its key by itself, as a header.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import Forbidden
from .http1 import Fields, Request

EXPOSED = "Stream-Id, Content-Location, Location, Retry-After, X-Request-Id"
PREFLIGHT = [
    ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
    ("Access-Control-Allow-Headers", "authorization, content-type, last-event-id, idempotency-key, prefer"),
    ("Access-Control-Max-Age", "600"),
]
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def check(request: Request, cors: Sequence[str], scheme: str | None = None) -> None:
    """Let a request through unless a page of another origin sent it. Raises Forbidden (403).

    `scheme` is what the client speaks, None if that is not known: a proxy in front may not say.
    """
    origin = request.field("origin")
    if origin is None:
        if request.field("sec-fetch-site") != "cross-site":
            return
    elif origin.lower() in cors or is_own(origin.lower(), (request.field("host") or "").lower(), scheme):
        return
    raise Forbidden("Pages of another origin may not call this server; allow theirs with --cors ORIGIN.")


def is_own(origin: str, host: str, scheme: str | None = None) -> bool:
    """Whether a page of this origin came from here. Without a Host (HTTP/1.0) nobody can say."""
    schemes = DEFAULT_PORTS if scheme is None else (scheme,)
    return bool(host) and any(
        origin.removesuffix(DEFAULT_PORTS[each]) == f"{each}://{host.removesuffix(DEFAULT_PORTS[each])}"
        for each in schemes
    )


def is_preflight(request: Request, cors: Sequence[str]) -> bool:
    """Whether an allowed page asks what it may send (Fetch §4.8); such a request never brings a key."""
    return (
        request.method == "OPTIONS"
        and request.field("access-control-request-method") is not None
        and (request.field("origin") or "").lower() in cors
    )


def fields(request: Request | None, cors: Sequence[str]) -> Fields:
    """Return what a response says of cross-origin use; nothing unless `--cors` is set."""
    origin = request.field("origin") if request is not None else None
    if origin is None or origin.lower() not in cors:
        return [("Vary", "Origin")] if cors else []
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", EXPOSED),
        ("Vary", "Origin"),
    ]
