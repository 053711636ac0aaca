"""Sends the dicts that TEXT holds as a JSON list, one event each; with GATE, none before it is let through.

GATE names a file that somebody else writes to: event n waits until it holds n bytes, the end until it holds one more.
"""

import json
import os
import time


class InferlessPythonModel:
    def initialize(self):
        pass

    def infer(self, inputs, stream_output_handler):
        events = json.loads(inputs["TEXT"])
        for number, event in enumerate(events, start=1):
            wait_for(inputs.get("GATE"), number, stream_output_handler)
            stream_output_handler.send_streamed_output(event)
        wait_for(inputs.get("GATE"), len(events) + 1, stream_output_handler)
        stream_output_handler.finalise_streamed_output()

    def finalize(self):
        pass


def wait_for(gate, size, stream_output_handler):
    while gate and os.path.getsize(gate) < size and not stream_output_handler.cancelled:
        time.sleep(0.002)
