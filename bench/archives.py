"""What it costs to keep streams beyond the process, and how fast they come back.

    python bench/archives.py [--quick] [--unpinned] [--repeats N] [--folder DIR] [--json FILE]

The same server with nothing, with --log-dir and each --log-sync, and with --log redis:// (where redis-server and the
package `redis` are installed): events per second of streams that hurry, and the time from token to client of streams
that are paced. Variants take turns within a repeat and the order moves on with each; a ratio is made within each repeat
first. A redis-server keeps nothing on disk and may run on all cores: it would be on another machine.

Then a stream is followed after a restart, and its very bytes are downloaded as a plain file: from a thread a connection
with open and sendfile, and from Python's http.server. One client, one request at a time, from connect to the last byte.
DIR is where the files lie (build/bench): what a sync costs is its disk's to say.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from harness import BENCH, BUILD, MB, Cores, Server, cpu_seconds, ours, pinned, progress, rss, serve, spread
from stream import FULL, QUICK, Load, drive, verdict

LOADS = ("1", "64", "paced")
# Figure of each load, and what issue 5 wants of a variant's, against nothing's: at least, or (negative) at most.
WANTED = {"1": ("events/s", 0.8), "64": ("events/s", 0.8), "paced": ("p50 us", -1.25)}
NOTHING = "nothing"
FREE = ("--log-dir, off", "--log-dir, always")  # what is told for the README's table, and bound by nothing


class Variant(NamedTuple):
    name: str
    flags: Callable[[Path], list[str]]  # for an empty folder


def journal(policy: str) -> Variant:
    return Variant(f"--log-dir, {policy}", lambda folder: ["--log-dir", str(folder), "--log-sync", policy])


# ---- what it costs


@contextmanager
def store(cores: set[int]) -> Iterator[Server | None]:
    """Run a redis-server that keeps nothing on disk; None if there is none here."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    probe = [sys.executable, "-c", "import redis"]
    if binary is None or subprocess.run(probe, capture_output=True).returncode:
        progress("--log redis:// is left out: redis-server, or Python's package redis, is missing")
        yield None
        return
    with socket.socket() as sock, tempfile.TemporaryDirectory() as folder:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        sock.close()
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=pinned(cores))
        try:
            wait_for(port)
            yield Server(port, process.pid)
        finally:
            process.kill()
            process.wait()


def wait_for(port: int, patience: float = 10) -> None:
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody listens on port {port}")
        time.sleep(0.02)


class Costs:
    """The runs so far: `runs[load][variant]` is a list of figures, one a repeat."""

    def __init__(
        self, loads: dict[str, Load], variants: list[Variant], cores: Cores, folder: Path, store: Server | None
    ) -> None:
        self.loads, self.variants, self.cores, self.folder, self.store = loads, variants, cores, folder, store
        self.runs: dict[str, dict[str, list[dict[str, Any]]]] = {
            load: {variant.name: [] for variant in variants} for load in loads
        }

    def repeat(self, turn: int) -> None:
        for name, load in self.loads.items():
            for i in range(len(self.variants)):
                variant = self.variants[(i + turn) % len(self.variants)]
                progress(f"repeat {turn + 1}: {load.title}: {variant.name}")
                with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                    command = ours(load.streams, *variant.flags(Path(folder)))
                    with serve(command, self.cores.server) as server:
                        self.runs[name][variant.name].append(self.run(server, load))

    def run(self, server: Server, load: Load) -> dict[str, Any]:
        """Put the load on a server; what the store takes of its core is told apart from what others do."""
        used, began = self.store_seconds(), time.monotonic()
        figures = drive(server, self.cores, load)
        figures["store %"] = 100 * (self.store_seconds() - used) / (time.monotonic() - began)
        figures["others %"] = max(0.0, figures["others %"] - figures["store %"])
        return figures

    def store_seconds(self) -> float:
        return cpu_seconds(self.store.pid) if self.store is not None else 0.0

    def values(self, load: str, variant: str, figure: str) -> list[float]:
        return [run[figure] for run in self.runs[load][variant]]

    def print(self) -> bool:
        """Print a table for each load; return whether all is as wanted."""
        fine = True
        for name, load in self.loads.items():
            figure, wanted = WANTED[name]
            print(f"\n{load.title}: median (lowest–highest)")
            print(
                f"  {'':<22}{figure:>26}{'against nothing':>26}{'CPU us/event':>22}{'peak MB':>10}"
                f"{'server %':>10}{'generator %':>13}{'store %':>9}"
            )
            for variant in self.variants:
                values = self.values(name, variant.name, figure)
                ratios = [mine / bare for mine, bare in zip(values, self.values(name, NOTHING, figure), strict=True)]
                bound = None if variant.name in (NOTHING, *FREE) else wanted
                said = verdict(median(ratios), bound)
                fine &= "NO" not in said
                cells = f"{spread(values):>26}{spread(ratios):>26}"
                cells += f"{spread(self.values(name, variant.name, 'CPU us/event')):>22}"
                for column, width in (("peak MB", 10), ("server %", 10), ("generator %", 13), ("store %", 9)):
                    cells += f"{median(self.values(name, variant.name, column)):>{width}.0f}"
                print(f"  {variant.name:<22}{cells}   {said}")
            runs = [run for runs in self.runs[name].values() for run in runs]
            others = max(run["others %"] for run in runs)
            failures = [run["failure"] for run in runs if run["failures"]]
            print(f"  others used up to {others:.0f} % of a core; {failures or 'no failure'}")
            fine &= not failures
        return fine


