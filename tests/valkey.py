"""A real redis-server for tests: on a free port, in a folder of its own, ended by its process id."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import unittest
from typing import Any

from tests.support import eventually


def require() -> None:
    """Skip the test, saying why, where the server or its client is missing; fail it where nothing may (E2E_ALL=1)."""
    missing = [] if shutil.which("redis-server") else ["redis-server is not installed"]
    missing += [] if importlib.util.find_spec("redis") else ["the package redis is not installed"]
    if missing and os.environ.get("E2E_ALL"):
        raise AssertionError(f"E2E_ALL is set, but {missing[0]}")
    if missing:
        raise unittest.SkipTest(missing[0])


def free_port() -> int:
    """Return a port that nobody listens on, small enough for a cluster, which also wants the one 10,000 above."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            if (port := int(sock.getsockname()[1])) < 2**16 - 10_000:
                return port


class RedisServer:
    """redis-server on `port`, which it keeps over restarts; it writes nothing to disk unless `flags` say so."""

    def __init__(self, *flags: str) -> None:
        require()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._flags = flags
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name]
        command += ["--save", "", "--appendonly", "no", "--logfile", "log", *self._flags]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        eventually(self._answers, what="redis-server answers")

    def kill(self) -> None:
        """End it as a crash does: what it had in memory is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def pause(self) -> None:
        """Have it answer nothing from now on, and drop nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *arguments: str) -> Any:
        """Return the reply to a command, as text."""
        import redis

        with redis.Redis(port=self.port, decode_responses=True, encoding="latin-1", protocol=2) as client:
            return client.execute_command(*arguments)

    def _answers(self) -> bool:
        """Whether it answers, if only to say that a password is needed."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        return False
