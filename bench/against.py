"""The server before a change against the server after it: the same loads, in turns, on the same cores.

    python bench/against.py BEFORE [AFTER] [--repeats N] [--quick] [--unpinned]

BEFORE and AFTER are folders with a server.py, or revisions of this repository; AFTER is this folder unless it is
given. Each repeat runs every load on both, and begins with the other one next time; a ratio is made within a repeat,
of which the median is shown, with the lowest and the highest. BEFORE twice shows the noise of the machine. Where others
use it, too, the server's CPU time for an event or a request says more than the rate.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import posts
import stream
from harness import BUILD, ROOT, Cores, busy_seconds, ours, progress, serve, spread


class Row(NamedTuple):
    """A load, the figure that counts, its cost in CPU time, and what issue 4 wants of after ÷ before."""

    title: str
    rate: str
    cost: str
    wanted: float
    run: Callable[[Path, Cores, bool], dict[str, Any]]


def streams(name: str) -> Callable[[Path, Cores, bool], dict[str, Any]]:
    """Return what runs one of stream.py's unpaced loads on a tree."""

    def run(tree: Path, cores: Cores, quick: bool) -> dict[str, Any]:
        load = (stream.QUICK if quick else stream.FULL)[name]
        with serve(ours(load.streams, tree=tree), cores.server) as server:
            return stream.drive(server, cores, load)

    return run


def requests(name: str) -> Callable[[Path, Cores, bool], dict[str, Any]]:
    """Return what runs one of posts.py's loads on a tree."""

    def run(tree: Path, cores: Cores, quick: bool) -> dict[str, Any]:
        with serve(posts.command("ours", posts.LOADS[name], tree), cores.server) as server:
            return posts.drive(server, cores, posts.LOADS[name], 0.5 if quick else 3.0)

    return run


ROWS = [
    Row("1 stream, unpaced", "events/s", "CPU us/event", 0.95, streams("1")),
    Row("64 streams, unpaced", "events/s", "CPU us/event", 0.95, streams("64")),
    *(Row(load.title, "requests/s", "CPU us/request", 0.8, requests(name)) for name, load in posts.LOADS.items()),
]
Figures = dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]  # by title: before and after, by repeat


def measure(trees: list[Path], cores: Cores, repeats: int, quick: bool) -> Figures:
    """Run every load on both trees, `repeats` times. Raises RuntimeError if a request failed."""
    results: Figures = {row.title: ([], []) for row in ROWS}
    for turn in range(repeats):
        for row in ROWS:
            for which in (0, 1) if turn % 2 else (1, 0):
                progress(f"repeat {turn + 1}: {row.title}: {'after' if which else 'before'}")
                figures = row.run(trees[which], cores, quick)
                if figures["failures"]:
                    raise RuntimeError(f"{figures['failures']} failures, the first of them: {figures['failure']}")
                results[row.title][which].append(figures)
    return results


def report(results: Figures) -> bool:
    """Print a table; return whether every rate is what issue 4 wants."""
    print(f"  {'':<46}{'before':>32}{'after':>32}{'after ÷ before':>24}{'CPU, after ÷ before':>24}")
    fine = True
    for row in ROWS:
        before, after = results[row.title]

        def ratios(figure: str, old: list[dict[str, Any]] = before, new: list[dict[str, Any]] = after) -> list[float]:
            return [mine[figure] / theirs[figure] for theirs, mine in zip(old, new, strict=True)]

        good = median(ratios(row.rate)) >= row.wanted
        fine &= good
        cells = f"{spread([run[row.rate] for run in before]):>32}{spread([run[row.rate] for run in after]):>32}"
        cells += f"{spread(ratios(row.rate)):>24}{spread(ratios(row.cost)):>24}"
        print(f"  {row.title + ', ' + row.rate:<46}{cells}{'' if good else f'  BELOW {row.wanted:g}'}")
    return fine


def tree_of(name: str) -> Path:
    """Return the folder that `name` is, or that a revision is unpacked to."""
    if (Path(name) / "server.py").exists():
        return Path(name).resolve()
    found = subprocess.run(["git", "-C", str(ROOT), "archive", name], stdout=subprocess.PIPE, check=True)
    folder = BUILD / "trees" / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a folder, or a revision")
    parser.add_argument(
        "after", nargs="?", default=str(ROOT), help="a folder, or a revision; this one if it is left out"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default 5, and 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="one short repeat, not for citing")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the scheduler")
    arguments = parser.parse_args()
    trees = [tree_of(arguments.before), tree_of(arguments.after)]
    cores = Cores.choose(not arguments.unpinned)
    print(f"Python {platform.python_version()}; {cores}; before: {trees[0]}; after: {trees[1]}", flush=True)
    busy, began, mine = busy_seconds(), time.monotonic(), sum(os.times()[:4])
    repeats = 1 if arguments.quick else arguments.repeats
    try:
        results = measure(trees, cores, repeats, arguments.quick)
    except RuntimeError as error:
        progress(str(error))
        return 2
    others = busy_seconds() - busy - (sum(os.times()[:4]) - mine)
    print(f"{repeats} repeats, interleaved; others used {100 * others / (time.monotonic() - began):.0f} % of a core.")
    return 0 if report(results) else 1


if __name__ == "__main__":
    sys.exit(main())
