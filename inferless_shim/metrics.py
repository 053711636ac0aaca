"""Counters, distributions and the text that Prometheus reads of them (exposition format 0.0.4). No I/O.

What only grows never shrinks between two readings, not even by a rounding error, which Prometheus would take for a
restart: so sums are kept in whole billionths, and added in any order they are the same.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BILLION = 1_000_000_000


class Sample(NamedTuple):
    """A line of the text: what is added to the family's name, labels, value."""

    suffix: str
    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """A metric: its name in base units, its kind (`counter`, `gauge`, `histogram`), a sentence, its samples."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


class Counter:
    """Counts by the values of its labels. Any thread. The caller keeps the number of different label values small."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels
        self._lock = threading.Lock()  # guards _counts
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, *values: str, by: int = 1) -> None:
        """Count once more, or `by` times, where the labels have these values, in the labels' order."""
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + by

    def read(self) -> dict[tuple[str, ...], int]:
        with self._lock:
            return dict(self._counts)

    def family(self, name: str, help: str) -> Family:
        """Return what is counted; a counter without labels is 0 before it has counted anything."""
        counts = self.read() or ({} if self.labels else {(): 0})
        samples = [Sample("", dict(zip(self.labels, values, strict=True)), n) for values, n in sorted(counts.items())]
        return Family(name, "counter", help, samples)


class Distribution:
    """How values are spread: `counts[i]` of them are at most `bounds[i]` and above the bound before it.

    The last count has no bound. `billionths` is the sum of the values. Its owner's lock guards it.
    """

    __slots__ = ("billionths", "bounds", "counts")

    def __init__(self, bounds: tuple[float, ...], counts: Iterable[int] = (), billionths: int = 0) -> None:
        self.bounds = bounds
        self.counts = list(counts) or [0] * (len(bounds) + 1)
        self.billionths = billionths

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.billionths += round(value * BILLION)

    def add(self, counts: Iterable[int], billionths: int) -> None:
        """Add what was observed elsewhere, with the same bounds."""
        self.counts = [mine + others for mine, others in zip(self.counts, counts, strict=True)]
        self.billionths += billionths

    def copy(self) -> Distribution:
        return Distribution(self.bounds, self.counts, self.billionths)

    def family(self, name: str, help: str) -> Family:
        """Return it as a histogram, whose buckets hold all that lies below their bound as well."""
        samples, below = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            samples.append(Sample("_bucket", {"le": shown(bound)}, below))
        samples += [Sample("_sum", {}, self.billionths / BILLION), Sample("_count", {}, below)]
        return Family(name, "histogram", help, samples)


class Histogram:
    """A distribution that any thread may add to."""

    def __init__(self, *bounds: float) -> None:
        self._lock = threading.Lock()  # guards _distribution
        self._distribution = Distribution(bounds)

    def observe(self, value: float) -> None:
        with self._lock:
            self._distribution.observe(value)

    def read(self) -> Distribution:
        with self._lock:
            return self._distribution.copy()


def counter(name: str, help: str, value: float) -> Family:
    """Return a counter without labels that is kept elsewhere."""
    return Family(name, "counter", help, [Sample("", {}, value)])


def gauge(name: str, help: str, value: float) -> Family:
    return Family(name, "gauge", help, [Sample("", {}, value)])


def labelled(name: str, kind: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """Return a family with one label, a sample for each of `values`."""
    return Family(name, kind, help, [Sample("", {label: each}, value) for each, value in values.items()])


def exposition(families: Iterable[Family]) -> bytes:
    """Write the text. Raises ValueError for two families of one name, whose samples would mix."""
    lines: list[str] = []
    names: set[str] = set()
    for family in families:
        if family.name in names:
            raise ValueError(f"two metrics are called {family.name}")
        names.add(family.name)
        lines += (f"# HELP {family.name} {escaped(family.help)}", f"# TYPE {family.name} {family.kind}")
        lines += (f"{family.name}{suffix}{braced(labels)} {shown(value)}" for suffix, labels, value in family.samples)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def braced(labels: Mapping[str, str]) -> str:
    pairs = ",".join('{}="{}"'.format(name, escaped(value).replace('"', '\\"')) for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def shown(value: float) -> str:
    """Write a number as Prometheus reads it."""
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)
