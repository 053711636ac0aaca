"""Serves the files of a folder: `plain_file.py sendfile DIR` with a thread a connection, open and sendfile, and nothing
that it could do without; `plain_file.py http.server DIR` with Python's own, which has HTTP/1.0 and no keep-alive.
"""

import functools
import http.server
import os
import socket
import socketserver
import sys


class Sending(socketserver.BaseRequestHandler):
    """Reads a request's head, which must come at once, and answers with the file that it names."""

    def handle(self) -> None:
        name = self.request.recv(65536).split(b" ")[1].decode().lstrip("/")
        with open(os.path.join(sys.argv[2], name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
            self.request.sendall(head.encode(), socket.MSG_MORE)
            self.request.sendfile(file)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    if sys.argv[1] == "sendfile":
        server: socketserver.BaseServer = Server(("127.0.0.1", 0), Sending)
    else:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=sys.argv[2]))
    print(f"http://127.0.0.1:{server.server_address[1]}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
