"""Small requests side by side with `http.server`: JSON posts to an app that answers, and streams of five events.

    python bench/posts.py [--quick] [--repeats N] [--unpinned]

Connections are kept alive, each posts again as soon as its answer is whole. A load on a peer is a server of its own;
peers take turns within a repeat. A figure is the median of the repeats, with the lowest and the highest; a ratio is
made within each repeat first. The full run takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from harness import BENCH, ROOT, Cores, Server, cpu_seconds, number, ours, pinned, progress, serve, spread

PEERS = {"ours": "ours", "b": "http.server"}


class Load(NamedTuple):
    """`connections` post `body` to the app `app` of bench/apps, whose peer is the program `peer` of bench/peers."""

    title: str
    app: str
    peer: str
    connections: int
    body: dict[str, Any]


TEXT = {"TEXT": "What is the capital of France?"}
LOADS = {
    "posts-1": Load("JSON posts, 1 connection", "answers", "http_answers.py", 1, TEXT),
    "posts-16": Load("JSON posts, 16 connections", "answers", "http_answers.py", 16, TEXT),
    "streams-1": Load("streams of 5 events, 1 connection", "tokens", "http_queue.py", 1, {"COUNT": 5}),
    "streams-16": Load("streams of 5 events, 16 connections", "tokens", "http_queue.py", 16, {"COUNT": 5}),
}


def command(peer: str, load: Load, tree: Path = ROOT) -> list[str]:
    """Name the command of a peer's server; ours as it is in `tree`, with one slot, as by default, and a place each."""
    if peer == "ours":
        return ours(1, "--queue", str(load.connections), tree=tree, app=load.app)
    return [sys.executable, str(BENCH / "peers" / load.peer)]


def drive(server: Server, cores: Cores, load: Load, seconds: float) -> dict[str, Any]:
    """Put `load` on `server` after a tenth of it that does not count; return the figures."""
    post(server, cores, load, seconds / 10)
    used = cpu_seconds(server.pid)
    result = post(server, cores, load, seconds)
    requests = max(1, result["requests"])
    return {
        "requests/s": requests / result["wall"],
        "p50 us": result["us"]["p50"],
        "p99 us": result["us"]["p99"],
        "CPU us/request": (cpu_seconds(server.pid) - used) / requests * 1e6,
        "generator %": 100 * result["cpu"] / result["wall"],
        "failures": result["failures"],
        "failure": result["failure"],
    }


def post(server: Server, cores: Cores, load: Load, seconds: float) -> dict[str, Any]:
    arguments = [str(server.port), str(load.connections), str(seconds), json.dumps(load.body)]
    program = [sys.executable, str(BENCH / "postgen.py"), *arguments]
    done = subprocess.run(program, stdout=subprocess.PIPE, check=True, preexec_fn=pinned(cores.generator))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(cores: Cores, repeats: int, seconds: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the figures by load and peer, one of each repeat."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {load: {peer: [] for peer in PEERS} for load in LOADS}
    for turn in range(repeats):
        for name, load in LOADS.items():
            for peer in list(PEERS)[:: 1 if turn % 2 else -1]:
                progress(f"repeat {turn + 1}: {load.title}: {PEERS[peer]}")
                with serve(command(peer, load), cores.server) as server:
                    runs[name][peer].append(drive(server, cores, load, seconds))
    return runs


def report(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> bool:
    """Print a table; return whether nothing failed."""
    columns = ["requests/s", "p50 us", "p99 us", "CPU us/request", "generator %"]
    print(f"  {'':<50}" + "".join(f"{column:>26}" for column in columns))
    failures = 0
    for name, peers in runs.items():
        for peer, figures in peers.items():
            cells = "".join(f"{spread([run[column] for run in figures]):>26}" for column in columns)
            print(f"  {LOADS[name].title + ': ' + PEERS[peer]:<50}{cells}")
            failures += sum(run["failures"] for run in figures)
        pairs = zip(peers["ours"], peers["b"], strict=True)
        ratios = [mine["requests/s"] / theirs["requests/s"] for mine, theirs in pairs]
        print(f"  {'':<50}{'ours against it: ' + spread(ratios):>26}; the median is {number(median(ratios))}")
    print("no failure" if not failures else f"{failures} FAILURES")
    return not failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short repeat, not for citing")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default 3, and 1 with --quick")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the scheduler")
    arguments = parser.parse_args()
    repeats, seconds = (1, 0.5) if arguments.quick else (arguments.repeats, 3.0)
    return 0 if report(measure(Cores.choose(not arguments.unpinned), repeats, seconds)) else 1


if __name__ == "__main__":
    sys.exit(main())
