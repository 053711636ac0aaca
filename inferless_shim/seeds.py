"""A seed is its request's: what `torch.manual_seed` sets on a request's thread, several requests at once.

torch has one generator a device for the whole process. Above `--concurrency 1` a request that sets a seed gets
generators of its own, on all its threads; one that sets none draws from torch's, as ever. torch must be loaded already.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from .scope import Scope, current_scope

# Where a seed is set, and for which type of device ("" is all), and what draws without being told a generator. What a
# version of torch lacks is left out.
SEEDING = (
    ("torch", "manual_seed", ""),
    ("torch.random", "manual_seed", ""),
    ("torch.cuda", "manual_seed", "cuda"),
    ("torch.cuda", "manual_seed_all", "cuda"),
    ("torch.cuda.random", "manual_seed", "cuda"),
    ("torch.cuda.random", "manual_seed_all", "cuda"),
    ("torch.mps", "manual_seed", "mps"),
    ("torch.xpu", "manual_seed", "xpu"),
    ("torch.xpu", "manual_seed_all", "xpu"),
)
FUNCTIONS = ("bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm")
LIKE = ("rand_like", "randint_like", "randn_like")  # in newer versions they take a generator, and say so
METHODS = (
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "multinomial", "normal_",
    "random_", "uniform_",
)  # fmt: skip
PATCHED = "_seeded_by_shim"


def install() -> None:
    """Let seeds be requests' own, if torch is loaded. Calling it again does nothing."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "Generator") or not hasattr(torch, "Tensor") or hasattr(torch, PATCHED):
        return
    if getattr(getattr(torch, "__spec__", None), "_initializing", False):
        return  # half imported, by another thread
    remember_constructors()
    for module, name, kind in SEEDING:
        wrap(sys.modules.get(module), name, functools.partial(seeding, kind=kind))
    is_traced = getattr(getattr(torch, "compiler", None), "is_compiling", bool)
    like = [name for name in LIKE if "generator=" in (getattr(getattr(torch, name, None), "__doc__", None) or "")]
    for name in (*FUNCTIONS, *like):
        wrap(torch, name, functools.partial(drawing, is_traced=is_traced))
    for name in METHODS:
        wrap(torch.Tensor, name, functools.partial(drawing, is_traced=is_traced))
    setattr(torch, PATCHED, True)  # two threads may come to this: then the outer of two wrappers decides


def remember_constructors() -> None:
    """Have torch make its set of what a default device applies to: it does so once, of functions not yet wrapped."""
    try:
        importlib.import_module("torch.utils._device")._device_constructors()
    except (ImportError, AttributeError):
        pass  # a version without default devices


def wrap(holder: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    function = getattr(holder, name, None)
    if callable(function):
        setattr(holder, name, wrapper(function))


def seeding(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """Make a function that takes a seed set the request's, if there is one, for one type of device or for all ("")."""

    @functools.wraps(function)
    def set_seed(seed: Any, *args: Any, **kwargs: Any) -> Any:
        scope = current_scope()
        if scope is None:
            return function(seed, *args, **kwargs)
        made = sys.modules["torch"].Generator()
        made.manual_seed(int(seed))  # raises what is wrong with the seed, before anything is changed
        scope.seeds = {**(scope.seeds if kind else {}), kind: int(seed)}
        scope.generators = {name: each for name, each in scope.generators.items() if not name.startswith(kind)}
        return None if kind else scope.generators.setdefault("cpu", made)

    return set_seed


def drawing(function: Callable[..., Any], is_traced: Callable[[], bool]) -> Callable[..., Any]:
    """Make a function that draws use the generator of a request that has set a seed."""

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        if is_traced():  # torch.compile is to see the function that it knows
            return function(*args, **kwargs)
        scope = current_scope()
        if scope is not None and scope.seeds and kwargs.get("generator") is None:
            kwargs["generator"] = generator(scope, device_of(args, kwargs))
        return function(*args, **kwargs)

    return draw


def device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return where a call draws: on the device that it names, its tensor's, or torch's default one."""
    torch = sys.modules["torch"]
    device = kwargs.get("device")
    if device is None:
        given = (each.device for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
        device = next(given, None)
    if device is None:
        device = torch.get_default_device() if hasattr(torch, "get_default_device") else "cpu"
    device = torch.device(device)
    if device.type == "cpu" or device.index is not None:
        return device
    current = getattr(getattr(torch, device.type, None), "current_device", int)  # 0 where there is only one
    return torch.device(device.type, current())


def generator(scope: Scope, device: Any) -> Any:
    """Return the request's generator on a device, seeded when it is first needed; None if torch's own is to be used."""
    name = str(device)
    found = scope.generators.get(name)
    if found is None:
        seed = scope.seeds.get(device.type, scope.seeds.get(""))
        if seed is None:
            return None
        try:
            found = sys.modules["torch"].Generator(device=device)
        except RuntimeError:
            return None  # a device without one, such as meta, where nothing is drawn
        found.manual_seed(seed)
        found = scope.generators.setdefault(name, found)  # another thread of the request may have been faster
    return found
