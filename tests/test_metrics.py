"""Counters, distributions and Prometheus's text: nothing that only grows ever shrinks, and nothing breaks a line."""

from __future__ import annotations

import random
import threading
import unittest
from functools import reduce
from operator import add

from inferless_shim.metrics import (
    Counter,
    Distribution,
    Family,
    Histogram,
    Sample,
    counter,
    exposition,
    gauge,
    labelled,
    shown,
)
from tests.support import TestCase, read_metrics


class Text(TestCase):
    """The exposition format, byte by byte."""

    def test_exposition(self) -> None:
        """Help, type, samples: a line each, LF after every one."""
        families = [
            counter("a_total", "How many.", 3),
            gauge("b", "How much.", 0.5),
            labelled("c", "gauge", "Which.", "state", {"on": True, "off": False}),
        ]
        self.assertEqual(
            exposition(families).decode(),
            "# HELP a_total How many.\n# TYPE a_total counter\na_total 3\n"
            "# HELP b How much.\n# TYPE b gauge\nb 0.5\n"
            '# HELP c Which.\n# TYPE c gauge\nc{state="on"} 1\nc{state="off"} 0\n',
        )

    def test_exposition_histogram(self) -> None:
        """Buckets are cumulative and inclusive, the last one is +Inf and equals the count; the sum is of all values."""
        seconds = Histogram(0.5, 1.0)
        for value in (0.1, 0.5, 0.7, 5.0):
            seconds.observe(value)
        self.assertEqual(
            exposition([seconds.read().family("s_seconds", "Long.")]).decode().splitlines()[2:],
            [
                's_seconds_bucket{le="0.5"} 2',
                's_seconds_bucket{le="1"} 3',
                's_seconds_bucket{le="+Inf"} 4',
                "s_seconds_sum 6.3",
                "s_seconds_count 4",
            ],
        )

    def test_exposition_escapes(self) -> None:
        """A quote, a backslash or a line feed in a label's value or in a help text neither ends it nor a line."""
        hostile = 'a"b\\c\nd} 7\n'
        text = exposition([Family("a", "gauge", "x\\y\nz", [Sample("", {"name": hostile}, 1)])]).decode()
        self.assertEqual(text, '# HELP a x\\\\y\\nz\n# TYPE a gauge\na{name="a\\"b\\\\c\\nd} 7\\n"} 1\n')
        self.assertEqual(read_metrics(text)["a"].samples, {("a", (("name", hostile),)): 1})

    def test_exposition_is_utf_8(self) -> None:
        """What is no text, as half a surrogate pair, becomes a question mark."""
        self.assertIn(b'{n="\xc3\xa9?"}', exposition([Family("a", "gauge", "", [Sample("", {"n": "é\udc80"}, 1)])]))

    def test_exposition_refuses_one_name_twice(self) -> None:
        """Two families of one name would mix."""
        with self.assertRaisesRegex(ValueError, "two metrics are called a"):
            exposition([gauge("a", "", 1), gauge("a", "", 1)])

    def test_shown(self) -> None:
        """Whole numbers without a point, others exactly, infinity as Prometheus writes it."""
        cases = [(0, "0"), (1.0, "1"), (0.1, "0.1"), (2.5e-05, "2.5e-05"), (2**60, str(2**60)), (float("inf"), "+Inf")]
        for value, text in cases:
            with self.subTest(value):
                self.assertEqual(shown(value), text)


class Counts(TestCase):
    def test_counter(self) -> None:
        """Each set of labels has its own count; `by=0` makes it known."""
        requests = Counter("route", "status")
        requests.add("/", "200")
        requests.add("/", "200", by=2)
        requests.add("/", "404", by=0)
        self.assertEqual(requests.read(), {("/", "200"): 3, ("/", "404"): 0})
        family = requests.family("r_total", "")
        self.assertEqual(family.samples[0], Sample("", {"route": "/", "status": "200"}, 3))

    def test_counter_without_labels_begins_at_0(self) -> None:
        """It is there before it has counted anything; one with labels has nothing to say then."""
        self.assertEqual(Counter().family("a_total", "").samples, [Sample("", {}, 0)])
        self.assertEqual(Counter("kind").family("a_total", "").samples, [])

    def test_from_many_threads(self) -> None:
        """None is lost when several threads count at once."""
        count, spread = Counter(), Histogram(1.0)

        def work() -> None:
            for _ in range(2000):
                count.add()
                spread.observe(0.1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual(count.read(), {(): 8000})
        self.assertEqual((spread.read().counts, spread.read().billionths), ([8000, 0], 800_000_000_000))


class Sums(TestCase):
    def test_sum_does_not_depend_on_the_order(self) -> None:
        """Floats added in another order give another sum, which may be smaller: a counter that goes back."""
        draw = random.Random(7)
        parts = [Distribution((1.0,)) for _ in range(50)]
        for part in parts:
            for _ in range(20):
                part.observe(draw.random() / 3)
        sums = set()
        floats = set()
        for _ in range(50):
            draw.shuffle(parts)
            total = Distribution((1.0,))
            for part in parts:
                total.add(part.counts, part.billionths)
            sums.add(total.billionths)
            floats.add(reduce(add, (part.billionths / 1e9 for part in parts)))  # sum() compensates from 3.12 on
        self.assertEqual(len(sums), 1)
        self.assertGreater(len(floats), 1)  # so that the test could fail

    def test_copy_is_its_own(self) -> None:
        """What is read does not change with what is observed later."""
        histogram = Histogram(1.0)
        before = histogram.read()
        histogram.observe(2.0)
        self.assertEqual(before.counts, [0, 0])
        self.assertEqual(histogram.read().counts, [0, 1])


class Reader(TestCase):
    """The tests' own reader of the format refuses what Prometheus would misread."""

    def test_read_metrics_refuses(self) -> None:
        """A check that lets everything pass is none."""
        head = "# HELP a x\n# TYPE a "
        buckets = f'{head}histogram\na_bucket{{le="1"}} 2\na_bucket{{le="+Inf"}} 3\n'
        wrong = [
            "a 1\n",  # no type
            f"{head}gauge\na 1",  # no line feed at the end
            f"{head}counter\na 1\n",  # a counter without _total
            "# HELP a_total x\n# TYPE a_total counter\na_total -1\n",
            f"{head}gauge\na 1\na 1\n",
            f"{head}gauge\nb 1\n",
            f'{head}gauge\na{{n="x\\q"}} 1\n',
            f'{head}gauge\na{{n="x" 1\n',
            f"{head}gauge\na one\n",
            f"{head}gauge\na 1\n{head}gauge\n",
            f"{buckets}a_sum 1\na_count 4\n",
            f'{head}histogram\na_bucket{{le="1"}} 2\na_bucket{{le="+Inf"}} 1\na_sum 1\na_count 1\n',
            f'{head}histogram\na_bucket{{le="1"}} 2\na_sum 1\na_count 2\n',
            f"{buckets}a_count 3\n",
        ]
        for text in wrong:
            with self.subTest(text), self.assertRaises(AssertionError):
                read_metrics(text)
        read_metrics(f"{buckets}a_sum 1\na_count 3\n")


if __name__ == "__main__":
    unittest.main()