# ---- how fast a stream comes back


def download(port: int, request: bytes) -> tuple[float, bytes]:
    """Send a request on a connection of its own; return how long it took to the last byte, and the body."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(request)
        parts = []
        while part := sock.recv(1 << 18):
            parts.append(part)
    took = time.perf_counter() - began
    return took, b"".join(parts).partition(b"\r\n\r\n")[2]


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *fields, "", ""]).encode()


def make_stream(server: Server, events: int) -> str:
    """Run a stream to its end; return its id."""
    body = json.dumps({"COUNT": events})
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(
            f"POST /infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            .encode()
        )  # fmt: skip
        parts = []
        while part := sock.recv(1 << 18):
            parts.append(part)
    head = b"".join(parts).partition(b"\r\n\r\n")[0].decode()
    return next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("stream-id"))


def chunked(body: bytes) -> int:
    """Count the events of a body that came whole. Raises RuntimeError if it did not."""
    if not body.endswith(b"\r\n0\r\n\r\n"):
        raise RuntimeError("the stream was not served to its end")
    return body.count(b"\nid: ") + body.startswith(b"id: ")


class Comeback:
    """A server after a crash, and two that serve its streams' bytes as files."""

    def __init__(self, stack: ExitStack, cores: Cores, folder: Path, sizes: list[int]) -> None:
        logs, files = Path(folder, "logs"), Path(folder, "files")
        files.mkdir()
        flags = ["--log-dir", str(logs)]
        with serve(ours(1, *flags), cores.server) as server:
            self.ids = {size: make_stream(server, size) for size in sizes}
            time.sleep(0.5)  # until the last of it is on its way to the disk
        self.cores, self.files, self.flags = cores, files, flags
        self.ours = stack.enter_context(serve(ours(1, *flags), cores.server))
        self.bodies = {size: self.follow(size)[1] for size in sizes}
        for size, body in self.bodies.items():
            if chunked(body) != size + 1:
                raise RuntimeError(f"{chunked(body)} of {size + 1} events came back")
            Path(files, str(size)).write_bytes(body)
        peer = str(BENCH / "peers" / "plain_file.py")
        self.peers = {
            kind: stack.enter_context(serve([sys.executable, peer, kind, str(files)], cores.server))
            for kind in ("sendfile", "http.server")
        }

    def follow(self, size: int, after: int = 0) -> tuple[float, bytes]:
        stream = self.ids[size]
        return download(self.ours.port, get(f"/streams/{stream}", f"Last-Event-ID: {stream}-{after}"))

    def fetch(self, kind: str, size: int) -> tuple[float, bytes]:
        took, body = download(self.peers[kind].port, get(f"/{size}"))
        if body != self.bodies[size]:
            raise RuntimeError(f"{kind} sent something else")
        return took, body

    def compare(self, size: int, rounds: int) -> dict[str, list[float]]:
        """Take turns; return how long each took, in milliseconds."""
        times: dict[str, list[float]] = {"a stream": [], **{kind: [] for kind in self.peers}}
        for _ in range(rounds):
            took, body = self.follow(size)
            if body != self.bodies[size]:
                raise RuntimeError("the stream is not what it was")
            times["a stream"].append(took * 1e3)
            for kind in self.peers:
                times[kind].append(self.fetch(kind, size)[0] * 1e3)
        return times


