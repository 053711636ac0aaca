"""Numbered events at the pace that is asked for; each also says which call of infer made it."""

import itertools
import time


class InferlessPythonModel:
    def initialize(self):
        self.calls = itertools.count(1)

    def infer(self, inputs, stream_output_handler):
        call, padding = next(self.calls), "x" * inputs.get("SIZE", 0)
        period, due = inputs["PERIOD_MS"] / 1e3, time.monotonic()
        for number in range(1, inputs["COUNT"] + 1):
            due += period
            time.sleep(max(0, due - time.monotonic()))
            stream_output_handler.send_streamed_output({"OUT": f"{inputs['KEY']}.{call}.{number}{padding}"})
        stream_output_handler.finalise_streamed_output()

    def finalize(self):
        pass
