"""TLS 1.2 and 1.3: the server's certificate, and a connection whose bytes it encrypts (RFC 8446, RFC 5246).

Two threads on one of OpenSSL's objects are unsafe, so a connection's handler thread alone touches its SSLSocket: to the
thread that produces a stream it is a pulled subscriber. Nothing of a key's contents is ever told or logged.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from .config import Settings
from .connection import RECEIVE, ClientGone, Connection
from .errors import StartupError

log = logging.getLogger(__name__)

RECORD = 16 * 1024  # RFC 8446 §5.1: the most that one record holds
# What is read while a stream is followed, which has to be read for TLS's own messages: the next request's beginning.
EARLY = 64 * 1024
# What OpenSSL says of a key that is not the certificate's: another of its kind, or one of another kind.
MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class Certificate:
    """A certificate's chain and its key, in files as PEM. Raises StartupError if they cannot be used."""

    def __init__(self, chain: Path, key: Path) -> None:
        self.chain = chain
        self.key = key
        self._context = load(chain, key)

    def reload(self) -> None:
        """Read both files again, for the connections to come; if they cannot be used, log that and keep the old ones.

        Runs on the main thread.
        """
        try:
            self._context = load(self.chain, self.key)
        except StartupError as error:
            log.error("the old certificate stays in use: %s", error)
        else:
            log.info("the certificate was read again")

    def connect(self, sock: socket.socket, address: str, stall: float) -> TlsConnection:
        """Make a connection of a socket that was accepted."""
        return TlsConnection(sock, address, stall, self)

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """Put TLS on a socket, which is closed if that raises. Raises OSError or ValueError."""
        return self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def curl_flags(self, host: str) -> list[str]:
        """Return what curl needs to believe that this is `host`: this certificate, or nothing that it could check."""
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as curl does: what is in the file is trusted
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self._context.wrap_bio(to_server, to_client, server_side=True)
        try:
            trusting.load_verify_locations(self.chain)
            client = trusting.wrap_bio(to_client, to_server, server_hostname=host)
            for side in (client, server, client):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except (OSError, ValueError):  # the file may be gone while it is renewed
            return ["--insecure"]
        return ["--cacert", str(self.chain)]


def read_certificate(settings: Settings) -> Certificate:
    """Return what `--tls-cert` and `--tls-key` name. Raises StartupError."""
    if settings.tls_cert is None or settings.tls_key is None:
        raise StartupError("--tls-cert and --tls-key belong together; give both.")
    return Certificate(settings.tls_cert, settings.tls_key)


