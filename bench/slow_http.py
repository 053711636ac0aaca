"""1,000 slow clients of three kinds against one good one: what they cost it, and when they are rid of.

    python bench/slow_http.py [--connections N] [--modes H,B,X] [--seconds S] [--unpinned]

slowhttptest attacks our server on 127.0.0.1 (-H: a head that never ends; -B: a body that never ends; -X: a replayed
stream of megabytes that is hardly read) while a client bound to 127.0.0.2 posts a stream of five events ten times a
second. Wanted: its p99 to the first event stays within twice that of a quiet time before, nothing of it fails, and the
attackers' connections and threads are gone within the deadline of what they do slowly. Without slowhttptest there is
nothing to measure, and it says so. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harness import Cores, Server, ours, pinned, progress, serve

TOOL = "slowhttptest"
GOOD = ("127.0.0.2", 0)
PERIOD = 0.1  # seconds from one post of the good client to the next
RATE = 200  # connections that the attacker opens a second
READ_TIMEOUT, STALL = 10, 30  # the server's defaults, in seconds
SLACK = 5  # seconds: sweeps, and the machine
SPARE = 6  # threads more than before that do not count: the good client's, and those of its last streams
REPLAYED = {"COUNT": 6000, "SIZE": 500}  # 3.6 MB


class Mode(NamedTuple):
    """What slowhttptest does, and within how many seconds the server has to be rid of it."""

    title: str
    flags: list[str]
    deadline: float


MODES = {
    "H": Mode("slow heads", ["-H", "-i", "2", "-t", "POST"], READ_TIMEOUT),
    "B": Mode("slow bodies", ["-B", "-i", "2", "-s", "8192"], READ_TIMEOUT),
    "X": Mode("slow readers", ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32"], STALL),
}


class Seen(NamedTuple):
    """The good client's seconds to the first event, in order; how many posts failed; and the server over time."""

    first: list[float]
    failures: int
    last: str  # failure
    threads: list[tuple[float, int]]
    released: float | None  # seconds from the last moment at which all attackers were there


def first_event(server: Server) -> float:
    """Post as the good client; return the seconds from before the connection to the first event. Raises OSError."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30, source_address=GOOD)
    try:
        connection.request("POST", "/infer", json.dumps({"COUNT": 5}))
        response = connection.getresponse()
        line = response.readline()
        took = time.perf_counter() - began
        if response.status != 200 or not line.startswith(b"id:"):
            raise OSError(f"{response.status} {line[:60]!r}")
        if b"event: done" not in response.read():
            raise OSError("no done event")
        return took
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()


def watch(server: Server, goes_on: Callable[[float, int], bool]) -> Seen:
    """Be the good client as long as `goes_on(seconds, threads)`."""
    first: list[float] = []
    threads: list[tuple[float, int]] = []
    failures, last = 0, ""
    began = due = time.monotonic()
    while True:
        now = time.monotonic() - began
        threads.append((now, count_threads(server.pid)))
        if not goes_on(*threads[-1]):
            return Seen(first, failures, last, threads, None)
        try:
            first.append(first_event(server))
        except OSError as error:
            failures, last = failures + 1, str(error)
        due = max(due + PERIOD, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def count_threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))] if ordered else float("inf")


def replayable(server: Server) -> str:
    """Have the server make a long stream; return the path that it is replayed from."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/infer", json.dumps(REPLAYED))
    response = connection.getresponse()
    path = f"/streams/{response.headers['Stream-Id']}"
    response.read()
    connection.close()
    return path


def attack(mode: Mode, server: Server, cores: Cores, connections: int, quiet: Seen) -> Seen:
    """Be the good client while `connections` attackers are there, and until they are gone or are late."""
    before = quiet.threads[-1][1]
    path = replayable(server) if "-X" in mode.flags else "/infer"
    length = round(connections / RATE + mode.deadline + SLACK)
    command = [TOOL, *mode.flags, "-c", str(connections), "-r", str(RATE), "-l", str(length), "-p", "3"]
    command += ["-u", f"http://127.0.0.1:{server.port}{path}"]
    attacker = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pinned(cores.generator)
    )
    peak, full_at, gone_at = 0, 0.0, None

    def goes_on(now: float, threads: int) -> bool:
        nonlocal peak, full_at, gone_at
        if threads >= peak:
            peak, full_at, gone_at = threads, now, None
        elif threads <= before + SPARE:
            gone_at = gone_at or now
        return attacker.poll() is None and now < length

    try:
        seen = watch(server, goes_on)
    finally:
        attacker.kill()
        attacker.wait()
    return seen._replace(released=None if gone_at is None else gone_at - full_at)


def report(mode: Mode, quiet: Seen, seen: Seen, connections: int) -> bool:
    """Print a mode's figures; return whether they are what is wanted."""
    peak = max(threads for _, threads in seen.threads)
    ratio = quantile(seen.first, 0.99) / quantile(quiet.first, 0.99)
    p50, p99 = (
        " -> ".join(f"{1e3 * quantile(each.first, q):.1f}" for each in (quiet, seen)) + " ms" for q in (0.5, 0.99)
    )
    released = (
        "NOT RELEASED" if seen.released is None else f"released {seen.released:.0f} s after the last of them came"
    )
    threads = f"{quiet.threads[-1][1]} -> {peak}"
    print(f"{mode.title}: to the first event p50 {p50}, p99 {p99}, {ratio:.2f} times", flush=True)
    print(f"  {len(seen.first)} posts, {seen.failures} failed {seen.last}; threads {threads}; {released}", flush=True)
    late = seen.released is None or seen.released > mode.deadline + SLACK
    return ratio <= 2 and not seen.failures and not late and peak > connections / 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=1000, metavar="N")
    parser.add_argument("--modes", default="H,B,X", help="with commas")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="of the quiet time before each")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the scheduler")
    arguments = parser.parse_args()
    if shutil.which(TOOL) is None:
        progress(f"{TOOL} is not installed (apt install {TOOL}); nothing was measured")
        return 0
    cores, fine = Cores.choose(not arguments.unpinned), True
    pinned(cores.generator)()
    for name in arguments.modes.split(","):
        with serve(ours(1, "--queue", "100"), cores.server) as server:
            progress(f"{MODES[name].title}: quiet")
            watch(server, lambda now, _: now < 1)
            quiet = watch(server, lambda now, _: now < arguments.seconds)
            progress(f"{MODES[name].title}: attack")
            seen = attack(MODES[name], server, cores, arguments.connections, quiet)
        fine &= report(MODES[name], quiet, seen, arguments.connections)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
