"""Streams the words of TEXT back, one event a word: for trying things, for tests, for a container without packages.

A word takes the whitespace around it along (the first word what stands before it, every word what follows it), so the
OUTs of all events, joined, are TEXT again, character for character, REPEAT times.
"""

import re
import time

WORD = re.compile(r"\s*\S+\s*|\s+")
SLICE = 0.1  # seconds: how soon a long pause ends once nobody waits for the rest


class InferlessPythonModel:
    def initialize(self):
        pass

    def infer(self, inputs, stream_output_handler):
        pause = inputs.get("PAUSE_MS", 0) / 1000
        repeat = inputs.get("REPEAT", 1)
        if pause < 0:
            raise ValueError("PAUSE_MS is a time in milliseconds: 0 or more.")
        if repeat < 1:
            raise ValueError("REPEAT says how often TEXT is sent: 1 or more.")

        first = True
        for _ in range(repeat):
            for word in WORD.finditer(inputs["TEXT"]):
                if not first:
                    sleep(pause, stream_output_handler)
                first = False
                stream_output_handler.send_streamed_output({"OUT": word.group()})
        stream_output_handler.finalise_streamed_output()

    def finalize(self):
        pass


def sleep(seconds, stream_output_handler):
    """Sleep, but not on for a request that a runtime calls cancelled; one that says nothing gets the whole pause."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and getattr(stream_output_handler, "cancelled", False) is not True:
        time.sleep(min(left, SLICE))
