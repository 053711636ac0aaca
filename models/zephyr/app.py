"""Zephyr 7B, 4-bit AWQ, streaming: the app of Inferless's page "Streaming with SSE Events".

The weights come from the folder that ZEPHYR_WEIGHTS names (a full path), else from the model hub.
"""

import os
from threading import Thread

import torch
from awq import AutoAWQForCausalLM
from transformers import AutoTokenizer, TextIteratorStreamer

MODEL_NAME = os.environ.get("ZEPHYR_WEIGHTS") or "TheBloke/zephyr-7B-beta-AWQ"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class InferlessPythonModel:
    def initialize(self):
        try:
            self.model = AutoAWQForCausalLM.from_quantized(MODEL_NAME, fuse_layers=False, version="GEMV")
            self.tokenizer = AutoTokenizer.from_pretrained(MODEL_NAME)
        except OSError as error:
            raise RuntimeError(
                f"The weights {MODEL_NAME} could not be had, neither from a folder nor from the model hub: set "
                "ZEPHYR_WEIGHTS to the full path of a folder with them, or try models/smollm2, which needs no hub."
            ) from error
        self.streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def infer(self, inputs, stream_output_handler):
        messages = [
            {"role": "system", "content": "You are an agent that knows about cooking."},
            {"role": "user", "content": inputs["TEXT"]},
        ]
        # return_dict=False: transformers 5 would return an encoding, 4 returns the tensor either way.
        tokenized_chat = self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_tensors="pt", return_dict=False
        ).to(DEVICE)
        generation_kwargs = {
            "inputs": tokenized_chat,
            "streamer": self.streamer,
            "do_sample": True,
            "temperature": 0.9,
            "top_p": 0.95,
            "repetition_penalty": 1.2,
            "max_new_tokens": 1024,
        }
        thread = Thread(target=self.model.generate, kwargs=generation_kwargs)
        thread.start()
        for new_text in self.streamer:
            stream_output_handler.send_streamed_output({"OUT": new_text})
        thread.join()
        stream_output_handler.finalise_streamed_output()

    def finalize(self):
        self.model = None
