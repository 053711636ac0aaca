"""Who asks, behind a proxy: what X-Forwarded-For and -Proto are worth, and from whom."""

from __future__ import annotations

import unittest

from inferless_shim.http1 import parse_head
from inferless_shim.proxies import Proxies
from inferless_shim.values import networks


def seen(trusted: str, peer: str, *fields: str) -> tuple[str, str | None]:
    head = "\r\n".join(["GET / HTTP/1.1", "Host: a", *fields, "", ""])
    return Proxies(networks(trusted)).seen_through(parse_head(head.encode("latin-1")), peer)


class SeenThrough(unittest.TestCase):
    def test_untrusted(self) -> None:
        """What a client says of itself is not believed, nor what any proxy says if none is trusted."""
        for trusted in ("", "10.0.0.0/8"):
            answer = seen(trusted, "192.0.2.1", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https")
            self.assertEqual(answer, ("192.0.2.1", None))

    def test_address(self) -> None:
        """The client is the rightmost address that is no trusted proxy's; what is malformed makes it the peer."""
        for value, client in (
            ("192.0.2.1", "192.0.2.1"),
            ("203.0.113.9, 192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, 10.1.1.1,10.2.2.2 ", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("unknown, 192.0.2.1", "192.0.2.1"),  # what the client made up is not looked at
            ("10.3.3.3, 10.1.1.1", "10.3.3.3"),  # the first of our own machines asks
            ("192.0.2.1, unknown", "10.0.0.1"),
            ("192.0.2.1, unknown, 10.1.1.1", "10.0.0.1"),
            ("192.0.2.1,", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("192.0.2.1:80", "10.0.0.1"),
            ("192.0.2.01", "10.0.0.1"),
            ("\xe9", "10.0.0.1"),
        ):
            with self.subTest(value):
                self.assertEqual(seen("10.0.0.0/8", "10.0.0.1", f"X-Forwarded-For: {value}")[0], client)
        self.assertEqual(seen("10.0.0.0/8", "10.0.0.1")[0], "10.0.0.1")

    def test_several_fields(self) -> None:
        """Several lines are one list."""
        lines = ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2, 10.1.1.1"]
        self.assertEqual(seen("10.0.0.0/8", "10.0.0.1", *lines)[0], "192.0.2.2")

    def test_scheme(self) -> None:
        """The scheme is what a trusted proxy says, if that is one of two words."""
        for value, scheme in (("https", "https"), ("HTTP", "http"), ("https, http", None), ("wss", None), ("", None)):
            with self.subTest(value):
                self.assertEqual(seen("10.0.0.1", "10.0.0.1", f"X-Forwarded-Proto: {value}")[1], scheme)
        self.assertEqual(seen("10.0.0.1", "10.0.0.1", "X-Forwarded-For: x", "X-Forwarded-Proto: https")[1], "https")

    def test_other_fields(self) -> None:
        """X-Forwarded-Host, Forwarded and X-Real-IP are not looked at."""
        fields = ["X-Forwarded-Host: evil", "Forwarded: for=192.0.2.1;proto=https", "X-Real-IP: 192.0.2.1"]
        self.assertEqual(seen("10.0.0.1", "10.0.0.1", *fields), ("10.0.0.1", None))

    def test_mapped_peer(self) -> None:
        """On a socket for both, an IPv4 peer is the address that it is."""
        self.assertEqual(seen("", "::ffff:192.0.2.1")[0], "192.0.2.1")
        self.assertEqual(seen("10.0.0.0/8", "::ffff:10.0.0.1", "X-Forwarded-For: 192.0.2.1")[0], "192.0.2.1")
        self.assertEqual(seen("fd00::/8", "fd00::1", "X-Forwarded-For: 192.0.2.1")[0], "192.0.2.1")


if __name__ == "__main__":
    unittest.main()
