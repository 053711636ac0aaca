"""How many connections each client has: IPv4 by address, IPv6 by /64."""

from __future__ import annotations

import unittest

from inferless_shim.clients import Clients


class ClientsTests(unittest.TestCase):
    def test_bound(self) -> None:
        """As many as the bound, and one more for each that has left; others don't count."""
        clients = Clients(2)
        self.assertEqual([clients.enter("192.0.2.1") for _ in range(4)], [True, True, False, False])
        self.assertTrue(clients.enter("192.0.2.2"))
        clients.leave("192.0.2.1")
        self.assertEqual([clients.enter("192.0.2.1") for _ in range(2)], [True, False])

    def test_nothing_is_kept_of_who_has_left(self) -> None:
        """Addresses without a connection take no memory, those that were refused included."""
        clients = Clients(1)
        for number in range(256):
            clients.enter(f"192.0.2.{number}")
            clients.enter(f"192.0.2.{number}")
        for number in range(256):
            clients.leave(f"192.0.2.{number}")
        self.assertEqual(clients._present, {})

    def test_ipv6(self) -> None:
        """All addresses of a /64 are one client; another /64 is another."""
        clients = Clients(1)
        self.assertTrue(clients.enter("2001:db8:0:1::1"))
        self.assertFalse(clients.enter("2001:db8:0:1:ffff:ffff:ffff:ffff"))
        self.assertTrue(clients.enter("2001:db8:0:2::1"))
        clients.leave("2001:db8:0:1::2")
        self.assertTrue(clients.enter("2001:db8:0:1::3"))

    def test_no_bound(self) -> None:
        """0 is no bound, and counts nobody."""
        clients = Clients(0)
        self.assertTrue(all(clients.enter("192.0.2.1") for _ in range(100)))
        clients.leave("192.0.2.1")
        self.assertEqual(clients._present, {})

    def test_exempt(self) -> None:
        """A proxy is not counted, nor is a socket without addresses refused."""
        clients = Clients(1, lambda address: address == "10.0.0.1")
        self.assertTrue(all(clients.enter("10.0.0.1") for _ in range(100)))
        clients.leave("10.0.0.1")
        self.assertTrue(clients.enter(""))
        clients.leave("")
        self.assertEqual(clients._present, {})


if __name__ == "__main__":
    unittest.main()
