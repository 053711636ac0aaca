"""The server: it listens, gives each connection a thread, sweeps, and drains.

`Server.serve_forever` runs on the accept thread; everything about a connection happens on its handler thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .archive import Archive
from .config import Settings
from .connection import Connection, peer_address
from .engine import FINALIZE_TIME
from .errors import StartupError
from .handler import Handler
from .http1 import response_head
from .loader import App
from .outputs import encode
from .refusals import Refusals
from .routes import Routes
from .service import Phase, Service

if TYPE_CHECKING:
    from .tls import Certificate

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# How often the store is swept and timeouts are looked at. With 1,000 streams a sweep holds the interpreter for 1 ms.
TICK = 0.25
# A connection has a socket and an eventfd (elsewhere two ends of a pipe); files, libraries and models need some, too.
DESCRIPTORS_EACH, DESCRIPTORS_SPARE = 2, 128
# How long handlers may go on writing what is logged, once all streams have ended.
FLUSH_TIME = 5.0
# How long a connection that was accepted as the listener was shut has to send its request, and be told 503.
NEW_TIME = 0.25


class Server(socketserver.TCPServer):
    """Accepts connections and owns the service. Raises StartupError if it cannot listen."""

    # What the kernel holds while we are busy; Linux caps it at somaxconn, 4096.
    request_queue_size = 1024
    # Only Windows takes this for leave to steal a port that is in use.
    allow_reuse_address = True

    def __init__(self, settings: Settings, app: App, archive: Archive | None = None) -> None:
        self.service = Service(settings, app, archive)
        self.routes = Routes(self.service)
        self.certificate: Certificate | None = None
        if settings.tls_cert is not None or settings.tls_key is not None:
            from .tls import read_certificate  # loads OpenSSL, 3 MB, which plain HTTP does not need

            self.certificate = read_certificate(settings)
            self.service.reload.append(self.certificate.reload)
        self._connect = Connection if self.certificate is None else self.certificate.connect
        # With a journal, a file for each stream that runs, and for each client that is sent one from disk.
        files = settings.concurrency + settings.queue + settings.max_connections
        journaled = files if settings.log_dir is not None else 0
        self.max_connections = fit_descriptors(settings.max_connections, DESCRIPTORS_SPARE + journaled)
        self._lock = threading.Lock()  # guards _handlers
        self._handlers: dict[Handler, threading.Thread] = {}
        self._refusals = Refusals()
        self._swept = 0.0
        self._over = threading.Event()  # nothing is left to sweep
        self._told_of_exhaustion = False
        try:
            found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family = found[0][0]
            super().__init__(found[0][4], Handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be a host's
            raise StartupError(
                f"Cannot listen on {settings.host} port {settings.port}: {getattr(error, 'strerror', error)}; "
                "choose another with --host or --port (0 lets the system choose)."
            ) from None

    def server_bind(self) -> None:
        """Bind without the reverse DNS look-up of http.server; `::` takes IPv4, too, where the system can."""
        if self.address_family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
        self.service.admission.listens_on(str(self.socket.getsockname()[0]))

    @property
    def port(self) -> int:
        """The port it listens on, whoever chose it."""
        return int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The address to call from this machine."""
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{f'[{self.address}]' if ':' in self.address else self.address}:{self.port}"

    @property
    def address(self) -> str:
        """The IP address to call from this machine."""
        host = str(self.socket.getsockname()[0])
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)

    @property
    def curl_flags(self) -> list[str]:
        """What curl needs to call `url`."""
        return self.certificate.curl_flags(self.address) if self.certificate is not None else []

    # ---- The accept thread

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; where descriptors have run out, pause instead of asking again at once."""
        try:
            accepted = super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                if not self._told_of_exhaustion:
                    log.error("cannot accept connections: %s", error.strerror)
                self._told_of_exhaustion = True
                time.sleep(0.05)
            raise
        self._told_of_exhaustion = False
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a handler thread; past a cap tell it 503."""
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = peer_address(client_address)
        if len(self._handlers) >= self.max_connections:  # none is added but here
            self._refuse(request, address, "--max-connections")
            return
        handler = Handler(self._connect(request, address, self.service.settings.stall), self.service, self.routes)
        if not self.service.clients.enter(address):
            self._refuse(request, address, "--max-connections-per-client")
            return
        self.service.traffic.connections.add("accepted")
        thread = threading.Thread(target=self._handle, args=(handler,), name="handler", daemon=True)
        with self._lock:
            self._handlers[handler] = thread
        try:
            thread.start()
        except RuntimeError:  # can't start new thread
            self._forget(handler)
            raise

    def _refuse(self, request: socket.socket, address: str, flag: str) -> None:
        """Tell a connection that there is no room for it, and what bounds that."""
        self.service.traffic.connections.add("refused")
        request_id = os.urandom(8).hex()
        log.info("a connection was refused", {"client": address, "bound": flag, "request": request_id})
        # Over TLS that would take a handshake, which is not for this thread.
        self._refusals.add(request, busy_reply(flag, request_id) if self.certificate is None else b"")

    def _forget(self, handler: Handler) -> None:
        """Close a connection and make room. In this order: what `_end_waiting_connections` finds is not closed yet."""
        with self._lock:
            self._handlers.pop(handler, None)
        handler.close()
        self.service.clients.leave(handler.connection.address)
        self.service.traffic.connections.add("ended")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection before its handler took over."""
        log.warning("a connection was dropped", exc_info=True)

    def server_close(self) -> None:
        """Close the listener, once nobody accepts any more; who is connected by then is accepted here, not reset."""
        with contextlib.suppress(OSError):  # no more of them, or closed before
            self.socket.setblocking(False)
            while True:
                self.process_request(*self.get_request())
        super().server_close()
        self._refusals.close()

    def service_actions(self) -> None:
        now = time.monotonic()
        if now - self._swept >= TICK:
            self._swept = now
            self._refusals.sweep(now)
            try:
                self.service.store.sweep(now)
                self.service.give_back_memory()
                self.service.engine.tick()
            except Exception:  # the accept thread must live on
                log.exception("sweeping failed")

    def _accept(self) -> None:
        """Accept until the listener is shut, then go on to sweep until the drain is over."""
        self.serve_forever(TICK)
        while not self._over.wait(TICK):
            self.service_actions()

    # ---- A handler thread

    def _handle(self, handler: Handler) -> None:
        try:
            handler.serve()
        except Exception:
            log.exception("a connection failed")
        finally:
            self._forget(handler)

    # ---- The main thread

    def start(self) -> None:
        """Begin to accept, to load the app, and to read what is archived: live from now on, ready when the engine is.

        Raises StartupError if there can be no archive.
        """
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        self.service.engine.start()
        store = self.service.store
        if store.archive is not None:
            store.archive.start()
            store.archive_started = True

    def ready(self) -> None:
        self.service.phase = Phase.SERVING

    def drain(self) -> bool:
        """Finish what runs, refuse what is new, end the rest at the deadline, run `finalize`.

        Return False if an infer is stuck and `finalize` could not run.
        """
        settings, service = self.service.settings, self.service
        service.phase = Phase.DRAINING
        log.info("draining: %d streams are running", len(service.store.running()))
        self._end_waiting_connections()
        service.engine.close()
        wait_until(lambda: not service.engine.busy and not service.store.running(), settings.drain)
        self.shutdown()
        self.server_close()  # to be refused is safe to try again; to be accepted and cut is not
        wait_until(lambda: self._is_deserted(new=False), NEW_TIME)
        self._end_streams()
        finalized = service.engine.stop(settings.stuck_grace, max(settings.stuck_grace, FINALIZE_TIME))
        self._over.set()
        return finalized

    def abandon(self) -> None:
        """Tell everybody that it is over, without waiting for an app that does not end."""
        self.service.phase = Phase.DRAINING
        self._end_streams()

    def _end_streams(self) -> None:
        """End what runs or waits, and wait until its clients and the archive have all that is logged."""
        for stream in self.service.store.running():
            stream.fail("shutting_down", "The server is shutting down; start a new request.")
        archive = self.service.store.archive
        if archive is not None:
            archive.sever()
        wait_until(self._is_deserted, FLUSH_TIME)
        if archive is not None:
            archive.close(FLUSH_TIME)

    def _is_deserted(self, *, new: bool = True) -> bool:
        """Whether no connection is left, once those that want nothing have been ended, also those that are `new`."""
        self._end_waiting_connections(new=new)
        return not self._handlers

    def _end_waiting_connections(self, *, new: bool = False) -> None:
        """End the connections that wait for a request; those that wait for their first one only if `new`."""
        with self._lock:
            for handler in self._handlers:
                handler.reader.end_if_waiting(new=new)


def busy_reply(flag: str, request_id: str) -> bytes:
    """What a connection past a cap is told before it is closed."""
    body = encode({"error": f"Too many connections; try again shortly ({flag} bounds them).", "request_id": request_id})
    fields = [("Retry-After", "2"), ("X-Request-Id", request_id)]
    fields += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return response_head(503, [*fields, ("Connection", "close")]) + body


def wait_until(condition: Callable[[], object], timeout: float) -> bool:
    """Wait for a condition that nobody announces; for the main thread, which has nothing else to do."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def fit_descriptors(max_connections: int, spare: int = DESCRIPTORS_SPARE) -> int:
    """Raise the soft limit on descriptors to the hard one; return how many connections fit, and say if it is fewer."""
    if resource is None:
        return max_connections
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections * DESCRIPTORS_EACH + spare
    if limit == resource.RLIM_INFINITY:
        return max_connections
    higher = max(limit, wanted) if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(ValueError, OSError):  # macOS refuses more than its kernel's own limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (higher, hard))
        limit = higher
    fitting = max(1, (limit - spare) // DESCRIPTORS_EACH)
    if fitting < max_connections:
        log.warning("only %d connections at once: the limit of open files is %d (ulimit -n)", fitting, limit)
    return min(max_connections, fitting)
