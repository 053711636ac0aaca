"""Peer (c): starlette and sse-starlette on uvicorn with uvloop and httptools, fed in one of two ways.

`thread`: the app blocks, as models do, so it has a thread a request, and `call_soon_threadsafe` carries each event to
an asyncio.Queue. `async`: the same events from a native async generator, as if the model were made for asyncio. The
second hands over nothing between threads; which of the two is faster depends on the load. Unpaced, it never gives way
to the loop between events, so that uvloop joins many events into one write: kinder to it than any model would be.
"""

import asyncio
import json
import runpy
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.routing import Route

model = runpy.run_path(str(Path(__file__).parents[1] / "apps/tokens/app.py"))["InferlessPythonModel"]()


class StreamOutput:
    """What the app gets: its events go to the event loop, None at the end."""

    def __init__(self, loop):
        self.loop = loop
        self.events = asyncio.Queue()

    def send_streamed_output(self, event):
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def finalise_streamed_output(self):
        self.send_streamed_output(None)


async def from_thread(inputs):
    output = StreamOutput(asyncio.get_running_loop())
    threading.Thread(target=model.infer, args=(inputs, output), daemon=True).start()
    while (event := await output.events.get()) is not None:
        yield event


async def from_generator(inputs):
    period = inputs.get("PERIOD_US", 0) / 1e6
    stamp = inputs.get("STAMP", 0)
    due = time.monotonic()
    for _ in range(inputs["COUNT"]):
        if period:
            await asyncio.sleep(max(0, due - time.monotonic()))
            due += period
        yield {"OUT": "token ", "T": time.monotonic_ns()} if stamp else {"OUT": "token "}


async def server_sent(events):
    stream, number = uuid.uuid4().hex, 1
    async for event in events:
        yield ServerSentEvent(json.dumps(event), id=f"{stream}-{number}", sep="\n")
        number += 1
    yield ServerSentEvent("{}", event="done", id=f"{stream}-{number}", sep="\n")


def main():
    feed = from_thread if sys.argv[1] == "thread" else from_generator

    async def infer(request):
        return EventSourceResponse(server_sent(feed(await request.json())), sep="\n")

    app = Starlette(routes=[Route("/infer", infer, methods=["POST"])])
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning")
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listener])


main()
