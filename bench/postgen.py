"""Load generator: CONNECTIONS keep-alive connections, each posting BODY again as soon as its answer is whole.

    python bench/postgen.py PORT CONNECTIONS SECONDS BODY

One thread, one epoll. An answer is right when it is a 200 that ends where its Content-Length, or its last chunk, says
it does, and holds as many bytes of body as the first one (stream ids and times have a fixed length, or nearly: 16
bytes are allowed). Everything else is a failure, and its connection is opened anew. Prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from typing import Any

LAST_CHUNK = b"\r\n0\r\n\r\n"
TOLERATED = 16  # bytes
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection:
    """One request at a time; `missing` is how many bytes of its answer are to come, None where chunks tell."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = request
        self.post()

    def post(self) -> None:
        self.answer = b""
        self.posted = time.perf_counter()
        self.socket.sendall(self.request)

    def read(self) -> int | None:
        """Take what has come; return how long the body is once it is whole. Raises ValueError for a wrong answer."""
        data = self.socket.recv(65536)
        if not data:
            raise ValueError("closed by the server")
        self.answer += data
        head = self.answer.find(b"\r\n\r\n")
        if head < 0:
            return None
        if not self.answer.startswith(b"HTTP/1.1 200 "):
            raise ValueError(self.answer[:60].decode("latin-1"))
        length = LENGTH.search(self.answer, 0, head)
        size = len(self.answer) - head - 4
        if length is None:
            return size if self.answer.endswith(LAST_CHUNK) else None
        if size > int(length[1]):
            raise ValueError("bytes after the end")
        return size if size == int(length[1]) else None


def run(port: int, connections: int, seconds: float, body: str) -> dict[str, Any]:
    request = f"POST /infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    whole = f"{request}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    poller = select.epoll()
    open_ones: dict[int, Connection] = {}

    def connect() -> None:
        connection = Connection(port, whole)
        open_ones[connection.socket.fileno()] = connection
        poller.register(connection.socket, select.EPOLLIN)

    for _ in range(connections):
        connect()
    took: list[float] = []
    failures, failure, expected = 0, "", None
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        for descriptor, _ in poller.poll(1):
            connection = open_ones[descriptor]
            try:
                size = connection.read()
                if size is None:
                    continue
                expected = size if expected is None else expected
                if abs(size - expected) > TOLERATED:
                    raise ValueError(f"a body of {size} bytes, where the first had {expected}")
                took.append(time.perf_counter() - connection.posted)
                connection.post()
            except (OSError, ValueError) as error:
                failures, failure = failures + 1, failure or str(error)
                del open_ones[descriptor]
                connection.socket.close()
                connect()
    wall = now - began
    took.sort()
    quantiles = {
        name: took[int(q * (len(took) - 1))] * 1e6 if took else 0.0 for name, q in (("p50", 0.5), ("p99", 0.99))
    }
    used = time.process_time()
    return {"requests": len(took), "wall": wall, "cpu": used, "us": quantiles, "failures": failures, "failure": failure}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])))
