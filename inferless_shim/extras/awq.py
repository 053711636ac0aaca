"""`import awq` for an app, where AutoAWQ is missing or cannot compute: a finder that decides when the import happens.

Installing it, or asking whether `awq` can be found, imports nothing. AutoAWQ is used where it imports and where torch
has CUDA, the only place where it computes without further packages; else `awq.AutoAWQForCausalLM` is dequantize.py's.
A module or package of the app's own that happens to be called `awq` is left alone.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

NAME = "awq"

log = logging.getLogger("inferless_shim.awq")


def install() -> None:
    """Let `import awq` find AutoAWQ or what stands in for it. To call it again does nothing."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


class Finder(MetaPathFinder):
    """Finds `awq`, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != NAME:
            return None
        real = self._find_elsewhere(path, target)
        if real is None:
            return ModuleSpec(NAME, StandInLoader("AutoAWQ is not installed"))
        if is_autoawq(real) and real.loader is not None:
            real.loader = AutoAWQLoader(real.loader)
        return real

    def _find_elsewhere(self, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(NAME, path, target) if find else None
            if spec is not None and spec.origin is not None:  # a folder named awq without __init__.py has no origin
                return spec
        return None


def is_autoawq(spec: ModuleSpec) -> bool:
    return any(Path(folder, "models", "auto.py").is_file() for folder in spec.submodule_search_locations or ())


class StandInLoader(Loader):
    """Makes `awq` out of dequantize.py. `reason` says why, in the log line of each model that is loaded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from .dequantize import AutoAWQForCausalLM

        AutoAWQForCausalLM.reason = self.reason
        vars(module)["AutoAWQForCausalLM"] = AutoAWQForCausalLM


class AutoAWQLoader(Loader):
    """Loads AutoAWQ; what stands in for it, if it cannot compute on this machine or does not import."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        reason = None if importlib.import_module("torch").cuda.is_available() else "AutoAWQ computes on CUDA only"
        if reason is None:
            try:
                return self.real.exec_module(module)
            except Exception as error:  # it is unmaintained: with newer libraries it fails in many ways
                log.debug("AutoAWQ does not import", exc_info=True)
                reason = f"AutoAWQ does not import ({type(error).__name__}: {error})"
        for name in [name for name in sys.modules if name.startswith(NAME + ".")]:
            del sys.modules[name]
        vars(module).pop("__path__", None)  # no submodule of AutoAWQ may be imported beside the stand-in
        return StandInLoader(reason).exec_module(module)
