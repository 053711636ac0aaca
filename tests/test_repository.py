"""What is asked of the repository, as tables; no HTTP."""

from __future__ import annotations

import json
import unittest

from inferless_shim.errors import BadRequest
from inferless_shim.repository import check_control, read_index


class Repository(unittest.TestCase):
    def test_read_index(self) -> None:
        """The index takes no body, or says whether it is for those that are ready alone."""
        for body, ready in ((b"", False), (b" ", False), (b"{}", False), (b'{"ready": true}', True)):
            self.assertIs(read_index(body), ready)
        for body, words in ((b'{"ready": 1}', "true or false"), (b"[]", "JSON object"), (b"{", "not valid JSON")):
            with self.subTest(body), self.assertRaisesRegex(BadRequest, words):
                read_index(body)

    def test_check_control(self) -> None:
        """Load and unload take what changes nothing; another configuration or other files are refused."""
        for body in (b"", b"{}", b'{"parameters": {}}', b'{"parameters": {"unload_dependents": false}}'):
            check_control(body)
        for parameters, words in (
            ({"config": "{}"}, '"config" is not supported'),
            ({"file:1/model.onnx": ""}, '"file:1/model.onnx" is not supported'),
            (5, "parameters must be an object"),
        ):
            with self.subTest(words), self.assertRaisesRegex(BadRequest, words):
                check_control(json.dumps({"parameters": parameters}).encode())
        with self.assertRaisesRegex(BadRequest, "JSON object"):
            check_control(b'"x"')


if __name__ == "__main__":
    unittest.main()
