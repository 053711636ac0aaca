"""Clients that never read: what they cost another stream's sends, and how much memory they take.

    python bench/slow_readers.py [--quick] [--unpinned]

One server process. The app times each `send_streamed_output` of one stream that is read, alone and in company: of 50
streams that are read, of 50 that nobody reads, and of 50 followers of that same stream that never read. The first
company is there because 50 streams cost something, read or not. Rounds are interleaved; ratios are made within each.
A second process, with a small log cap, then has 50 unread streams run far past the cap.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from harness import MB, Cores, Server, cpu_seconds, generate, generator, ours, pinned, progress, rss, serve, spread

CROWD = 50
STREAM = 64 * 1024  # what the README allows a running stream beside its log
MIB = 1 << 20
# 1,000 events/s of 160 bytes; the first 2 s, in which buffers fill, are not timed.
TIMED = {"PERIOD_US": 1000, "SIZE": 100, "TIMED": 2000}
# 100 events/s of 560 bytes: what nobody reads fills the socket within seconds and stays below the log's cap.
COMPANY = {"PERIOD_US": 10_000, "SIZE": 500}


def post(inputs: dict[str, int]) -> bytes:
    body = json.dumps(inputs)
    return f"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@contextmanager
def never_reading(server: Server, request: bytes) -> Iterator[list[socket.socket]]:
    """Have CROWD clients send `request` and read nothing, with the least room for what comes, until the block ends."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket()) for _ in range(CROWD)]
        for client in crowd:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(request)
        yield crowd


def hanging(crowd: list[socket.socket]) -> int:
    """Count the connections that are still established (TCP_INFO begins with the state; 1 is ESTABLISHED)."""
    return sum(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1 for client in crowd)


@contextmanager
def reading(server: Server, cores: Cores, inputs: dict[str, int]) -> Iterator[None]:
    """Have CROWD clients read a stream each until the block ends."""
    command = generator(server.port, inputs, n=CROWD)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=pinned(cores.generator))
    try:
        yield
    finally:
        process.kill()
        process.wait()


# ---- what a send takes ----


class Timing:
    """The measured stream: started, perhaps followed by others, read to its end."""

    def __init__(self, server: Server, events: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.connection.request("POST", "/infer", json.dumps(TIMED | {"COUNT": TIMED["TIMED"] + events}))
        self.response = self.connection.getresponse()
        self.path = f"/streams/{self.response.headers['Stream-Id']}"

    def finish(self) -> dict[str, float]:
        """Read on; return the quantiles in microseconds that the last event of the app brings."""
        last = [b"", b""]
        for line in self.response:
            if line.startswith(b"data: "):
                last = [last[1], line[6:]]
        self.connection.close()
        took = json.loads(json.loads(last[0])["OUT"])
        return {name: took[name] / 1e3 for name in ("p50", "p99", "p999")}


def measure(company: str, server: Server, cores: Cores, events: int) -> dict[str, float]:
    """Time the measured stream in `company`; add how many of the crowd still hung at the end."""
    seconds = (TIMED["TIMED"] + events) * TIMED["PERIOD_US"] / 1e6 + 3
    inputs = COMPANY | {"COUNT": int(seconds * 1e6 / COMPANY["PERIOD_US"])}
    if company == "alone":
        return Timing(server, events).finish()
    if company == "50 streams, read":
        with reading(server, cores, inputs):
            time.sleep(1)
            return Timing(server, events).finish()
    if company == "50 streams, never read":
        with never_reading(server, post(inputs)) as crowd:
            time.sleep(1)
            return Timing(server, events).finish() | {"hanging": hanging(crowd)}
    timing = Timing(server, events)
    with never_reading(server, get(timing.path)) as crowd:
        return timing.finish() | {"hanging": hanging(crowd)}


# The company of each row, and the row that it is compared with.
ROWS = {
    "alone": "alone",
    "50 streams, read": "alone",
    "50 streams, never read": "50 streams, read",
    "50 followers, never read": "alone",
}


def measure_sends(cores: Cores, rounds: int, events: int) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {company: [] for company in ROWS}
    with serve(ours(CROWD + 4), cores.server) as server:
        for turn in range(rounds):
            for company in ROWS:
                progress(f"round {turn + 1}: {company}")
                runs[company].append(measure(company, server, cores, events))
                settle(server)
    return runs


def settle(server: Server, idle: float = 1.0, patience: float = 30) -> None:
    """Wait until the server has used next to no CPU for `idle` seconds: what was left running has ended."""
    deadline = time.monotonic() + patience
    used = cpu_seconds(server.pid)
    while time.monotonic() < deadline:
        time.sleep(idle)
        before, used = used, cpu_seconds(server.pid)
        if used - before <= 0.03 * idle:
            return


def print_sends(runs: dict[str, list[dict[str, float]]]) -> bool:
    """Print a row for each company; return whether no crowd more than doubled the p99.9."""
    print("send_streamed_output in the app, us: median (lowest–highest) of the rounds")
    print(f"  {'':<26}{'p50':>24}{'p99':>24}{'p99.9':>24}   p99.9 against")
    fine = True
    for company, other in ROWS.items():
        cells = "".join(f"{spread([run[q] for run in runs[company]]):>24}" for q in ("p50", "p99", "p999"))
        ratios = [mine["p999"] / theirs["p999"] for mine, theirs in zip(runs[company], runs[other], strict=True)]
        note = "" if company == other else f"{other}: {spread(ratios)}"
        if "never" in company:
            fine &= median(ratios) <= 2
            still = min(run["hanging"] for run in runs[company])
            note += f", wanted at most 2: {'yes' if median(ratios) <= 2 else 'NO'}; {still:.0f} of {CROWD} still hung"
        print(f"  {company:<26}{cells}   {note}")
    return fine


# ---- memory ----


def measure_memory(cores: Cores, times_cap: int) -> dict[str, Any]:
    """Have CROWD unread streams write `times_cap` times the log's cap each; return what the server grew by, in MB."""
    cap = MIB
    with serve(ours(CROWD, "--log-cap", str(cap)), cores.server) as server:
        generate(server, cores, {"COUNT": 10}, n=CROWD)  # so that threads and first allocations are not counted
        settle(server)
        before = rss(server.pid)
        with never_reading(server, post({"SIZE": 1000, "COUNT": times_cap * cap // 1000})):
            time.sleep(1)
            settle(server)
            after, peak = rss(server.pid), rss(server.pid, "VmHWM")
    bound = CROWD * (cap * 9 / 8 + STREAM) / MB
    return {"before": before, "grew": after - before, "peak": peak - before, "bound": bound}


def print_memory(memory: dict[str, Any], times_cap: int) -> bool:
    fine: bool = memory["peak"] <= memory["bound"]
    print(f"\n{CROWD} streams that nobody reads, each {times_cap} times its log's cap of 1 MiB")
    print(
        f"  the server had {memory['before']:.1f} MB, grew by {memory['grew']:.1f} MB and by {memory['peak']:.1f} MB "
        f"at its peak; the bound that the README states is {memory['bound']:.1f} MB: {'within' if fine else 'ABOVE'}"
    )
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: less than a minute, not for citing")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the scheduler")
    arguments = parser.parse_args()
    cores = Cores.choose(not arguments.unpinned)
    rounds, events = (1, 2000) if arguments.quick else (3, 8000)
    fine = print_sends(measure_sends(cores, rounds, events))
    fine &= print_memory(measure_memory(cores, times_cap=4), times_cap=4)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
