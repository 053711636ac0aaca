"""Compares what a request's thread draws after a seed with what torch draws without us. Run by test_concurrency.py.

It knows `inferless_shim.seeds` and torch; the Python that runs it needs torch alone. A GPU is tried, too, if there is
one.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from inferless_shim import seeds
from inferless_shim.scope import Scope
from inferless_shim.streamers import Streamers

SEEDS = (0, 7, -1, 2**63)
IN_PLACE = ("cauchy_", "exponential_", "log_normal_", "normal_", "random_", "uniform_", "bernoulli_")


def draws_on(device):
    """Return all the ways to draw, by name."""
    half, ones = torch.full((20,), 0.5, device=device), torch.ones(20, device=device)
    like = [name for name in ("rand_like", "randn_like") if "generator=" in (getattr(torch, name).__doc__ or "")]
    return {
        "bernoulli": lambda: torch.bernoulli(half),
        "multinomial": lambda: torch.multinomial(ones, 5),
        "multinomial by name": lambda: torch.multinomial(input=ones, num_samples=5),
        "normal": lambda: torch.normal(0.0, 1.0, (20,), device=device),
        "normal of tensors": lambda: torch.normal(mean=ones, std=half),
        "poisson": lambda: torch.poisson(ones),
        "rand": lambda: torch.rand(20, device=device),
        "randint": lambda: torch.randint(0, 100, (20,), device=device),
        "randn": lambda: torch.randn(20, device=device),
        "randperm": lambda: torch.randperm(20, device=device),
        "Categorical": lambda: torch.distributions.Categorical(ones).sample((5,)),
        "Normal": lambda: torch.distributions.Normal(ones, ones).sample((5,)),
        "kaiming_uniform_": lambda: torch.nn.init.kaiming_uniform_(torch.empty(4, 4, device=device)),
        "gumbel_softmax": lambda: torch.nn.functional.gumbel_softmax(ones),
        "Tensor.bernoulli": lambda: half.bernoulli(),
        "Tensor.geometric_": lambda: torch.empty(20, device=device).geometric_(0.5),
        "Tensor.multinomial": lambda: ones.multinomial(5),
        **{f"Tensor.{name}": lambda name=name: getattr(torch.zeros(20, device=device), name)() for name in IN_PLACE},
        **{name: lambda name=name: getattr(torch, name)(ones) for name in like},
    }


def main():
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    draws = {(device, name): draw for device in devices for name, draw in draws_on(device).items()}
    want = {(draw, seed): after(seed, draws[draw]) for draw in draws for seed in SEEDS}
    seeds.install()
    scope = Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
    torch.manual_seed(5)
    with scope.working():
        for (draw, seed), drawn in want.items():
            assert torch.equal(after(seed, draws[draw]), drawn), (draw, seed)
        with torch.device("meta"):
            assert torch.nn.Linear(2, 2).weight.is_meta  # draws its weights, on a device that has no generator
            assert torch.rand(2).is_meta  # a default device still applies to what is wrapped
        compiled = torch.compile(draws["cpu", "multinomial"], backend="eager", fullgraph=True)
        assert compiled().shape == (5,)
        for bad in (2**64, "x"):
            try:
                torch.manual_seed(bad)
            except (ValueError, RuntimeError):
                continue
            raise AssertionError(f"{bad} is no seed")
    assert torch.initial_seed() == 5, "a request's seed is not the process's"
    print(len(want), "draws are the same, on", *devices)


def after(seed, draw):
    torch.manual_seed(seed)
    return draw()


if __name__ == "__main__":
    main()
