"""Streams side by side with peers: events per second, CPU, time to the first event, latency, memory.

    python bench/stream.py [--quick] [--only ours,a,b,c] [--loads 1,64] [--python PATH] [--json FILE]

The peers: (a) a bare loop of `socket.send` with ready-made frames, a thread a connection: the ceiling. (b)
`http.server` with a queue. (c) starlette + sse-starlette on uvicorn with uvloop, in two variants: each ratio takes the
one that does better there. All run the app in bench/apps/tokens, but (a), which has no app, and (c)'s async variant,
whose generator does the same.

A load on a peer is a server of its own. Peers take turns within a repeat, and the order moves on with each. A figure
is the median of the repeats, with the lowest and the highest; a ratio is made within each repeat first. The full run
takes about eight minutes; `--quick` takes less than one and shows only that everything works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from harness import BENCH, Cores, Server, compiled, generate, number, ours, progress, serve, spread

PEERS = {
    "ours": "ours",
    "a": "(a) bare send",
    "b": "(b) http.server",
    "c-thread": "(c) starlette, thread",
    "c-async": "(c) starlette, async",
}
QUIET = 10  # % of one core that others may use
SMALLER_IS_BETTER = {"CPU us/event", "first ms", "first p99 ms", "p50 us", "p99 us", "p99.9 us", "RSS MB", "peak MB"}


class Load(NamedTuple):
    """`streams` at once, of `count` events each, started anew for `seconds`."""

    title: str
    columns: list[str]
    streams: int
    count: int
    seconds: float = 0  # at least one stream a slot
    period_us: int = 0  # between events; 0 is as fast as it goes
    ramp: float = 0  # seconds over which the streams start, so that they don't tick together


FIRST = ["first ms", "first p99 ms"]
UNPACED = ["events/s", "CPU us/event", "events/read", "first ms", "peak MB"]
PACED = ["p50 us", "p99 us", "p99.9 us", "first ms", "CPU us/event", "RSS MB", "peak MB"]

FULL = {
    "first": Load("streams of 1 event, one at a time", FIRST, 1, 1, 1),
    "1": Load("1 stream, unpaced", UNPACED, 1, 20_000, 2),
    "64": Load("64 streams, unpaced", UNPACED, 64, 500, 2),
    "512": Load("512 streams, unpaced", UNPACED, 512, 200, 2),
    "paced": Load("1,000 streams at 4 events/s each", PACED, 1000, 48, period_us=250_000, ramp=4),
}
QUICK = {
    "first": FULL["first"]._replace(seconds=0.2),
    "1": FULL["1"]._replace(count=4000, seconds=0.3),
    "64": FULL["64"]._replace(count=100, seconds=0.3),
    "512": FULL["512"]._replace(count=20, seconds=0.3),
    "paced": FULL["paced"]._replace(title="200 streams at 4 events/s each", streams=200, count=10, ramp=0.5),
}
# Load, figure, peer, and what issue 2 wants: at least (positive) or at most (negative) this; None is for information.
RATIOS: list[tuple[str, str, str, float | None]] = [
    ("1", "events/s", "a", 0.5),
    ("64", "events/s", "a", None),
    ("512", "events/s", "a", None),
    ("1", "events/s", "c", 3),
    ("64", "events/s", "c", 3),
    ("512", "events/s", "c", 3),
    ("paced", "p99 us", "b", -0.5),
    ("paced", "p99 us", "c", None),
    ("paced", "RSS MB", "c", -1),
    ("paced", "peak MB", "c", -1),
    ("first", "first ms", "c", None),
]


def command(peer: str, load: Load, python: str) -> list[str]:
    """Name the command of a peer's server, ready for `load`."""
    if peer == "ours":
        return ours(load.streams)
    if peer == "a":
        return [sys.executable, str(BENCH / "peers/bare_send.py"), str(load.count)]
    if peer == "b":
        return [sys.executable, str(BENCH / "peers/http_queue.py")]
    return [python, str(BENCH / "peers/starlette_sse.py"), peer.removeprefix("c-")]


# ---- one run ----


def drive(server: Server, cores: Cores, load: Load) -> dict[str, Any]:
    """Put `load` on `server`; return the figures."""
    inputs = {"COUNT": load.count}
    if load.period_us:
        inputs |= {"PERIOD_US": load.period_us, "STAMP": 1}
    length = load.seconds + load.ramp + load.count * load.period_us / 1e6
    return figures(generate(server, cores, inputs, n=load.streams, s=load.seconds, r=load.ramp, m=length + 30))


