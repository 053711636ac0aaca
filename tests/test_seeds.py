"""Promises of seeds: what a request's threads draw depends on the seed that it set, and on no other request.

`Torch` stands in for torch: one generator for the whole process, functions and tensor methods that draw from it.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import types
import unittest
import unittest.mock
from collections.abc import Iterator
from typing import Any

from inferless_shim import isolation, seeds
from inferless_shim.scope import Scope
from inferless_shim.streamers import Streamers
from tests.support import TestCase


class Device:
    def __init__(self, kind: Any, index: int | None = None) -> None:
        if isinstance(kind, Device):
            kind, index = kind.type, kind.index
        self.type, _, number = str(kind).partition(":")
        self.index = int(number) if number else index

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


class Generator:
    made = 0

    def __init__(self, device: Any = "cpu") -> None:
        self.device = Device(device)
        if self.device.type == "meta":
            raise RuntimeError("META device type not an accelerator.")
        Generator.made += 1
        self._random = random.Random(0)

    def manual_seed(self, seed: int) -> Generator:
        if not -(2**63) <= seed < 2**64:
            raise ValueError("Overflow when unpacking long long")
        self._random.seed(seed)
        return self

    def draw(self) -> float:
        return self._random.random()


class Tensor:
    def __init__(self, device: str = "cpu") -> None:
        self.device = Device(device)

    def uniform_(self, generator: Any = None) -> float:
        return drawn(generator, self.device)

    def detach(self) -> Tensor:
        return self


OWN = {"cpu": Generator("cpu"), "cuda:0": Generator("cuda:0"), "cuda:1": Generator("cuda:1"), "mps:0": Generator("mps")}


def drawn(generator: Any, device: Any) -> float:
    """Draw as torch does: with a generator of another device it raises."""
    found = generator or OWN.get(str(device), OWN["cpu"])
    if generator is not None and str(generator.device) != str(device):
        raise RuntimeError(f"Expected a {device} generator but found {generator.device}")
    return float(found.draw())


def make_torch() -> Any:
    torch: Any = types.ModuleType("torch")
    torch.Generator, torch.device = Generator, Device
    torch.Tensor = type("Tensor", (Tensor,), dict(vars(Tensor)))
    torch.default = "cpu"
    torch.get_default_device = lambda: Device(torch.default)
    torch.tracing = False
    torch.compiler = types.SimpleNamespace(is_compiling=lambda: torch.tracing)
    torch.cuda = types.ModuleType("torch.cuda")
    torch.cuda.current_device = lambda: 1

    def manual_seed(seed: int) -> Generator:
        for each in OWN.values():
            each.manual_seed(int(seed))
        return OWN["cpu"]

    def manual_seed_all(seed: int) -> None:
        for name, each in OWN.items():
            if name.startswith("cuda"):
                each.manual_seed(int(seed))

    def rand(*size: int, device: Any = None, generator: Any = None) -> float:
        device = Device(torch.default if device is None else device)
        if device.type == "meta":
            return 0.0
        if device.type == "cuda" and device.index is None:
            device = Device("cuda", torch.cuda.current_device())
        return drawn(generator, device)

    def multinomial(input: Tensor, count: int, generator: Any = None) -> float:
        return drawn(generator, input.device)

    def rand_like(input: Tensor, generator: Any = None) -> float:
        """rand_like(input, *, generator=None) -> Tensor"""
        return drawn(generator, input.device)

    def randn_like(input: Tensor) -> float:
        """randn_like(input) -> Tensor, in a version that takes no generator here."""
        return drawn(None, input.device)

    torch.manual_seed, torch.rand, torch.multinomial = manual_seed, rand, multinomial
    torch.rand_like, torch.randn_like = rand_like, randn_like
    torch.cuda.manual_seed = torch.cuda.manual_seed_all = manual_seed_all
    return torch


class SeedsTest(TestCase):
    def setUp(self) -> None:
        self.torch = make_torch()
        devices = types.ModuleType("torch.utils._device")
        self.asked: list[Any] = []
        devices._device_constructors = lambda: self.asked.append(self.torch.rand)
        self.modules = {"torch": self.torch, "torch.cuda": self.torch.cuda, "torch.utils._device": devices}
        patched = unittest.mock.patch.dict(sys.modules, self.modules)
        patched.start()
        self.addCleanup(patched.stop)
        self.plain = self.torch.rand
        seeds.install()

    @contextlib.contextmanager
    def request(self, scope: Scope | None = None) -> Iterator[Scope]:
        """Be a thread of a request."""
        scope = scope or Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
        with scope.working(object()):
            yield scope

    def alone(self, seed: int, count: int = 4) -> list[float]:
        """Return what is drawn after a seed without us."""
        made = Generator().manual_seed(seed)
        return [made.draw() for _ in range(count)]

    # ---- One request

    def test_same_text_as_without_us(self):
        """A request's generator gives what torch's own gives after the same seed; torch's own is left as it is."""
        self.torch.manual_seed(5)
        with self.request():
            self.torch.manual_seed(7)
            self.assertEqual([self.torch.rand(1) for _ in range(4)], self.alone(7))
        self.assertEqual([self.torch.rand(1) for _ in range(4)], self.alone(5))

    def test_without_a_seed_torchs_own_is_used(self):
        """No generator is made for a request that sets none."""
        self.torch.manual_seed(5)
        alone = self.alone(5)
        made = Generator.made
        with self.request():
            self.assertEqual([self.torch.rand(1) for _ in range(4)], alone)
        self.assertEqual(Generator.made, made)

    def test_all_that_draws(self):
        """Functions and tensor methods, tensors given by name too; what takes no generator is left alone."""
        tensor = self.torch.Tensor()
        draws = [
            lambda: self.torch.rand(1),
            lambda: self.torch.multinomial(tensor, 1),
            lambda: self.torch.multinomial(input=self.torch.Tensor("cuda:0"), count=1),
            lambda: self.torch.rand_like(tensor),
            lambda: tensor.uniform_(),
        ]
        for draw in draws:
            with self.request():
                self.torch.manual_seed(7)
                self.assertEqual(draw(), self.alone(7)[0])
        self.torch.manual_seed(5)
        with self.request():
            self.torch.manual_seed(7)
            self.assertEqual(self.torch.randn_like(tensor), self.alone(5)[0])

    def test_generator_that_the_app_gives(self):
        """A call with a generator of its own draws from that."""
        with self.request():
            self.torch.manual_seed(7)
            self.assertEqual(self.torch.rand(1, generator=Generator().manual_seed(3)), self.alone(3)[0])
            self.assertEqual(self.torch.rand(1, generator=None), self.alone(7)[0])

    def test_seed_again_begins_anew(self):
        """As often as it is set."""
        with self.request():
            for seed in (7, 7, 8, 7):
                self.torch.manual_seed(seed)
                self.assertEqual(self.torch.rand(1), self.alone(seed)[0])

    def test_seed_that_torch_refuses(self):
        """It raises what torch raises, and the seed before it stands."""
        with self.request():
            self.torch.manual_seed(7)
            with self.assertRaises(ValueError):
                self.torch.manual_seed(2**64)
            self.assertEqual(self.torch.rand(1), self.alone(7)[0])

    def test_what_manual_seed_returns(self):
        """A generator that draws what the request draws next, as torch's own."""
        with self.request():
            made = self.torch.manual_seed(7)
            first = made.draw()
            self.assertEqual([first, self.torch.rand(1)], self.alone(7)[:2])
            self.assertIsNone(self.torch.cuda.manual_seed(7))

    # ---- Devices

    def test_each_device_has_a_generator(self):
        """Each begins with the seed; a device without a number is the current one, or the only one."""
        with self.request() as scope:
            self.torch.manual_seed(7)
            for device in ("cpu", "cuda:0", "cuda", "mps:0"):
                self.assertEqual(self.torch.rand(1, device=device), self.alone(7)[0], device)
            self.assertEqual(self.torch.Tensor("cuda:1").uniform_(), self.alone(7)[1])
            self.assertEqual(self.torch.rand(1, device="mps:0"), self.alone(7)[1])
            self.assertEqual(set(scope.generators), {"cpu", "cuda:0", "cuda:1", "mps:0"})

    def test_default_device(self):
        """What names no device draws on torch's default one; what torch knows of that was asked before it was wrapped.

        torch remembers the functions that a default device applies to, once: of those that we had put in their place it
        made tensors on the processor.
        """
        self.torch.default = "cuda:0"
        with self.request() as scope:
            self.torch.manual_seed(7)
            self.assertEqual(self.torch.rand(1), self.alone(7)[0])
            self.assertIn("cuda:0", scope.generators)
        self.assertEqual(self.asked, [self.plain])

    def test_device_that_draws_nothing(self):
        """A model that is made on `meta` inside infer, as transformers does, has no generator there.

        It raised: a request that had set a seed could load no model.
        """
        with self.request():
            self.torch.manual_seed(7)
            self.assertEqual(self.torch.rand(1, device="meta"), 0.0)

    def test_seed_of_one_type_of_device(self):
        """torch.cuda.manual_seed leaves the processor's generator as it is, and after it the other way round."""
        self.torch.manual_seed(5)
        with self.request():
            self.torch.cuda.manual_seed_all(7)
            self.assertEqual(self.torch.rand(1, device="cuda:0"), self.alone(7)[0])
            self.assertEqual(self.torch.rand(1), self.alone(5)[0])
            self.torch.manual_seed(8)
            self.torch.cuda.manual_seed(9)
            self.assertEqual(self.torch.rand(1), self.alone(8)[0])
            self.assertEqual(self.torch.rand(1, device="cuda:0"), self.alone(9)[0])
            self.torch.manual_seed(10)
            self.assertEqual(self.torch.rand(1, device="cuda:0"), self.alone(10)[0])

    # ---- Several requests

    def test_requests_in_any_order(self):
        """Each draws what it draws alone, however they take turns."""
        choose = random.Random(seed := random.SystemRandom().randrange(10**6))
        with self.subTest(seed=seed):
            scopes = {}
            for number in range(5):
                with self.request() as scopes[number]:
                    self.torch.manual_seed(number)
            got: dict[int, list[float]] = {number: [] for number in scopes}
            for number in choose.sample([*scopes] * 4, 20):
                with self.request(scopes[number]):
                    got[number].append(self.torch.rand(1))
            self.assertEqual(got, {number: self.alone(number) for number in scopes})

    def test_threads_of_a_request_share_its_generator(self):
        """What infer seeds, its generate thread draws."""
        isolation.install()
        got = []
        with self.request():
            self.torch.manual_seed(7)
            for _ in range(2):
                thread = threading.Thread(target=lambda: got.append(self.torch.rand(1)))
                thread.start()
                thread.join()
            got.append(self.torch.rand(1))
        self.assertEqual(got, self.alone(7, 3))

    def test_generator_is_made_once_for_all_threads(self):
        """Two threads that draw first at the same time draw from one generator."""
        scope = Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
        scope.seeds = {"": 7}
        barrier = threading.Barrier(2)

        class Slow(Generator):
            def manual_seed(self, seed: int) -> Generator:
                barrier.wait(30)
                return super().manual_seed(seed)

        found = []
        self.torch.Generator = Slow
        threads = [
            threading.Thread(target=lambda: found.append(seeds.generator(scope, Device("cpu")))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertIs(found[0], found[1])

    # ---- Installing

    def test_install_again_does_nothing(self):
        """However often."""
        before = self.torch.rand, self.torch.manual_seed, self.torch.Tensor.uniform_
        seeds.install()
        self.assertEqual((self.torch.rand, self.torch.manual_seed, self.torch.Tensor.uniform_), before)
        self.assertEqual(self.torch.rand.__name__, "rand")

    def test_install_without_torch(self):
        """Nothing is imported; what is only called torch is left alone, and so is one that is half imported."""
        half = make_torch()
        half.__spec__ = types.SimpleNamespace(_initializing=True)
        for found in (None, types.ModuleType("torch"), half):
            names = dict(vars(found)) if found else {}
            with unittest.mock.patch.dict(sys.modules, {"torch": found}):
                seeds.install()
            self.assertEqual(dict(vars(found)) if found else {}, names)

    def test_function_that_is_compiled(self):
        """torch.compile sees the function that it knows, without a generator, which it would not take."""
        self.torch.manual_seed(5)
        with self.request():
            self.torch.manual_seed(7)
            self.torch.tracing = True
            self.assertEqual(self.torch.rand(1), self.alone(5)[0])


if __name__ == "__main__":
    unittest.main()
