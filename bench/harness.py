"""What the benches share: servers as processes, the load generator, CPU and memory. Linux only; loopback only.

Servers share one set of cores and the generator has another, the same for every peer: they don't take each other's
time, and a peer's threads fight for the interpreter on one core, where they do it best. On an idle machine the
generator sleeps until a send wakes it, and the waking costs the sender more than the send itself; a generator that is
kept from sleeping, by others on its core, makes a bare send look three times as cheap. So measure on a quiet machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
BUILD = ROOT / "build" / "bench"
TICK = os.sysconf("SC_CLK_TCK")
MB = 1e6


class Cores(NamedTuple):
    """Which cores the servers have, and which the generator."""

    server: set[int]
    generator: set[int]

    @classmethod
    def choose(cls, pin: bool) -> Cores:
        """Give the servers the first core allowed to us and the generator the last; share them all if not `pin`."""
        cores = sorted(os.sched_getaffinity(0))
        return cls({cores[0]}, {cores[-1]}) if pin and len(cores) > 1 else cls(set(cores), set(cores))

    def __str__(self) -> str:
        if self.server == self.generator:
            return f"server and generator unpinned on cores {sorted(self.server)}"
        return f"server on core {min(self.server)}, generator on core {min(self.generator)}"


class Server(NamedTuple):
    port: int
    pid: int


def ours(concurrency: int, *flags: str, tree: Path = ROOT, app: str = "tokens") -> list[str]:
    """Name the command of our server, as it is in `tree`, with an app of ours, ready for `concurrency` at once."""
    slots = str(concurrency)
    command = [sys.executable, str(tree / "server.py"), "--model", str(BENCH / "apps" / app), "--port", "0"]
    return [*command, "--concurrency", slots, "--queue", slots, *flags]


def compiled(source: str) -> str:
    """Compile a C file of this folder, unless that is done; return the program's path."""
    path = BENCH / source
    program = BUILD / path.stem
    if not program.exists() or program.stat().st_mtime < path.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(program), str(path)]
        subprocess.run(command, check=True)
    return str(program)


def pinned(cores: set[int]) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, cores)


@contextmanager
def serve(command: list[str], cores: set[int], patience: float = 30) -> Iterator[Server]:
    """Run a server until the block ends. Raises RuntimeError with its last words if it prints no address in time."""
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words, preexec_fn=pinned(cores)
        )
        try:
            yield Server(wait_for_port(process, words.fileno(), patience), process.pid)
        finally:
            # It holds nothing to save, and an orderly end would wait for clients that never read.
            process.kill()
            process.wait()


def wait_for_port(process: subprocess.Popen[bytes], words: int, patience: float) -> int:
    deadline = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < deadline:
        # pread: the child writes at the offset that it shares with us.
        if address := re.search(rb"http://127\.0\.0\.1:(\d+)", os.pread(words, 1 << 16, 0)):
            return int(address[1])
        time.sleep(0.02)
    said = os.pread(words, 1 << 16, 0).decode(errors="replace").strip()
    raise RuntimeError(f"{' '.join(process.args)} is not serving; it said:\n{said[-2000:]}")  # type: ignore[arg-type]


def generator(port: int, inputs: dict[str, int], **options: float) -> list[str]:
    """Name the command of the load generator; `options` are its flags, by letter."""
    body = json.dumps(inputs)
    flags = [f"-{letter}{value:g}" for letter, value in options.items()]
    return [compiled("loadgen.c"), f"-p{port}", f"-c{inputs['COUNT']}", f"-b{body}", *flags]


def generate(server: Server, cores: Cores, inputs: dict[str, int], **options: float) -> dict[str, Any]:
    """Run the generator against `server`; add to its result what both processes used and what the others did."""
    used, busy, began = cpu_seconds(server.pid), busy_seconds(), time.monotonic()
    process = subprocess.Popen(
        generator(server.port, inputs, **options), stdout=subprocess.PIPE, preexec_fn=pinned(cores.generator)
    )
    samples = []
    while process.poll() is None:
        samples.append((time.monotonic(), rss(server.pid)))
        time.sleep(0.05)
    assert process.stdout
    result = json.loads(process.stdout.read())
    result["server_cpu"] = cpu_seconds(server.pid) - used
    others = busy_seconds() - busy - result["server_cpu"] - result["cpu"]
    result["others"] = max(0.0, others / (time.monotonic() - began))
    result["rss"] = [size for at, size in samples if result["plateau"][0] <= at <= result["plateau"][1]]
    result["peak_rss"] = rss(server.pid, "VmHWM")
    return result


def cpu_seconds(pid: int) -> float:
    """Read how much CPU time a process has used, user and system, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def busy_seconds() -> float:
    """Read how much CPU time the machine has used: everything but idle, I/O wait, steal and guests."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(fields[i] for i in (0, 1, 2, 5, 6)) / TICK


def rss(pid: int, field: str = "VmRSS") -> float:
    """Read a process's resident memory in MB; `VmHWM` is its peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / MB if found else 0.0


# ---- words ----


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def number(value: float) -> str:
    if value == float("inf"):
        return "none"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    """Write the median of `values` and, if there are several, the lowest and the highest."""
    middle = number(median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"
