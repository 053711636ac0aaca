"""A tiny random model that writes made-up words, and streamers kept in all the ways that KIND names.

Nothing in it knows that several requests run at once.
"""

import functools
import os
import sys
from queue import Queue
from threading import Thread

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))  # for tiny_awq.py

import tiny_awq
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, TextIteratorStreamer, pipeline, set_seed
from transformers.generation.streamers import BaseStreamer


class WordStreamer(BaseStreamer):
    """Every token is a word; the first put is the prompt."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.words = Queue()
        self.prompted = False

    def put(self, value):
        if self.prompted:
            self.words.put(self.tokenizer.decode(value.reshape(-1)) + " ")
        self.prompted = True

    def end(self):
        self.words.put(None)

    def __iter__(self):
        return iter(self.words.get, None)


class Enough(StoppingCriteria):
    """Stops after as many tokens as the app wants: it reads and counts on the app itself, as public ones do."""

    def __init__(self, app):
        self.app = app

    def __call__(self, input_ids, scores, **kwargs):
        self.app.steps += 1
        return torch.full((len(input_ids),), self.app.steps >= self.app.wanted)


class InferlessPythonModel:
    def initialize(self):
        torch.manual_seed(0)
        self.tokenizer = tiny_awq.make_tokenizer()
        config = LlamaConfig(
            vocab_size=len(self.tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config).eval()
        self.model.generation_config.min_new_tokens = 60
        self.streamer = self.make()
        self.custom = WordStreamer(self.tokenizer)
        self.pipe = pipeline("text-generation", model=self.model, tokenizer=self.tokenizer, streamer=self.make())
        self.generate = functools.partial(self.model.generate, streamer=self.make())
        self.kwargs = {"streamer": self.make(), "do_sample": True}
        self.stop = [Enough(self)]
        self.steps = self.wanted = 0

    def make(self):
        return TextIteratorStreamer(self.tokenizer, skip_prompt=True)

    def infer(self, inputs, stream_output_handler):
        kind, tokens = inputs["KIND"], inputs.get("TOKENS", 60)
        prompt = self.tokenizer(inputs["TEXT"], return_tensors="pt", return_token_type_ids=False)
        sampling = {**prompt, "do_sample": True, "max_new_tokens": tokens}
        if kind == "torch.manual_seed":
            torch.manual_seed(inputs["SEED"])
        else:
            set_seed(inputs["SEED"])
        target, kwargs, streamer = self.model.generate, {**sampling, "streamer": self.streamer}, self.streamer
        if kind == "custom":
            streamer = self.custom
            kwargs["streamer"] = streamer
        elif kind == "own":
            streamer = kwargs["streamer"] = self.make()
        elif kind == "pipeline":
            target, streamer = self.pipe, self.pipe._forward_params["streamer"]
            kwargs = {"text_inputs": inputs["TEXT"], "do_sample": True, "max_new_tokens": tokens}
        elif kind == "partial":
            target, kwargs, streamer = self.generate, sampling, self.generate.keywords["streamer"]
        elif kind == "kwargs":
            streamer = self.kwargs["streamer"]
            kwargs = {**sampling, **self.kwargs}
        elif kind == "stopping":
            self.wanted = inputs["SEED"] % 7 + 3
            kwargs["stopping_criteria"] = self.stop
        thread = Thread(target=target, kwargs=kwargs)
        thread.start()
        for text in streamer:
            if text:
                stream_output_handler.send_streamed_output({"OUT": text})
        thread.join()
        stream_output_handler.finalise_streamed_output()
