"""Peer (b), the usual recipe without a framework: `http.server`, a thread a request, a queue from the model's thread.

Kinder than the recipe: HTTP/1.1, one write an event, no Nagle, a real backlog, no line in a log for each request.
"""

import json
import queue
import runpy
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

model = runpy.run_path(str(Path(__file__).parents[1] / "apps/tokens/app.py"))["InferlessPythonModel"]()


class StreamOutput:
    """What the app gets: its events go into a queue, None at the end."""

    def __init__(self):
        self.events = queue.Queue()
        self.send_streamed_output = self.events.put

    def finalise_streamed_output(self):
        self.events.put(None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        output = StreamOutput()
        threading.Thread(target=model.infer, args=(inputs, output), daemon=True).start()
        stream, number = uuid.uuid4().hex, 1
        while (event := output.events.get()) is not None:
            self.write_chunk(f"id: {stream}-{number}\ndata: {json.dumps(event)}\n\n")
            number += 1
        self.write_chunk(f"id: {stream}-{number}\nevent: done\ndata: {{}}\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def write_chunk(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 2048


with Server(("127.0.0.1", 0), Handler) as server:
    print(f"http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()
