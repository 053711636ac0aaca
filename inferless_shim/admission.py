"""Whether a request may go on, decided by its head alone: before the body, and before anybody looks what it is for.

So what is refused says nothing of what there is here: a path, a model or a stream. No I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from . import origins, queries
from .config import Settings
from .errors import Unauthorized
from .hosts import Hosts, is_loopback
from .http1 import Request
from .proxies import Proxies
from .store import Store

if TYPE_CHECKING:
    from .auth import Key, Keyring

BEARER = re.compile(r"bearer +([^ ]+)", re.IGNORECASE)  # RFC 6750 §2.1, RFC 9110 §11.1
# Paths that are admitted otherwise than the rest.
STREAM = re.compile(r"/streams/(?P<stream>[^/]+)")  # where a token is as good as a key
METRICS = "/metrics"
HEALTH = "/v2/health/"  # what a probe asks has no secrets


class Client(NamedTuple):
    """Who a request comes from: an address; "http" or "https" where that is known; whose streams it may have.

    `owner` and `name` are those of its key, and "" where no key was asked for.
    """

    address: str
    scheme: str | None = None
    owner: str = ""
    name: str = ""


class Admission:
    """The one place that decides who may. Raises StartupError if the keys cannot be read."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.proxies = Proxies(settings.trusted_proxy)
        self.listens_on("127.0.0.1")
        self.keys: Keyring | None = None
        if settings.api_key_file is not None:
            from .auth import Keyring  # loads OpenSSL, 3 MB, which a server without keys does not need

            self.keys = Keyring(settings.api_key_file)

    def listens_on(self, address: str) -> None:
        """Learn the address that `--host` has led to."""
        self.hosts = Hosts(address, self.settings.host, self.settings.allowed_host)
        self._local = is_loopback(address)

    @property
    def is_open_to_others(self) -> bool:
        """Whether people on other machines may call without a key."""
        return self.keys is None and not self._local

    def seen(self, request: Request, peer: str, *, secure: bool = False) -> tuple[str, str | None]:
        """Return the client's address and scheme; `peer` is the other end of the connection, `secure` means TLS."""
        address, scheme = self.proxies.seen_through(request, peer)
        return address, scheme or ("https" if secure else None)

    def admit(self, request: Request, address: str, scheme: str | None = None) -> Client:
        """Return who asks, from this address. Every refusal there is says nothing of what is here.

        Raises Forbidden (403) for a name that is not ours or a page of another origin, Unauthorized (401).
        """
        self.hosts.check(request)
        origins.check(request, self.settings.cors, scheme)
        if self.keys is None:
            return Client(address, scheme)
        key = self._key(request, self.keys)
        if key is not None:
            return Client(address, scheme, key.owner, key.name)
        if self._is_open(request):
            return Client(address, scheme)
        raise Unauthorized(presented=bool(BEARER.match(request.field("authorization") or "")))

    def location(self, stream_id: str, owner: str) -> str:
        """Return where a client that cannot set headers follows this stream of its own."""
        token = self.keys.token(owner, stream_id) if self.keys is not None else None
        return f"/streams/{stream_id}?token={token}" if token else f"/streams/{stream_id}"

    def _key(self, request: Request, keys: Keyring) -> Key | None:
        """Return the key that a request brings, or that its token was made with. A field wins over a token."""
        authorization = request.field("authorization")
        if authorization is not None:
            match = BEARER.fullmatch(authorization)
            return keys.find(match[1]) if match else None
        stream = STREAM.fullmatch(request.path) if request.method in ("GET", "HEAD") else None
        token = queries.token(request.query) if stream is not None else None
        if stream is None or token is None:
            return None
        return keys.check_token(self.store.owner(stream[1]), stream[1], token)

    def _is_open(self, request: Request) -> bool:
        """Whether anybody may ask this: the page at `/` says how to call, not with what."""
        if request.path.startswith(HEALTH) or origins.is_preflight(request, self.settings.cors):
            return True
        return request.method in ("GET", "HEAD") and (
            request.path == "/" or (request.path == METRICS and self.settings.open_metrics)
        )
