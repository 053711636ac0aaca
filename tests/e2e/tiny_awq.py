"""A tiny random Mistral, packed to 4-bit AWQ in either layout, with a tokenizer: 6 MB, made in seconds.

    python tests/e2e/tiny_awq.py FOLDER [gemm|gemv] [GROUP_SIZE]

`pack` and `pack_checkpoint` are written from the format's description and share nothing with what unpacks it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

GEMM_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns lies in bits 0-3, 4-7, …
GEMV_COLUMNS = (0, 1, 2, 3, 4, 5, 6, 7)
SPECIAL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
WORDS = [first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeo" for last in "mnrstx"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def quantize(weight, group_size):
    """Round a weight [out, in] to integers 0-15; return them, and zero points and scales, both [out, groups]."""
    out, columns = weight.shape
    grouped = weight.float().view(out, -1, columns if group_size == -1 else group_size)
    low, high = grouped.amin(2), grouped.amax(2)
    scales = ((high - low).clamp(min=1e-5) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15).int()
    integers = (grouped / scales.float().unsqueeze(2) + zeros.unsqueeze(2)).round().clamp(0, 15).int()
    return integers.view(out, columns), zeros, scales


def pack_int32(integers, columns):
    """Pack [rows, 8 * n] into int32 [rows, n]: column `columns[i]` of each eight goes into bits 4i to 4i + 3."""
    eights = integers.to(torch.int64).view(len(integers), -1, 8)
    packed = sum(eights[:, :, column] << (4 * i) for i, column in enumerate(columns))
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).contiguous()


def pack(integers, zeros, scales, version):
    """Return qweight, qzeros and scales of a layer as a checkpoint of this version holds them."""
    if version == "gemm":
        integers, zeros, scales = integers.t(), zeros.t(), scales.t()
        return {
            "qweight": pack_int32(integers.contiguous(), GEMM_COLUMNS),
            "qzeros": pack_int32(zeros.contiguous(), GEMM_COLUMNS),
            "scales": scales.contiguous(),
        }
    group_size = integers.shape[1] // zeros.shape[1]
    eights = {32: 4, 64: 2}.get(group_size, 1)  # the kernel reads this many int32 of zero points at once
    missing = -zeros.shape[1] % (8 * eights)
    return {
        "qweight": pack_int32(integers, GEMV_COLUMNS),
        "qzeros": pack_int32(torch.nn.functional.pad(zeros, (0, missing)), GEMV_COLUMNS),
        "scales": torch.nn.functional.pad(scales, (0, missing)),
    }


def pack_checkpoint(model, folder, version, group_size, shards=1):
    """Write `model` as an AWQ checkpoint: every linear layer but lm_head packed, all else in fp16."""
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            parts = pack(*quantize(tensors.pop(f"{name}.weight"), group_size), version)
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    names = sorted(tensors, key=lambda name: name[::-1])  # so that a layer's parts lie in different shards
    files = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    )
    for n, file in enumerate(files):
        save_file({name: tensors[name] for name in names[n::shards]}, folder / file, metadata={"format": "pt"})
    packing = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": version}
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "quantization_config": packing | {"modules_to_not_convert": ["lm_head"]},
        "architectures": [type(model).__name__],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    model.generation_config.save_pretrained(folder)


def make_tokenizer():
    """Return a tokenizer whose every token but three is a word of WORDS, so that random output is readable."""
    vocabulary = {word: n for n, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=CHAT_TEMPLATE,
    )


def make_model():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = MistralForCausalLM(config)
    model.generation_config.min_new_tokens = 40
    model.generation_config.eos_token_id = list(range(2, 30))  # random text would seldom end with one
    return model


def make(folder, version="gemm", group_size=128, shards=1):
    """Make checkpoint and tokenizer in `folder`. The weights are the same in both layouts."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save_pretrained(folder)
    pack_checkpoint(make_model(), folder, version, group_size, shards)
    return folder


if __name__ == "__main__":
    make(sys.argv[1], *sys.argv[2:3], *map(int, sys.argv[3:4]))
