"""Flags in, serve. The only module that prints: to stderr, because stdout is the app's."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

from . import sdk
from .app import Server
from .config import read_settings
from .errors import StartupError
from .extras import awq
from .loader import read_app
from .usage import curl_line

log = logging.getLogger(__name__)

EXIT_STARTUP = 2
# How often the main thread looks whether a signal has come.
LOOK = 0.1


class Signals:
    """SIGTERM and SIGINT: the first asks for a drain, the second ends the process at once, as one while loading."""

    def __init__(self) -> None:
        self.loading = True
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.loading or self._asked:
            os._exit(128 + number)
        self._asked = True

    def wait(self) -> None:
        """Return when a drain is asked for. Runs on the main thread, which alone runs Python's signal handlers.

        Not by an Event, nor by a queue: a signal that comes just before their wait begins ends neither, and the
        handler's `Event.set` would take a lock that the thread which it interrupts may hold.
        """
        while not self._asked:
            time.sleep(LOOK)


class LoadingLine:
    """Says what is being loaded: on a terminal one live line with the time so far, elsewhere plain log lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.live = sys.stderr.isatty()
        if not self.live:
            log.info("loading %s", name)

    def wait(self, loaded: threading.Event) -> float:
        """Wait for `loaded`; return the seconds it took."""
        told = self.began
        while not loaded.wait(0.2):
            now = time.monotonic()
            if self.live:
                say(f"\r\033[K loading {self.name} … {now - self.began:.0f} s", end="")
            elif now - told >= 10:
                told = now
                log.info("still loading %s, %.0f s", self.name, now - self.began)
        if self.live:
            say("\r\033[K", end="")
        return time.monotonic() - self.began


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the server; return the exit status: 0 after a drain, 2 if it could not start."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    signals = Signals()
    try:
        sdk.install()
        app = read_app(settings)
        server = Server(settings, app)
        awq.install()
        finalized = serve(server, signals)
    except StartupError as error:
        say(f"error: {error}")
        return leave(EXIT_STARTUP)
    return leave(0, stuck=not finalized)


def serve(server: Server, signals: Signals) -> bool:
    """Load the app while the listener is up already, serve until a signal; return what `drain` does.

    Raises StartupError.
    """
    engine = server.service.engine
    line = LoadingLine(engine.app.name)
    server.start()
    took = line.wait(engine.loaded)
    if engine.failed is not None:
        raise engine.failed
    signals.loading = False
    server.ready()
    say(f"{engine.app.name} is ready on {server.url} (loaded in {took:.1f} s)")
    say(f"try:  {curl_line(server.service, server.url)}")
    signals.wait()
    finalized = server.drain()
    log.info("stopped")
    return finalized


def leave(status: int, *, stuck: bool = False) -> int:
    """Return `status`, or exit with it here if a thread of the app's would keep the interpreter from ending."""
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if left or stuck:
        log.warning(
            "leaving threads behind: %s",
            ", ".join(thread.name for thread in left) or "an infer or a finalize that does not end",
        )
        logging.shutdown()
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            sys.stdout.flush()
        os._exit(status)
    return status
