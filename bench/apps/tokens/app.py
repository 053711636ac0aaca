"""Tokens without a model, at the pace that is asked for: what is measured is the server."""

import json
import time


class InferlessPythonModel:
    def initialize(self):
        pass

    def infer(self, inputs, stream_output_handler):
        count = inputs.get("COUNT", 100)
        period = inputs.get("PERIOD_US", 0) / 1e6
        text = "x" * inputs.get("SIZE", 0) or "token "
        stamp = inputs.get("STAMP", 0)
        timed = inputs.get("TIMED", 0)
        send = stream_output_handler.send_streamed_output
        if timed:
            send, took = timed_send(send)
        due = time.monotonic()
        for _ in range(count - bool(timed)):
            if period:
                time.sleep(max(0, due - time.monotonic()))
                due += period
            send({"OUT": text, "T": time.monotonic_ns()} if stamp else {"OUT": text})
        if timed:
            send({"OUT": json.dumps(quantiles(took[timed:]))})
        stream_output_handler.finalise_streamed_output()

    def finalize(self):
        pass


def timed_send(send):
    """Wrap `send` so that what each call took, in nanoseconds, is added to the list that comes with it."""
    took = []

    def timed(event):
        before = time.perf_counter_ns()
        send(event)
        took.append(time.perf_counter_ns() - before)

    return timed, took


def quantiles(took):
    took = sorted(took)
    names = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1}
    return {"n": len(took)} | {name: took[round(q * (len(took) - 1))] for name, q in names.items()}
