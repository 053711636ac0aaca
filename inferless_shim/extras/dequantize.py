"""Stands in for AutoAWQ with torch and transformers alone: an AWQ checkpoint is dequantised once, while it is loaded.

What comes out is a dense model, which takes four times the checkpoint's memory and runs wherever torch does. The
checkpoint's own `quantization_config` decides how it is read. Both layouts hold 4-bit integers, eight to an int32,
with a scale and a zero point a group of input features: weight = (integer - zero point) * scale.

    layout  qweight        qzeros                    scales                 eight columns in an int32, low bits first
    gemm    [in, out / 8]  [in / group, out / 8]     [in / group, out]      0 2 4 6 1 3 5 7
    gemv    [out, in / 8]  [out, padded groups / 8]  [out, padded groups]   0 1 2 3 4 5 6 7
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

log = logging.getLogger("inferless_shim.awq")

PER_INT32 = 8
GEMM_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where column 0, 1, 2 … lies in an int32, in steps of 4 bits
GEMV_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)


def unpack(packed: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Turn int32 [rows, n] into the 4-bit integers [rows, 8 * n], as int8."""
    shifts = torch.tensor(order, dtype=torch.int32, device=packed.device) * 4
    return ((packed.unsqueeze(-1) >> shifts) & 15).to(torch.int8).flatten(-2)


def dequantize_gemm(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return the dense weight [out, in] of one linear layer; `group_size` -1 is one group."""
    integers = unpack(qweight, GEMM_ORDER)
    rows = group_size if group_size > 0 else len(integers)
    grouped = integers.view(-1, rows, integers.shape[1]) - unpack(qzeros, GEMM_ORDER).unsqueeze(1)
    dense = grouped.float() * scales.float().unsqueeze(1)  # rounded once, to `dtype`
    return dense.view(integers.shape).t().to(dtype).contiguous()


def dequantize_gemv(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return the dense weight [out, in] of one linear layer; `group_size` -1 is one group."""
    integers = unpack(qweight, GEMV_ORDER)
    columns = group_size if group_size > 0 else integers.shape[1]
    groups = integers.shape[1] // columns  # zero points and scales are padded beyond
    grouped = integers.view(len(integers), groups, columns) - unpack(qzeros, GEMV_ORDER)[:, :groups].unsqueeze(2)
    dense = grouped.float() * scales.float()[:, :groups].unsqueeze(2)
    return dense.view(integers.shape).to(dtype)


LAYOUTS = {"gemm": dequantize_gemm, "gemv": dequantize_gemv}


class Quantization:
    """How a checkpoint is packed, from `quantization_config` in its config.json.

    Raises ValueError for what is not read here. Layers that were not converted have a dense weight and need no list.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        method, bits = config.get("quant_method"), config.get("bits", 4)
        layout = str(config.get("version") or config.get("format") or "gemm").lower()
        if method != "awq" or bits != 4 or layout not in LAYOUTS:
            raise ValueError(
                f"The checkpoint's quantization_config says {method or 'nothing'}, {bits} bits, version {layout}; "
                f"what is read here is awq, 4 bits, version {' or '.join(LAYOUTS)}."
            )
        self.dequantize: Callable[..., torch.Tensor] = LAYOUTS[layout]
        self.group_size: int = config.get("group_size", 128)  # AutoAWQ's default


class Checkpoint:
    """The tensors of a folder of safetensors, by name, whichever file they lie in."""

    def __init__(self, folder: Path, filename: str = "") -> None:
        found = sorted(folder.glob("*.safetensors"))
        sharded = [file for file in found if "-of-" in file.name]  # a folder may hold the same weights in other names
        whole = [file for file in found if file.name == "model.safetensors"]
        files = [folder / filename] if filename else sharded or whole or found
        if not files:
            raise FileNotFoundError(f"{folder} holds no safetensors; other formats are not read here.")
        self._files = [safe_open(file, framework="pt") for file in files]
        self._of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (it is no dict)

    def dense(self, quantization: Quantization, dtype: torch.dtype, device: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor of the dense model. Raises ValueError for what cannot be dequantised."""
        for name in self._of:
            module, _, kind = name.rpartition(".")
            if kind == "qweight":
                packed = [self._tensor(f"{module}.{part}", device) for part in ("qweight", "qzeros", "scales")]
                yield f"{module}.weight", quantization.dequantize(*packed, quantization.group_size, dtype)
            elif kind not in ("qzeros", "scales"):
                tensor = self._tensor(name, device)
                yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor
            elif f"{module}.qweight" not in self._of:
                raise ValueError(f"{name} belongs to no quantised layer; scaled activations are not read here.")

    def _tensor(self, name: str, device: str) -> torch.Tensor:
        if name not in self._of:
            raise ValueError(f"The checkpoint has no {name}; it is not whole, or was made without zero points.")
        tensor: torch.Tensor = self._of[name].get_tensor(name)
        return tensor.to(device)


class DenseModel:
    """A dense model in the wrapper that AutoAWQ puts around a quantised one; all else is the model's."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return self.model.generate(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not there yet, while this object is being copied
            raise AttributeError(name)
        return getattr(self.model, name)


class AutoAWQForCausalLM:
    """What `from awq import AutoAWQForCausalLM` gives an app where AutoAWQ cannot be used, for this `reason`."""

    reason = ""

    def __init__(self) -> None:
        raise OSError("Use AutoAWQForCausalLM.from_quantized.")

    @classmethod
    def from_quantized(
        cls,
        quant_path: str,
        quant_filename: str = "",
        *,
        torch_dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
        download_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> DenseModel:
        """Load a folder, or a model of the hub, as a dense model: on CUDA if there is one, else on the CPU.

        Options that choose kernels or place layers mean nothing to a dense model. Raises OSError if the checkpoint
        cannot be had, ValueError if it is not an AWQ checkpoint that can be read.
        """
        start, local = time.monotonic(), Path(quant_path).is_dir()
        if local and not Path(quant_path, "config.json").is_file():
            raise FileNotFoundError(f"{quant_path} holds no config.json.")
        config = transformers.AutoConfig.from_pretrained(quant_path, trust_remote_code=trust_remote_code)
        quantization = Quantization(getattr(config, "quantization_config", None) or {})  # may raise before a download
        folder = Path(quant_path) if local else download(quant_path, **download_kwargs or {})
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch_dtype or torch.float16
        if device == "cpu" and dtype is torch.float16:
            dtype = torch.bfloat16  # CPUs are slow at fp16

        del config.quantization_config
        weights = dict(Checkpoint(folder, quant_filename).dense(quantization, dtype, device))
        model = assemble(config, weights, dtype, trust_remote_code).to(device).eval()
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        size, seconds = sum(p.numel() * p.element_size() for p in model.parameters()), time.monotonic() - start
        log.warning(
            "%s: the 4-bit weights of %s were dequantised to dense %s on %s (%d MB, %.1f s).",
            *(cls.reason, quant_path, str(dtype).removeprefix("torch."), device, size / 1e6, seconds),
        )
        return DenseModel(model)


def download(name: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], **options))


def assemble(config: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Make the model of `config` out of `weights`. Raises ValueError if one is missing: it would be random."""
    with torch.device("meta"):
        shape = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model, info = type(shape).from_pretrained(
        None, config=config, state_dict=weights, torch_dtype=dtype, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"The checkpoint does not hold {', '.join(sorted(info['missing_keys']))}.")
    return model
