"""What /metrics says about the store."""

from __future__ import annotations

from collections.abc import Iterator

from ...metrics import Counter, Family, Histogram, gauge

# Seconds: a round trip on one machine, to a store that answers just in time.
ROUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Figures:
    """Counted by whoever does it; any thread."""

    def __init__(self) -> None:
        self.fenced = Counter()
        self.resyncs = Counter()
        self.interrupted = Counter()
        self.rounds = Histogram(*ROUNDS)

    def families(self, *, up: bool, lag: int, unshared: int, mirrors: int) -> Iterator[Family]:
        yield gauge("shim_valkey_up", "1 while the shared store answers.", up)
        yield gauge("shim_valkey_lag_events", "Events that the shared store does not have yet.", lag)
        yield gauge("shim_valkey_unshared_streams", "Streams that other replicas cannot see.", unshared)
        yield gauge("shim_valkey_mirrors", "Streams of other replicas that are kept here.", mirrors)
        fenced = "Streams that ran here while other replicas took this one for dead."
        yield self.fenced.family("shim_valkey_fenced_total", fenced)
        resyncs = "Times that it was looked up how far the shared store has a stream."
        yield self.resyncs.family("shim_valkey_resyncs_total", resyncs)
        yield self.rounds.read().family("shim_valkey_round_seconds", "Time that a round of writing took.")
        interrupted = "Streams of dead replicas that were declared interrupted here."
        yield self.interrupted.family("shim_valkey_interrupted_total", interrupted)