def measure_comeback(cores: Cores, folder: Path, quick: bool) -> bool:
    small, large = 1000, 20_000 if quick else 100_000
    fine = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        progress("streams that come back")
        comeback = Comeback(stack, cores, folder, [small, large])
        with pinned_to(cores.generator):
            for size, rounds, wanted in ((small, 30 if quick else 200, -3.0), (large, 3 if quick else 10, None)):
                times = comeback.compare(size, rounds)
                print(
                    f"\n{size:,} events after a restart, {len(comeback.bodies[size]) / 1e3:,.0f} kB: ms, median (...)"
                )
                for kind, took in times.items():
                    ratio = median(times["a stream"]) / median(took)
                    said = verdict(ratio, wanted) if kind != "a stream" else ""
                    fine &= "NO" not in said
                    line = f"  {kind:<14}{spread(took):>26}"
                    print(line if kind == "a stream" else f"{line}   a stream takes {ratio:.2f} times that   {said}")
            tail = [comeback.follow(large, large - small)[0] * 1e3 for _ in range(20)]
            print(f"  the last {small:,} of {large:,} events: {spread(tail)} ms")
    return fine


@contextmanager
def pinned_to(cores: set[int]) -> Iterator[None]:
    """Have this process, the client, on these cores until the block ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_memory(cores: Cores, folder: Path, quick: bool) -> bool:
    """Follow ever longer streams after a restart; print what the server's memory peaks at, over what it had before."""
    sizes = [1000, 10_000, 20_000 if quick else 100_000]
    with tempfile.TemporaryDirectory(dir=folder) as logs:
        flags = ["--log-dir", logs]
        with serve(ours(1, *flags), cores.server) as server:
            ids = {size: make_stream(server, size) for size in sizes}
            time.sleep(0.5)
        grew = {}
        for size in sizes:
            with serve(ours(1, *flags), cores.server) as server:
                download(server.port, get("/v2"))  # so that the first thread is not counted
                before = rss(server.pid)
                Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak begins anew
                _, body = download(server.port, get(f"/streams/{ids[size]}"))
                chunked(body)
                grew[size] = rss(server.pid, "VmHWM") - before
                sent = len(body) / MB
            print(
                f"  {size:>7,} events, {sent:6.2f} MB sent: the server had {before:.1f} MB, and {grew[size]:.2f} more"
            )
    fine = grew[sizes[-1]] <= grew[sizes[0]] + 1
    print(f"  the longest takes at most 1 MB more than the shortest: {'yes' if fine else 'NO'}")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short repeat: about a minute, not for citing")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the scheduler")
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="default 3, and 1 with --quick")
    parser.add_argument("--loads", metavar="LOADS", default=",".join(LOADS), help=f"{', '.join(LOADS)}, with commas")
    parser.add_argument("--folder", type=Path, default=BUILD, metavar="DIR", help="where streams' files lie")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    arguments = parser.parse_args()
    cores = Cores.choose(not arguments.unpinned)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    chosen = [name for name in arguments.loads.split(",") if name]
    loads = {name: (QUICK if arguments.quick else FULL)[name] for name in chosen}
    if "paced" in loads and not arguments.quick:  # with `always`, a thousand are more than a usual disk syncs
        loads["paced"] = FULL["paced"]._replace(title="300 streams at 4 events/s each", streams=300, count=32, ramp=4)
    with store(cores.server | cores.generator) as shared:
        variants = [Variant(NOTHING, lambda folder: []), journal("interval"), journal("off"), journal("always")]
        if shared is not None:
            address = f"redis://127.0.0.1:{shared.port}/0"
            variants.append(Variant("--log redis://", lambda folder: ["--log", address]))
        costs = Costs(loads, variants, cores, arguments.folder, shared)
        print(f"{cores}; files on {filesystem(arguments.folder)}")
        for turn in range(arguments.repeats or (1 if arguments.quick else 3)):
            costs.repeat(turn)
    fine = costs.print()
    fine &= measure_comeback(cores, arguments.folder, arguments.quick)
    print("\nMemory of the server while a stream is followed after a restart")
    fine &= measure_memory(cores, arguments.folder, arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(costs.runs, indent=1) + "\n")
    return 0 if fine else 1


def filesystem(folder: Path) -> str:
    """Name what a folder lies on."""
    found = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
