"""Flags in, serve. The only module that prints: to stderr, because stdout is the app's."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from . import allocator, sdk
from .app import Server
from .archive import Archive
from .config import Settings, read_settings
from .errors import StartupError
from .extras import awq
from .loader import read_app
from .logs import FORMATTERS
from .usage import curl_line

log = logging.getLogger(__name__)

EXIT_STARTUP = 2
EXIT_STUCK = 70  # EX_SOFTWARE of sysexits.h
# How often the main thread looks whether a signal has come.
LOOK = 0.1


class Signals:
    """SIGTERM and SIGINT: the first asks for a drain, the second ends the process at once, as one while loading.

    SIGHUP has files read again, where there are any; else it ends the process, as a terminal that is closed means to.
    """

    def __init__(self) -> None:
        self.loading = True
        self._asked = self._hung_up = False
        self._reload: Sequence[Callable[[], None]] = ()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.loading or self._asked:
            os._exit(128 + number)
        self._asked = True

    def reload_on_hangup(self, reload: Sequence[Callable[[], None]]) -> None:
        """Have `wait` call these after a SIGHUP."""
        if reload and hasattr(signal, "SIGHUP"):  # not on Windows
            self._reload = reload
            signal.signal(signal.SIGHUP, self._hang_up)

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        self._hung_up = True

    def wait(self, until: Callable[[], bool]) -> bool:
        """Return True when a drain is asked for, False when `until` comes true; reload when that is asked for.

        Runs on the main thread, which alone runs Python's signal handlers.
        Not by an Event, nor by a queue: a signal that comes just before their wait begins ends neither, and the
        handler's `Event.set` would take a lock that the thread which it interrupts may hold.
        """
        while not self._asked:
            if until():
                return False
            if self._hung_up:
                self._hung_up = False  # first: another may come while the files are being read
                for each in self._reload:
                    each()
            time.sleep(LOOK)
        return True


class LoadingLine:
    """Says what is being loaded: on a terminal one live line with the time so far, elsewhere plain log lines."""

    def __init__(self, name: str, *, live: bool) -> None:
        self.name = name
        self.began = time.monotonic()
        self.live = live
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


class Prints(io.FileIO):
    """stdout's descriptor. Once nobody reads it any more, what is printed goes nowhere, and no request fails for it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def show_prints_at_once() -> None:
    """Let what the app prints come out line by line, also where stdout is a file or a pipe, as a log collector's is."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is something else, or closed
        out = sys.stdout
        raw = Prints(out.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), out.encoding, out.errors, line_buffering=True)


class LogLines(logging.StreamHandler):  # type: ignore[type-arg]  # it takes none before 3.11
    """Writes log lines to stderr. If the app has closed that, they are lost, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def set_up_log(log_format: str) -> None:
    """Send our log lines and the app's to stderr; ours go there alone, and not to handlers that the app may add.

    So do Python's warnings and what nobody catches, whose text may be a client's and would pass for lines of ours.
    """
    lines = LogLines(sys.stderr)
    lines.setFormatter(FORMATTERS[log_format]())
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    ours = logging.getLogger(__package__)
    ours.addHandler(lines)
    ours.propagate = False
    logging.captureWarnings(True)
    threading.excepthook = log_uncaught
    sys.unraisablehook = log_unraisable


def log_uncaught(raised: threading.ExceptHookArgs) -> None:
    """Log what has ended a thread, unless that was its wish."""
    if raised.exc_type is not SystemExit:
        name = raised.thread.name if raised.thread is not None else "a thread"
        log.error("%s raised", name, exc_info=raised.exc_value)


def log_unraisable(raised: sys.UnraisableHookArgs) -> None:
    """Log what was raised where nothing can catch it: in a `__del__`, say."""
    log.error("%s", raised.err_msg or "an exception was ignored", exc_info=raised.exc_value)


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the server; return the exit status: 0 after a drain, 2 if it could not start, 70 if it is stuck."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    set_up_log(settings.log_format)
    signals = Signals()
    show_prints_at_once()
    try:
        sdk.install()
        if settings.check:
            from .check.report import check  # a server needs none of it

            return leave(check(settings))
        allocator.bound_arenas()
        app = read_app(settings)
        archive = make_archive(settings, app.name)
        server = Server(settings, app, archive)
        signals.reload_on_hangup(server.service.reload)
        awq.install()
        return serve(server, signals)
    except StartupError as error:
        if settings.log_format == "text":
            say(f"error: {error}")
        else:
            log.error("%s", error)
        return leave(EXIT_STARTUP)


def make_archive(settings: Settings, model: str) -> Archive | None:
    """Make what keeps streams beyond this process, if that is asked for. Raises StartupError."""
    if settings.log_dir is not None:
        from .journal import Journal  # who keeps no journal need not load it

        return Journal(settings, model)
    if settings.log is not None:
        from .extras import valkey

        return valkey.connect(settings, model)
    return None


def serve(server: Server, signals: Signals) -> int:
    """Load the app while the listener is up already, serve until a signal; return the exit status.

    Raises StartupError.
    """
    engine = server.service.engine
    text = server.service.settings.log_format == "text"
    announce = say if text else log.info
    line = LoadingLine(engine.app.name, live=text and sys.stderr.isatty())
    if server.service.admission.is_open_to_others and not server.service.settings.insecure:
        log.warning(
            "whoever reaches %s port %d may use this server: give it --api-key-file FILE, or listen with --host "
            "127.0.0.1 (--insecure silences this)", server.service.settings.host, server.port,
        )  # fmt: skip
    server.start()
    took = line.wait(engine.loaded)
    if engine.failed is not None:
        raise engine.failed
    signals.loading = False
    server.ready()
    announce(f"{engine.app.name} is ready on {server.url} (loaded in {took:.1f} s)")
    with_key = server.service.admission.keys is not None
    announce(f"try:  {curl_line(server.service.app, server.url, with_key=with_key, flags=server.curl_flags)}")
    exits = server.service.settings.on_stuck == "exit"
    if not signals.wait(lambda: exits and engine.stuck):
        log.error("every slot is held by an infer that does not end: exit (--on-stuck)")
        server.abandon()
        return leave(EXIT_STUCK, stuck=True)
    finalized = server.drain()
    log.info("stopped")
    return leave(0, stuck=not finalized)


def leave(status: int, *, stuck: bool = False) -> int:
    """Return `status`, or exit with it here if a thread of the app's would keep the interpreter from ending."""
    try:
        sys.stdout.flush()
    except Exception:  # Python would try again, and end with 120
        sys.stdout = None
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if left or stuck:
        log.warning(
            "leaving threads behind: %s",
            ", ".join(thread.name for thread in left) or "an infer or a finalize that does not end",
        )
        logging.shutdown()
        os._exit(status)
    return status
