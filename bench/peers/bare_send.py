"""Peer (a), the ceiling: a bare loop of `socket.send` with ready-made frames, one thread a connection.

The frames are byte for byte what our server sends, HTTP chunk included. No JSON, no ids to count, no log, no checks.
"""

import json
import socket
import sys
import threading
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = "0123456789abcdef0123456789abcdef"


def frame(number: int, lines: str) -> bytes:
    payload = f"id: {STREAM}-{number}\n{lines}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def read_inputs(connection: socket.socket) -> dict:
    request = connection.recv(65536)
    return json.loads(request.partition(b"\r\n\r\n")[2] or connection.recv(65536))


def send_paced(connection: socket.socket, count: int, period: float) -> None:
    due = time.monotonic()
    for number in range(1, count + 1):
        time.sleep(max(0, due - time.monotonic()))
        due += period
        connection.send(frame(number, f'data: {{"OUT":"token ","T":{time.monotonic_ns()}}}'))


def answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inputs = read_inputs(connection)
        count, period = inputs["COUNT"], inputs.get("PERIOD_US", 0) / 1e6
        connection.send(HEAD)
        if period:
            send_paced(connection, count, period)
        else:
            send = connection.send
            for ready in ready_made[:count]:
                send(ready)
        connection.send(frame(count + 1, "event: done\ndata: {}") + b"0\r\n\r\n")


# Made once, for streams of at most so many events.
ready_made = [frame(number, 'data: {"OUT":"token "}') for number in range(1, int(sys.argv[1]) + 1)]


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


main()
