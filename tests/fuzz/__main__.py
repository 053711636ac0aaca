"""Feed every parser what nobody should send: python -m tests.fuzz [SECONDS] [SEED] [INPUTS]

Each input is one of `targets`, mutated; it must not raise what is not documented, break its invariant, or take more
time or memory than an input of its size may. Ends at the first finding, after SECONDS (60) or INPUTS, whichever is
first, with exit status 1 if anything was found. Guided by coverage where atheris is installed, else seeded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any, NoReturn

MAX_TIME = 1.0  # seconds of this thread's time for one input of at most 4 KiB: 1,000 times what one takes
MAX_MEMORY = 4 * 1024 * 1024  # bytes at once for one input, looked at in one of SAMPLE
SAMPLE = 2000
MAX_GROWTH = 48 * 1024 * 1024  # bytes of the process after its first tenth: caches fill, a leak of 3 bytes each shows
ROUND = 500  # inputs between two looks at the clock


class Watch:
    """Runs inputs and keeps count: what they take, and whether the process grows. `run` raises what it finds."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets
        self.inputs = 0
        self.first_rss = 0
        self.slowest = 0.0
        self.largest = 0
        self.started = time.monotonic()

    def run(self, index: int, data: bytes) -> None:
        target = self.targets[index % len(self.targets)]
        self.inputs += 1
        sampled = self.inputs % SAMPLE == 0
        if sampled:
            tracemalloc.start()
        before = time.thread_time()
        try:
            target.check(data)
        except BaseException:
            sys.stdout.flush()
            print(f"\nfound by {target.name} after {self.inputs:,} inputs: {data!r}", file=sys.stderr)
            raise
        finally:
            taken = time.thread_time() - before
            peak = tracemalloc.get_traced_memory()[1] if sampled else 0
            if sampled:
                tracemalloc.stop()
        self.slowest = max(self.slowest, 0.0 if sampled else taken)
        self.largest = max(self.largest, peak)
        assert taken < MAX_TIME, f"{target.name} took {taken:.1f} s for {data!r}"
        assert peak < MAX_MEMORY, f"{target.name} took {peak} bytes for {data!r}"

    def warm(self) -> None:
        """Take the process's size now for what it may keep."""
        self.first_rss = self.first_rss or rss()

    def report(self, how: str) -> str:
        growth = rss() - self.first_rss if self.first_rss else 0
        seconds = time.monotonic() - self.started
        return (
            f"{self.inputs:,} inputs for {len(self.targets)} parsers in {seconds:.0f} s, {how}: the slowest took "
            f"{self.slowest * 1000:.0f} ms, the largest sampled {self.largest / 1024:.0f} KiB; the process grew by "
            f"{growth / 1024:.0f} KiB"
        )

    def check_growth(self) -> None:
        growth = rss() - self.first_rss
        assert not self.first_rss or growth < MAX_GROWTH, f"the process has grown by {growth} bytes"


def rss() -> int:
    """Return the resident size of this process in bytes; 0 where nobody can say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def seeded(seconds: float, seed: int, inputs: int) -> int:
    from tests.fuzz import targets
    from tests.fuzz.mutation import mutated

    watch, rng = Watch(targets.ALL), random.Random(seed)
    # The head and the body of a request are most of what there is to get wrong.
    weights = [len(target.seeds) ** 0.5 for target in targets.ALL]
    deadline = watch.started + seconds
    while time.monotonic() < deadline and watch.inputs < inputs:
        for index in rng.choices(range(len(targets.ALL)), weights, k=ROUND):
            watch.run(index, mutated(rng, targets.ALL[index].seeds))
        if watch.inputs >= inputs / 10 or time.monotonic() > watch.started + seconds / 10:
            watch.warm()
    watch.check_growth()
    print(watch.report(f"seed {seed}") + "; nothing found")
    return 0


def guided(seconds: float, seed: int, inputs: int) -> int:
    """Let libFuzzer choose the inputs, by the lines of ours that they reach. It ends its process: a child's."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            fuzz_with_atheris(seconds, seed, inputs, Path(folder))
        return 1 if os.waitpid(child, 0)[1] else 0


def fuzz_with_atheris(seconds: float, seed: int, inputs: int, folder: Path) -> NoReturn:
    import atheris

    with atheris.instrument_imports(include=["inferless_shim"]):
        from tests.fuzz import targets
    from tests.fuzz.mutation import MAX_LENGTH, SPICE

    watch = Watch(targets.ALL)
    seeds, words = folder / "seeds", folder / "words"
    seeds.mkdir()
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in spice) + '"\n' for spice in SPICE))
    for index, target in enumerate(targets.ALL):
        for number, data in enumerate(target.seeds):
            (seeds / f"{index}-{number}").write_bytes(bytes([index]) + data)

    def test(data: bytes) -> None:
        if data:
            watch.run(data[0], data[1:])
        if watch.inputs % ROUND == 0:
            elapsed = time.monotonic() - watch.started
            if elapsed > seconds / 10 or watch.inputs > inputs / 10:
                watch.warm()
                watch.check_growth()
            if elapsed > seconds or watch.inputs >= inputs:
                print(watch.report(f"guided by coverage, seed {seed}") + "; nothing found", flush=True)
                os._exit(0)

    options = [f"-seed={seed % 2**32 or 1}", f"-max_len={MAX_LENGTH}", f"-dict={words}", "-timeout=20", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(seeds)], test)
    atheris.Fuzz()
    os._exit(1)


def main(seconds: float = 60.0, seed: float | None = None, inputs: float = float(10**12)) -> int:
    """Run for so long; return the exit status."""
    chosen = random.SystemRandom().randrange(2**32) if seed is None else int(seed)
    print(f"seed {chosen}", flush=True)
    engine = guided if importlib.util.find_spec("atheris") else seeded
    with contextlib.suppress(KeyboardInterrupt):
        return engine(seconds, chosen, int(inputs))
    return 130


if __name__ == "__main__":
    raise SystemExit(main(*map(float, sys.argv[1:])))
