"""SmolLM2-135M-Instruct, a small language model that writes English on two CPU cores. Nothing is downloaded here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"  # the libraries' bars; weights.py says what goes on

import json
import secrets
from threading import Thread

import torch
import weights
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

# What SAMPLING may hold: the type, what is allowed, and how to say it.
SETTINGS = {
    "temperature": (float, lambda value: value == 0 or 0.01 <= value <= 100, "0 (greedy) or a number from 0.01 to 100"),
    "top_p": (float, lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    "top_k": (int, lambda value: 0 <= value <= 100_000, "an integer from 0 (no limit) to 100000"),
    "repetition_penalty": (float, lambda value: 0.1 <= value <= 10, "a number from 0.1 to 10 (1 is none)"),
}


class InferlessPythonModel:
    def initialize(self):
        folder = weights.prepare()
        with weights.progress("loading"):
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
            self.streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def infer(self, inputs, stream_output_handler):
        sampling = read_sampling(inputs.get("SAMPLING", "{}"))
        seed = read_seed(inputs.get("SEED"))
        prompt = self.read_prompt(inputs["TEXT"], inputs.get("SYSTEM"))
        max_new_tokens = self.read_max_new_tokens(inputs.get("MAX_NEW_TOKENS", 256), prompt)

        generation_kwargs = dict(prompt, streamer=self.streamer, max_new_tokens=max_new_tokens, **sampling)
        torch.manual_seed(seed)
        thread = Thread(target=self.model.generate, kwargs=generation_kwargs)
        thread.start()
        for new_text in self.streamer:
            if new_text:
                stream_output_handler.send_streamed_output({"OUT": new_text})
        thread.join()
        stream_output_handler.finalise_streamed_output()

    def finalize(self):
        self.model = None

    def read_prompt(self, text, system):
        """Return input_ids and attention_mask; without SYSTEM the chat template puts its own system message."""
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": text})
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return prompt.to(self.model.device)

    def read_max_new_tokens(self, wanted, prompt):
        """Return how many tokens to write at most: what is wanted, or what is left of the model's window."""
        if wanted < 1:
            raise ValueError(f"MAX_NEW_TOKENS must be 1 or more, not {wanted}.")
        window, used = self.model.config.max_position_embeddings, prompt["input_ids"].shape[1]
        if used >= window:
            raise ValueError(f"TEXT and SYSTEM are {used} tokens long; together they must stay below {window}.")
        return min(wanted, window - used)


def read_seed(seed):
    """Return the seed, or a new one if there is none: the same SEED and inputs give the same text."""
    if seed is None:
        return secrets.randbits(63)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"SEED must be an integer of 64 bits, not {seed}.")
    return seed


def read_sampling(text):
    """Turn SAMPLING, a JSON object, into arguments for `generate`. Raises ValueError that names what is wrong.

    Greedy without a temperature, unless top_p or top_k ask for sampling (then temperature 1, top_p 1, top_k 50, where
    nothing is said); a repetition_penalty of 1.1 in any case: a model of this size, left alone, repeats itself.
    """
    try:
        sampling = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'SAMPLING must be a JSON object such as {{"temperature": 0.7}}: {error}') from None
    if not isinstance(sampling, dict):
        raise ValueError(f'SAMPLING must be a JSON object such as {{"temperature": 0.7}}, not {text[:40]}')
    for name, value in sampling.items():
        if name not in SETTINGS:
            raise ValueError(f"SAMPLING has no {name!r}; it takes {', '.join(SETTINGS)}.")
        kind, is_allowed, rule = SETTINGS[name]
        if type(value) not in (int, kind) or not is_allowed(value):
            raise ValueError(f"SAMPLING's {name} must be {rule}, not {json.dumps(value)}.")

    chosen = {"do_sample": False, "repetition_penalty": float(sampling.get("repetition_penalty", 1.1))}
    temperature = float(sampling.get("temperature", 1 if {"top_p", "top_k"} & sampling.keys() else 0))
    if temperature == 0:
        return chosen
    return chosen | {
        "do_sample": True,
        "temperature": temperature,
        "top_p": float(sampling.get("top_p", 1)),
        "top_k": sampling.get("top_k", 50),
    }