def load(chain: Path, key: Path) -> ssl.SSLContext:
    """Make what connections are wrapped with. Raises StartupError, which names the file and the remedy."""
    check_pem(chain, "--tls-cert", b"CERTIFICATE-----", "certificate")
    check_pem(key, "--tls-key", b"PRIVATE KEY-----", "private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # An end without close_notify is an end, be it the client's or a drain's. OpenSSL 3 would send an alert.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a function, OpenSSL asks for the password of an encrypted key on the terminal, and waits.
        context.load_cert_chain(chain, key, password=refuse_password)
    except EncryptedKey:
        raise StartupError(
            f"--tls-key: {key} is encrypted; write it without a password (openssl pkey -in OLD -out NEW)."
        ) from None
    except ssl.SSLError as error:
        if error.reason in MISMATCHES:
            raise StartupError(f"--tls-key: {key} is not the key of the certificate in {chain}.") from None
        reason = (error.reason or "not readable as PEM").replace("_", " ").lower()
        raise StartupError(f"OpenSSL takes neither {chain} nor its key {key}: {reason}.") from None
    return context


class EncryptedKey(Exception):
    """The key needs a password."""


def refuse_password() -> str:
    raise EncryptedKey


def check_pem(path: Path, flag: str, mark: bytes, what: str) -> None:
    """Raise StartupError unless the file can be read and holds what its flag is for."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartupError(f"{flag}: cannot read {path}: {error.strerror}.") from None
    if mark not in content:
        raise StartupError(f"{flag}: there is no {what} in {path}; give it as PEM.")


class TlsConnection(Connection):
    """A connection that is encrypted once `start` has shaken hands."""

    secure = True
    pulled = True
    sock: ssl.SSLSocket

    def __init__(self, sock: socket.socket, address: str, stall: float, certificate: Certificate) -> None:
        super().__init__(sock, address, stall)
        self.send = self._send
        self._certificate = certificate
        self._early = bytearray()  # what was read while a stream was followed
        self._retry = b""  # what OpenSSL has begun to send: it must be tried again as the very same object
        self._blocked = select.POLLOUT  # what that waits for
        self._ended = False  # whether the client's end came while a stream was followed
        self._whole = False  # whether close_notify may be sent: nothing is half sent

    def start(self, deadline: float) -> None:
        """Shake hands. Raises ClientGone, after a line in the log unless the client has just left."""
        try:
            self.sock.getpeername()  # of one that has left, wrap_socket would forget the descriptor, unclosed
            self.sock = self._certificate.wrap(self.sock)
            self._shake_hands(deadline)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise ClientGone("in the middle of a TLS handshake") from error
        except TimeoutError as error:
            log.info("no TLS with %s: its handshake did not come in time", self.address)
            raise ClientGone("no TLS handshake") from error
        except ssl.SSLError as error:
            log.info("no TLS with %s: %s", self.address, fault(error))
            self.close_gently()
            raise ClientGone("no TLS handshake") from error
        except (OSError, ValueError) as error:
            raise ClientGone("before a TLS handshake") from error
        self._whole = True

    def _shake_hands(self, deadline: float) -> None:
        events = select.POLLIN
        while True:
            try:
                return self.sock.do_handshake()
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            if not self._wait(events, deadline):
                raise TimeoutError

    def receive(self, timeout: float) -> bytes:
        """Return what has come as `Connection.receive` does. A connection that ends without close_notify has ended.

        Nobody is fooled by that: a head and a body say themselves where they end.
        """
        if self._early:
            data, self._early = bytes(self._early), bytearray()
            return data
        deadline, events = time.monotonic() + timeout, select.POLLIN
        while self.sock.pending() or self._wait(events, deadline):
            try:
                return self.sock.recv(RECEIVE)
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except ssl.SSLWantWriteError:  # an answer to a message of TLS's own
                events = select.POLLOUT
        raise TimeoutError("nothing came in time")

    def awaited(self, *, writable: bool) -> int:
        """Return what means that something is to be done: bytes that come are read, as far as there is room."""
        reads = select.POLLIN if len(self._early) < EARLY and not self._ended else 0
        return reads | (self._blocked if writable else 0)

    def take_in(self, events: int) -> bool:
        """Read what has come, for the next request, and answer TLS's own messages; False if the client has ended."""
        if not events & select.POLLIN:
            return True
        try:
            while room := EARLY - len(self._early):
                data = self.sock.recv(min(room, RECEIVE))
                if not data:
                    self._ended = True
                    break
                self._early += data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            self._ended = True
        # With no room left it has not ended, unless OpenSSL would have to read on before it can send.
        return not self._ended and self._blocked != select.POLLIN

    def begin_stream(self, *, chunked: bool) -> None:
        """From now on no close_notify says that all is well."""
        self._whole = False
        super().begin_stream(chunked=chunked)

    def end_stream(self, *, chunked: bool) -> None:
        super().end_stream(chunked=chunked)
        self._whole = True

    def _send(self, data: Any) -> int:
        """Encrypt and send what fits. After a refusal `data` must begin as it did then, which a log's bytes do."""
        sent = 0
        try:
            while sent < len(data):
                self._retry = self._retry or bytes(data[sent : sent + RECORD])
                sent += self.sock.send(self._retry)
                self._retry = b""
        except ssl.SSLWantWriteError:
            self._blocked = select.POLLOUT
        except ssl.SSLWantReadError:
            self._blocked = select.POLLIN
        else:
            self._blocked = select.POLLOUT
        if not sent:
            raise BlockingIOError
        return sent

    def _say_end(self) -> None:
        """Send close_notify (RFC 8446 §6.1), unless something is not whole; the client's own is not waited for."""
        if self._whole and not self._retry:
            self._whole = False
            with contextlib.suppress(OSError, ValueError):
                self.sock.unwrap()


def fault(error: ssl.SSLError) -> str:
    """Say what was wrong with a handshake, in OpenSSL's words where we have none; without a client's own bytes."""
    if error.reason == "HTTP_REQUEST":
        return "it speaks plain HTTP; call https:// on this port"
    return (error.reason or "the handshake failed").replace("_", " ").lower()