def figures(result: dict[str, Any]) -> dict[str, Any]:
    events, wall, latency = max(1, result["events"]), result["wall"], result["latency_us"]
    # A server that ends its first stream before it has begun its last has no plateau, and no latency to speak of.
    late = latency if latency["n"] else dict.fromkeys(latency, float("inf"))
    return {
        "events/s": events / wall,
        "CPU us/event": result["server_cpu"] / events * 1e6,
        "first ms": result["first_event_us"]["p50"] / 1e3,
        "first p99 ms": result["first_event_us"]["p99"] / 1e3,
        "p50 us": late["p50"],
        "p99 us": late["p99"],
        "p99.9 us": late["p999"],
        "RSS MB": median(result["rss"]) if result["rss"] else result["peak_rss"],
        "peak MB": result["peak_rss"],
        "bytes/event": result["bytes"] / events,
        "events/read": events / max(1, result["reads"]),
        "server %": 100 * result["server_cpu"] / wall,
        "generator %": 100 * result["cpu"] / wall,
        "others %": 100 * result["others"],
        "streams": result["streams"],
        "failures": result["failures"],
        "failure": result["failure"],
    }


class Bench:
    """The runs so far: `runs[load][peer]` is a list of figures, one a repeat."""

    def __init__(self, loads: dict[str, Load], peers: list[str], cores: Cores, python: str) -> None:
        self.loads, self.peers, self.cores, self.python = loads, peers, cores, python
        self.runs: dict[str, dict[str, list[dict[str, Any]]]] = {load: {peer: [] for peer in peers} for load in loads}
        self.capacity: dict[str, dict[str, dict[str, Any]]] = {}  # [load][events a send]

    def repeat(self, turn: int) -> None:
        for name, load in self.loads.items():
            for i in range(len(self.peers)):
                peer = self.peers[(i + turn) % len(self.peers)]
                progress(f"repeat {turn + 1}: {load.title}: {PEERS[peer]}")
                with serve(command(peer, load, self.python), self.cores.server) as server:
                    self.runs[name][peer].append(drive(server, self.cores, load))

    def measure_generator(self) -> None:
        """Read ready-made events from C, one a send and 64 a send, at each unpaced load."""
        for name in [name for name, load in self.loads.items() if load.columns is UNPACED]:
            load = FULL[name]._replace(seconds=0.5)
            progress(f"the generator alone: {load.title}")
            for batch in ("1", "64"):
                with serve([compiled("peers/flood.c"), batch], self.cores.server) as server:
                    self.capacity.setdefault(name, {})[batch] = drive(server, self.cores, load)

    def values(self, load: str, peer: str, figure: str) -> list[float]:
        return [run[figure] for run in self.runs[load][peer]]

    def best(self, load: str, peer: str, figure: str) -> str | None:
        """Name the variant of `peer` that does best at `figure`; None if it did not run."""
        variants = [p for p in self.peers if p.split("-")[0] == peer]
        order = min if figure in SMALLER_IS_BETTER else max
        return order(variants, key=lambda p: median(self.values(load, p, figure)), default=None)

    def ratio(self, load: str, peer: str, figure: str) -> tuple[str, list[float]] | None:
        """Divide ours by the best variant of `peer`, repeat by repeat; None if either did not run."""
        best = self.best(load, peer, figure) if load in self.loads and "ours" in self.peers else None
        if best is None:
            return None
        pairs = zip(self.values(load, "ours", figure), self.values(load, best, figure), strict=True)
        return best, [mine / theirs for mine, theirs in pairs]

    def failures(self) -> list[tuple[str, str]]:
        """List which peer failed, and how."""
        return [
            (peer, f"{self.loads[load].title}: {PEERS[peer]}: {run['failures']} of {run['streams']}: {run['failure']}")
            for load, peers in self.runs.items()
            for peer, runs in peers.items()
            for run in runs
            if run["failures"]
        ]


# ---- the report ----


def verdict(value: float, wanted: float | None) -> str:
    if wanted is None:
        return ""
    if wanted > 0:
        return f"wanted at least {wanted:g}: {'yes' if value >= wanted else 'NO'}"
    return f"wanted at most {-wanted:g}: {'yes' if value <= -wanted else 'NO'}"


def print_ratios(bench: Bench) -> None:
    print("\nRatios: median (lowest–highest)")
    for load, figure, peer, wanted in RATIOS:
        if found := bench.ratio(load, peer, figure):
            best, values = found
            what = f"{figure}, {bench.loads[load].title}"
            print(f"  {what:<48} ours/{PEERS[best]:<22} {spread(values):<22} {verdict(median(values), wanted)}")


