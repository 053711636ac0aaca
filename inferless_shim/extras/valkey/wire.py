"""Connections to the store: commands as bytes, replies, and whether it can be reached at all.

The package `redis` speaks: it connects, over TLS if asked to, authenticates, selects the database and reads replies.
Nothing is sent twice by itself: what became of a command whose reply was lost is for the caller to find out.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from ...errors import StartupError

log = logging.getLogger(__name__)

# Seconds: how long a handler thread waits for a store that does not answer. From then on it is away, and nobody waits.
TIMEOUT = 1.0
# Connections for handler threads, and how long one may lie idle: a server may close it, and we would take that for its
# going away.
LINES, IDLE = 16, 10.0

Refused = redis.ResponseError  # a reply that is an error


class Away(Exception):
    """The store cannot be reached, or its answer did not come: nobody knows whether it did what it was asked."""


class Denied(Away):
    """It answers, and lets us not in: a wrong user or password."""


class Address:
    """Where the store is. Raises StartupError for a URL that is no good, without the password in it."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            try:
                port = parts.port or 6379
            except ValueError:  # which would show what may be a part of the password
                raise ValueError("its port is no number; in a password, / is written %2F, @ %40") from None
            if parts.scheme not in ("redis", "rediss"):
                raise ValueError("it must begin with redis:// or rediss://")
            if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
                raise ValueError("what follows the port is a database's number, such as /0")
            self.name = f"{parts.scheme}://{parts.hostname or 'localhost'}:{port}"
            options = parse_url(url)
            if parts.scheme == "rediss" and options.get("ssl_cert_reqs") != "none":
                options.setdefault("ssl_check_hostname", True)  # not every version's default
            self._make = options.pop("connection_class", redis.Connection)
            self._options = options | {"protocol": 2, "decode_responses": False, "health_check_interval": 0}
            self.line(TIMEOUT)
        except (ValueError, TypeError, redis.RedisError) as error:
            raise StartupError(f"--log is no address of a store: {error}.") from None

    def line(self, timeout: float) -> Line:
        """Return a connection that is made at its first command; `timeout` bounds every wait for the other side."""
        times = {"socket_timeout": timeout, "socket_connect_timeout": TIMEOUT, "retry": Retry(NoBackoff(), 0)}
        return Line(self._make(**(self._options | times)))


class Line:
    """One connection, for one thread at a time. After `Away` its next command connects anew."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.used = time.monotonic()

    def ask(self, *commands: bytes) -> list[Any]:
        """Return the replies to commands. Raises Away.

        A store that refuses one (it has no memory left, it may not be written to) is as good as away.
        """
        replies = self.calls(commands)
        for reply in replies:
            if isinstance(reply, Refused):
                raise Away(str(reply))
        return replies

    def calls(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands in one go; return their replies, errors among them. Raises Away."""
        replies: list[Any] = []
        try:
            self._connection.send_packed_command([b"".join(commands)])
            for _ in commands:
                try:
                    replies.append(self._connection.read_response())
                except Refused as error:
                    replies.append(error)
        except (redis.RedisError, OSError, ValueError) as error:
            self.close()
            kind = Denied if isinstance(error, redis.AuthenticationError) else Away
            raise kind(str(error) or type(error).__name__) from error
        except BaseException:
            self.close()
            raise
        self.used = time.monotonic()
        return replies

    def close(self) -> None:
        self._connection.disconnect()


class Reach:
    """Whether the store can be reached, and connections for threads that ask it now and then. Any thread.

    Whoever finds that it does not answer says so with `lost`; one thread finds that it is back. `losses` counts.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.up = False
        self.losses = 0
        self._lock = threading.Lock()  # guards all above and _idle
        self._idle: list[Line] = []
        self._places = threading.BoundedSemaphore(LINES)
        self._told = False

    def lost(self, why: object) -> None:
        """Note that the store does not answer."""
        with self._lock:
            was_up, self.up = self.up, False
            self.losses += 1
            told, self._told = self._told, True
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()
        if was_up or not told:
            log.error(
                "the store at %s is away (%s): streams go on here, other replicas do not see them, "
                "and a POST with an Idempotency-Key is 503 until it is back", self.address.name, why,
            )  # fmt: skip

    def back(self, losses: int) -> bool:
        """Note that the store answers, unless it was lost again since there were so many losses."""
        with self._lock:
            if self.losses != losses:
                return False
            self.up, told, self._told = True, self._told, False
        if told:
            log.warning("the store at %s is back", self.address.name)
        return True

    def ask(self, *commands: bytes) -> list[Any]:
        """Return the replies to commands, at once or within TIMEOUT. Raises Away."""
        with self._line() as line:
            return line.ask(*commands)

    def close(self) -> None:
        with self._lock:
            self.up = False
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    @contextlib.contextmanager
    def _line(self) -> Iterator[Line]:
        if not self.up:
            raise Away("it did not answer lately")
        if not self._places.acquire(timeout=TIMEOUT):
            raise Away("too many ask it at once")
        try:
            if not self.up:  # whoever had that place before has found out
                raise Away("it did not answer just now")
            losses, line = self._take()
            try:
                yield line
            except Away as error:
                if self.losses == losses:  # else that was told already
                    self.lost(error)
                raise
            self._put(line, losses)
        finally:
            self._places.release()

    def _take(self) -> tuple[int, Line]:
        """Return the number of losses so far and a connection that was in use lately, or a new one."""
        with self._lock:
            losses, line = self.losses, self._idle.pop() if self._idle else None
        if line is None or time.monotonic() - line.used < IDLE:
            return losses, line or self.address.line(TIMEOUT)
        line.close()
        return losses, line

    def _put(self, line: Line, losses: int) -> None:
        with self._lock:
            if self.up and self.losses == losses:
                self._idle.append(line)
                return
        line.close()
