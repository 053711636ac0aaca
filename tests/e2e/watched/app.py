"""models/smollm2 with a watch on its model: WATCH_NOTES names the file that it writes down in what it sees.

`late`: a token was begun although the request was cancelled. `raise <time>`: generate was made to raise, on the app's
own thread, after three tokens, because TEXT asked for it.
"""

import importlib.util
import os
import sys
import time

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../models/smollm2")
sys.path.append(FOLDER)  # for weights.py
spec = importlib.util.spec_from_file_location("smollm2", os.path.join(FOLDER, "app.py"))
smollm2 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(smollm2)

TOKENS = 3


class InferlessPythonModel(smollm2.InferlessPythonModel):
    def initialize(self):
        super().initialize()
        self.model.register_forward_pre_hook(self.before_token)

    def infer(self, inputs, stream_output_handler):
        self.handler = stream_output_handler
        self.tokens = 0
        self.raises = inputs["TEXT"] == "RAISE"
        super().infer(inputs, stream_output_handler)

    def before_token(self, model, arguments):
        if self.handler.cancelled:
            note("late")
        if self.raises and self.tokens == TOKENS:
            note(f"raise {time.monotonic()}")
            raise RuntimeError("made to raise")
        self.tokens += 1


def note(line):
    with open(os.environ["WATCH_NOTES"], "a") as notes:
        notes.write(line + "\n")
