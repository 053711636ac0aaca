"""Cross-origin rules as functions: whose page it is, and what is a preflight."""

from __future__ import annotations

import unittest

from inferless_shim import origins
from inferless_shim.errors import Forbidden
from inferless_shim.http1 import Request, parse_head

CORS = ("https://chat.example",)


def request(*fields: str, method: str = "GET") -> Request:
    return parse_head("\r\n".join([f"{method} / HTTP/1.1", *fields, "", ""]).encode())


class Own(unittest.TestCase):
    def test_scheme(self) -> None:
        """A page is ours if its host is and its scheme is the one that the client speaks; unknown, it is either."""
        for origin, host, own in (
            ("http://a.example:8000", "a.example:8000", {"http", None}),
            ("https://a.example:8000", "a.example:8000", {"https", None}),
            ("https://a.example", "a.example:443", {"https", None}),
            ("http://a.example", "a.example:80", {"http", None}),
            ("http://a.example", "a.example:443", set()),
            ("https://a.example", "a.example:80", set()),
            ("https://a.example:8443", "a.example", set()),
            ("http://[::1]", "[::1]:80", {"http", None}),
            ("null", "null", set()),
            ("http://", "", set()),
            ("ftp://a.example", "a.example", set()),
        ):
            with self.subTest(origin=origin, host=host):
                found = {each for each in ("http", "https", None) if origins.is_own(origin, host, each)}
                self.assertEqual(found, own)

    def test_check(self) -> None:
        """Another scheme is another origin, where the client's is known."""
        page = request("Host: a.example", "Origin: http://a.example")
        origins.check(page, (), "http")
        origins.check(page, (), None)
        with self.assertRaises(Forbidden):
            origins.check(page, (), "https")


class Preflights(unittest.TestCase):
    def test_is_preflight(self) -> None:
        """OPTIONS, an allowed Origin, and the method that is asked about: all three."""
        asked = ["Host: a", "Origin: https://CHAT.example", "Access-Control-Request-Method: POST"]
        self.assertTrue(origins.is_preflight(request(*asked, method="OPTIONS"), CORS))
        self.assertFalse(origins.is_preflight(request(*asked), CORS))
        self.assertFalse(origins.is_preflight(request(*asked, method="OPTIONS"), ()))
        for missing in range(1, 3):
            fields = [field for index, field in enumerate(asked) if index != missing]
            self.assertFalse(origins.is_preflight(request(*fields, method="OPTIONS"), CORS))


if __name__ == "__main__":
    unittest.main()
