"""The Host allow-list: which names are taken, and when it is looked at."""

from __future__ import annotations

import unittest

from inferless_shim.errors import Forbidden
from inferless_shim.hosts import Hosts, canonical, is_loopback
from inferless_shim.http1 import parse_head
from inferless_shim.values import host_names


def refused(hosts: Hosts, host: str | None) -> bool:
    """Whether a request with this Host field is refused."""
    line = b"" if host is None else b"Host: " + host.encode() + b"\r\n"
    version = b"1.0" if host is None else b"1.1"
    request = parse_head(b"GET / HTTP/" + version + b"\r\n" + line + b"\r\n")
    try:
        hosts.check(request)
    except Forbidden as error:
        assert "--allowed-host" in error.message
        return True
    return False


class Check(unittest.TestCase):
    def test_loopback(self) -> None:
        """On loopback the names of this machine are taken, whatever the port, case and last dot; no other is."""
        hosts = Hosts("127.0.0.1", "127.0.0.1", ())
        for host in (
            "localhost", "localhost:8000", "LOCALHOST:", "localhost.", "app.localhost", "a.b.Localhost.:80",
            "127.0.0.1", "127.0.0.1:9000", "127.255.255.254", "[::1]", "[::1]:80", "[0:0:0:0:0:0:0:1]:80",
        ):  # fmt: skip
            with self.subTest(host):
                self.assertFalse(refused(hosts, host))
        for host in (
            "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost", "localhost..", "127.1",
            "127.0.0.256", "127.0.0.01", "127.evil", "128.0.0.1", "10.0.0.1", "0.0.0.0", "2130706433", "[::2]", "[::]",
            "[::ffff:127.0.0.1]", "[::1::]", "app.localhost.example",
        ):  # fmt: skip
            with self.subTest(host):
                self.assertTrue(refused(hosts, host))

    def test_without_host(self) -> None:
        """HTTP/1.0 without a Host passes: no browser speaks that."""
        self.assertFalse(refused(Hosts("127.0.0.1", "127.0.0.1", ()), None))

    def test_absolute_form(self) -> None:
        """The name in an absolute target counts, as it does to a proxy; the field beside it does not."""
        hosts = Hosts("127.0.0.1", "localhost", ())
        request = parse_head(b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with self.assertRaises(Forbidden):
            hosts.check(request)

    def test_elsewhere(self) -> None:
        """On other addresses every name is taken, unless some are listed: then those, and this machine's."""
        for bound in ("0.0.0.0", "::", "192.0.2.1"):
            self.assertFalse(refused(Hosts(bound, bound, ()), "anything.example"))
            listed = Hosts(bound, bound, host_names("api.example.org"))
            answers = [refused(listed, host) for host in ("api.example.org:443", "API.example.org.", "localhost:8000")]
            self.assertEqual(answers, [False] * 3)
            self.assertTrue(refused(listed, "anything.example"))
            self.assertFalse(refused(listed, f"[{bound}]:1" if ":" in bound else f"{bound}:1"))

    def test_probes(self) -> None:
        """Where others reach it, addresses are taken beside what is listed, as probes call by them; names are not."""
        listed = Hosts("0.0.0.0", "0.0.0.0", host_names("api.example.org"))
        answers = [
            refused(listed, host) for host in ("10.1.2.3:8000", "[fd00::7]:8000", "127.0.0.1", "10.1.2.3.example")
        ]
        self.assertEqual(answers, [False, False, False, True])

    def test_bound_name(self) -> None:
        """The name in --host is taken, which on loopback may be one of the hosts file."""
        self.assertFalse(refused(Hosts("127.0.1.1", "Workstation", ()), "workstation:8000"))
        self.assertFalse(refused(Hosts("fd00::1", "fd00:0::1", ("x",)), "[fd00::1]:8000"))

    def test_listed(self) -> None:
        """A listed name is taken exactly; one with a dot in front with all that is below it."""
        hosts = Hosts("127.0.0.1", "127.0.0.1", host_names("a.example, .b.example 192.0.2.7 [2001:db8:0::7]"))
        for host in ("a.example", "b.example", "x.b.example", "y.x.B.example.:1", "192.0.2.7", "[2001:db8::7]:1"):
            with self.subTest(host):
                self.assertFalse(refused(hosts, host))
        for host in ("x.a.example", "xb.example", ".a.example", "b.example.evil.example", "192.0.2.8", "[2001:db8::8]"):
            with self.subTest(host):
                self.assertTrue(refused(hosts, host))

    def test_canonical(self) -> None:
        """A name is compared without port, case and one last dot; an address in its one short form."""
        for host, expected in (
            ("A.Example:80", "a.example"),
            ("a.example.", "a.example"),
            ("[2001:DB8:0::1]:80", "[2001:db8::1]"),
            ("[not::an::address]", "[not::an::address]"),
        ):
            self.assertEqual(canonical(host), expected)

    def test_is_loopback(self) -> None:
        """127.0.0.0/8 and ::1, also as IPv4 looks to a socket for both; a name is not an address."""
        for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
            self.assertTrue(is_loopback(address))
        for address in ("0.0.0.0", "::", "192.0.2.1", "localhost", "", "::ffff:192.0.2.1"):
            self.assertFalse(is_loopback(address))


if __name__ == "__main__":
    unittest.main()
