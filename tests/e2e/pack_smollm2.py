"""Pack SmolLM2 to 4-bit AWQ (group 64) as a stand-in for Zephyr's weights, and check that it still writes English.

    python tests/e2e/pack_smollm2.py [FOLDER] [gemm|gemv]

FOLDER, about 115 MB, is then what ZEPHYR_WEIGHTS names. Without one, the end-to-end test of models/zephyr runs on it at
once. Exits 1 if the packed model does not write English, or if one that was packed wrongly on purpose passes for it.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "models" / "smollm2"), str(Path(__file__).parent)]

# The words that English prose is half made of.
COMMON = set(
    """a about after all also an and any are as at be been but by can do for from good had has have he her his how i if
    in into is it its just like make may more most my no not now of on one only or other our out over she should so some
    such take than that the their them then there these they this to up use was we well were what when which while who
    will with would you your""".split()  # noqa: SIM905
)


def is_english(text, share=0.2):
    """Tell whether `text` has 30 words, and `share` of its first 60 are among English's most common.

    Sampled as Zephyr's app does it, six texts of this model had 0.30 to 0.52.
    """
    words = re.findall(r"[a-z']+", text.lower())[:60]
    return len(words) >= 30 and sum(word in COMMON for word in words) >= share * len(words)


def write(folder, text, max_new_tokens):
    """Return what the packed model in `folder` answers, greedily."""
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    model, tokenizer = AutoAWQForCausalLM.from_quantized(str(folder)), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    written = model.generate(inputs=prompt, max_new_tokens=max_new_tokens, do_sample=False, repetition_penalty=1.1)
    return tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True)


def check(folder):
    """Return what is wrong with the English of the packed model in `folder`; None if nothing is."""
    answer, story = (
        write(folder, "What is the capital of France?", 20),
        write(folder, "Tell me a story about a fox.", 80),
    )
    if "Paris" not in answer:
        return f"asked for the capital of France it says {answer!r}"
    return None if is_english(story) else f"asked for a story it says {story!r}"


def pack_and_check(folder, version="gemm"):
    """Write the packed model into `folder`; exit with a sentence if the check finds a fault, or cannot find one."""
    import tiny_awq
    import torch
    import weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inferless_shim.extras import awq

    awq.install()
    source = weights.prepare()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)

    def pack(target):
        target.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(target)
        tiny_awq.pack_checkpoint(model, target, version, group_size=64)

    pack(folder)
    if fault := check(folder):
        sys.exit(f"SmolLM2 at 4 bits writes no English: {fault}")
    with tempfile.TemporaryDirectory() as wrong:
        tiny_awq.GEMM_COLUMNS, tiny_awq.GEMV_COLUMNS = tiny_awq.GEMV_COLUMNS, tiny_awq.GEMM_COLUMNS
        pack(Path(wrong))
        if not check(wrong):
            sys.exit("A model with its columns out of order passes for English: the check cannot fail.")
    print(f"{folder}: SmolLM2 as 4-bit AWQ, {version}, group 64; it writes English", flush=True)


def main(arguments):
    if arguments:
        return pack_and_check(Path(arguments[0]).resolve(), *arguments[1:2])
    with tempfile.TemporaryDirectory() as folder:
        pack_and_check(Path(folder))
        test = [sys.executable, str(Path(__file__).with_name("test_zephyr.py")), "-v"]
        sys.exit(subprocess.run(test, env=os.environ | {"ZEPHYR_WEIGHTS": folder}).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
