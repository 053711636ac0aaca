"""Events that are known again: each says whose it is (KEY), its number, and which run of infer made it.

Each run is noted in the file that NOTES names, if any: a line when it begins, another when all is sent, each with the
time (CLOCK_MONOTONIC).
"""

import itertools
import os
import time
import zlib


class InferlessPythonModel:
    def initialize(self):
        self.runs = itertools.count(1)
        self.notes = os.environ.get("NOTES")

    def infer(self, inputs, stream_output_handler):
        key, count, size, burst = inputs["KEY"], inputs["COUNT"], inputs.get("SIZE", 100), inputs.get("BURST", 1)
        period = inputs.get("PERIOD_MS", 0) / 1000
        run = f"{os.getpid()}.{next(self.runs)}"
        self.note(f"begin {key} {run}")
        due = time.monotonic()
        for number in range(1, count + 1):
            if period and number % burst == 0:
                due += period
                time.sleep(max(0, due - time.monotonic()))
            stream_output_handler.send_streamed_output({"OUT": text(key, number, size), "RUN": run})
        stream_output_handler.finalise_streamed_output()
        self.note(f"end {key} {run}")

    def note(self, line):
        """Append a line; it stays whatever becomes of this process."""
        if self.notes:
            with open(self.notes, "a", encoding="utf-8") as file:  # one short write, with O_APPEND: never mixed
                file.write(f"{line} {time.monotonic()}\n")

    def finalize(self):
        pass


def text(key, number, size):
    """Make event `number` of `key`: at most about `size` characters, of one, two or four bytes."""
    chance = zlib.crc32(f"{key}/{number}".encode())
    return f"{key}/{number} " + "xé😀"[chance % 3] * (chance // 3 % size)
