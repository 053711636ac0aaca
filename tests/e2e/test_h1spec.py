"""uNetworking's h1spec, a public conformance run of 33 requests, against our server.

It has no licence, so no copy of it is here: H1SPEC names one (`http_test.ts` of github.com/uNetworking/h1spec). Without
it the test is skipped, everywhere: tests/corpus.py holds the same situations in our own words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path

from tests.e2e.wire import TestCase, need, served
from tests.support import ROOT

PATIENCE = 120.0  # seconds; it takes less than one
BIN = Path(__file__).with_name("node_modules") / ".bin"
# The only request that it wants a 2xx for where ours is a 404: it thinks of a server that echoes a POST to /.
ECHO = "Chunked Transfer-Encoding"


class H1specTest(TestCase):
    def test_h1spec(self) -> None:
        """All of it passes, but for the echo of POST / where that is expected to be more than a 404."""
        script = os.environ.get("H1SPEC")
        if not script:
            self.skipTest("H1SPEC names no copy of h1spec's http_test.ts")
        deno = shutil.which("deno", path=f"{BIN}:{os.environ.get('PATH', '')}")
        need(deno, "deno is missing: make e2e installs it")
        server = self.hold(served(ROOT / "models" / "echo", "--allowed-host", "example.com"))
        run = [str(deno), "run", "--no-check", "--no-lock", "--allow-net", script, "127.0.0.1", str(server.port)]
        environment = {**os.environ, "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"}
        ended = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False)
        output = ended.stdout + ended.stderr
        failed = re.findall(r"^❌ ([^:\n]*)", output, re.MULTILINE)
        self.assertEqual([name for name in failed if name != ECHO], [], output)
        count = re.search(r"([0-9]+) out of ([0-9]+) tests passed", output)
        assert count, output
        self.assertEqual(int(count[1]), int(count[2]) - len(failed), output)
        self.assertGreaterEqual(int(count[1]), 32)


if __name__ == "__main__":
    unittest.main()