def print_figures(bench: Bench, name: str, load: Load) -> None:
    rows = [["", *load.columns]]
    for peer in bench.peers:
        rows.append([PEERS[peer], *(spread(bench.values(name, peer, column)) for column in load.columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{load.title}")
    for name_cell, *cells in rows:
        line = (cell.rjust(width + 3) for cell, width in zip(cells, widths[1:], strict=True))
        print("  " + name_cell.ljust(widths[0]) + "".join(line))
    runs = [run for runs in bench.runs[name].values() for run in runs]
    print(f"  generator busy {span(runs, 'generator %')} %, others {span(runs, 'others %')} %, ", end="")
    print(f"bytes an event {span(runs, 'bytes/event')}")


def span(runs: list[dict[str, Any]], figure: str) -> str:
    values = [run[figure] for run in runs]
    return f"{number(min(values))}–{number(max(values))}"


def print_generator(bench: Bench) -> None:
    """Say how we know that the generator is not the bottleneck."""
    print("\nThe generator alone, fed by C: it waits for the servers, not they for it")
    for name, by_batch in bench.capacity.items():
        fastest = max(run["events/s"] for runs in bench.runs[name].values() for run in runs)
        one, many = by_batch["1"], by_batch["64"]
        times = f"{many['events/s'] / fastest:.1f} times the fastest server's {number(fastest)}"
        print(f"  {bench.loads[name].title}: reads {number(many['events/s'])} events/s, {times};")
        busy = f"generator {one['generator %']:.0f} % busy, sender {one['server %']:.0f} %"
        print(f"    when C sends one at a time, {number(one['events/s'])}, {busy}")


def report(bench: Bench, repeats: int) -> None:
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; {bench.cores}; {repeats} repeats, interleaved.")
    print(
        "CPU is the server's, user and system. 'others' is what the rest of the machine used, in % of one core: above a"
    )
    print(
        "few, the figures suffer. Latency is from the app's stamp to the client's read, on the plateau, as is RSS. More"
    )
    print("than 1 event/read: the server joins events into one write, or the client was not there to read each.")
    runs = [run for peers in bench.runs.values() for runs in peers.values() for run in runs]
    if (others := max(run["others %"] for run in runs)) > QUIET:
        print(f"NOT A QUIET MACHINE: others used up to {others:.0f} % of a core. No verdict below counts.")
    print_ratios(bench)
    for name, load in bench.loads.items():
        print_figures(bench, name, load)
    if bench.capacity:
        print_generator(bench)
    total = sum(run["streams"] for run in runs)
    failures = bench.failures()
    print(f"\n{total:,} streams, every event counted: {'FAILURES' if failures else 'no failure'}")
    for _, line in failures:
        print(f"  {line}")


# ---- the command ----


def has_peers(python: str) -> bool:
    probe = [python, "-c", "import starlette, sse_starlette, uvicorn, uvloop, httptools"]
    return subprocess.run(probe, capture_output=True).returncode == 0


def chosen_peers(only: str | None, python: str) -> list[str]:
    wanted = only.split(",") if only else list(PEERS)
    peers = [peer for peer in PEERS if peer in wanted or peer.split("-")[0] in wanted]
    if any(peer.startswith("c-") for peer in peers) and not has_peers(python):
        progress("(c) is left out: this Python lacks its packages; `make bench` installs them, --python names another.")
        peers = [peer for peer in peers if not peer.startswith("c-")]
    return peers


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short repeat: less than a minute, not for citing")
    parser.add_argument("--only", metavar="PEERS", help="ours, a, b, c (or c-thread, c-async), with commas")
    parser.add_argument("--loads", metavar="LOADS", help=f"{', '.join(FULL)}, with commas")
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="default 3, and 1 with --quick")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the scheduler")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has (c)'s packages")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    loads = QUICK if arguments.quick else FULL
    if arguments.loads:
        loads = {name: loads[name] for name in arguments.loads.split(",")}
    peers = chosen_peers(arguments.only, arguments.python)
    if not peers:
        progress("nobody to measure")
        return 2
    bench = Bench(loads, peers, Cores.choose(not arguments.unpinned), arguments.python)
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    began = time.monotonic()
    try:
        bench.measure_generator()
        for turn in range(repeats):
            bench.repeat(turn)
    except RuntimeError as error:
        progress(str(error))
        return 2
    progress(f"took {time.monotonic() - began:.0f} s")
    report(bench, repeats)
    if arguments.json:
        text = json.dumps({"cores": str(bench.cores), "runs": bench.runs, "capacity": bench.capacity}, indent=1)
        arguments.json.write_text(text.replace("Infinity", "null") + "\n")
    return 1 if any(peer == "ours" for peer, _ in bench.failures()) else 0


if __name__ == "__main__":
    sys.exit(main())
