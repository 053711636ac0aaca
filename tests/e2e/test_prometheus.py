"""/metrics as Prometheus's own Python library reads it."""

from __future__ import annotations

import importlib.util
import unittest

from tests.support import ROOT, Client, ServerProcess, ask, read_metrics


@unittest.skipUnless(importlib.util.find_spec("prometheus_client"), "prometheus_client is not installed")
class Prometheus(unittest.TestCase):
    def test_read_by_prometheus(self) -> None:
        """Its parser finds the families, kinds, labels and values that our own strict reader finds."""
        from prometheus_client.parser import text_string_to_metric_families

        with ServerProcess(ROOT / "models" / "echo") as server:
            for n in range(3):
                ask(server.port, "POST", "/infer", {"TEXT": "one two three", "PAUSE_MS": 3 * n})
            ask(server.port, "GET", "/nope")
            with Client(server.port) as client:
                client.request("POST", "/infer", {"TEXT": "cut off", "PAUSE_MS": 200})
                text = ask(server.port, "GET", "/metrics").body.decode()
        ours = read_metrics(text)
        theirs = {
            family.name + ("_total" if family.type == "counter" else ""): family
            for family in text_string_to_metric_families(text)
        }
        self.assertEqual(set(theirs), set(ours))
        for name, family in theirs.items():
            with self.subTest(name):
                self.assertEqual((family.type, family.documentation), (ours[name].kind, ours[name].help))
                samples = {(each.name, tuple(each.labels.items())): each.value for each in family.samples}
                self.assertEqual(samples, ours[name].samples)
        self.assertEqual(ours["shim_streams_started_total"].value(), 4)
        self.assertEqual(ours["shim_subscribers"].value(), 1)


if __name__ == "__main__":
    unittest.main()
