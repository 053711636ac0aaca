"""What may be written for a setting, and what it means: times, sizes, counts, names, paths. No I/O.

Each reader takes the text of a flag or of an environment variable, and raises ValueError with what is accepted.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

KIB, MIB = 1024, 1024 * 1024
TIME_UNITS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
SIZE_UNITS = {"": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": 1024 * MIB, "gib": 1024 * MIB}
# 11 days: the kernel takes a connection's timeout in milliseconds of 31 bits, which is 24.
LONGEST_TIME = 1_000_000
LARGEST_SIZE = 2**50
NUMBER_AND_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def quantity(text: str, units: Mapping[str, float]) -> float | None:
    """Read a number and its unit; None if it is not that."""
    match = NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    return float(match[1]) * unit if match and unit else None


def seconds(text: str) -> float:
    """Read a time: `30`, `0.5`, `500ms`, `2m`, `1h`. Raises ValueError with what is accepted."""
    time = quantity(text, TIME_UNITS)
    if time is None:
        raise ValueError(f"{text!r} is not a time; write seconds (30, 0.5) or a number with ms, s, m or h (500ms)")
    if time > LONGEST_TIME:
        raise ValueError(f"{text[:30]!r} is too long; at most {LONGEST_TIME} seconds (11 days) are taken")
    return time


def positive_seconds(text: str) -> float:
    """Read a time above 0. Raises ValueError."""
    time = seconds(text)
    if time <= 0:
        raise ValueError(f"{text!r} is too short; a time above 0 is needed")
    return time


def size(text: str) -> int:
    """Read a size: `4096`, `64K`, `4M`, `1G` (powers of 1,024). Raises ValueError with what is accepted."""
    found = quantity(text, SIZE_UNITS)
    if found is None:
        raise ValueError(f"{text!r} is not a size; write bytes or a number with K, M or G (4M is 4 MiB)")
    if found > LARGEST_SIZE:
        raise ValueError(f"{text[:30]!r} is too large; nobody has that much memory")
    return math.ceil(found)


def positive_size(text: str) -> int:
    """Read a size above 0. Raises ValueError."""
    found = size(text)
    if found < 1:
        raise ValueError(f"{text!r} is too small; a size above 0 is needed")
    return found


def count(text: str) -> int:
    """Read a whole number of at least 0. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def at_least_one(text: str) -> int:
    """Read a whole number of at least 1. Raises ValueError."""
    number = count(text)
    if number < 1:
        raise ValueError(f"{text!r} is too small; at least 1 is needed")
    return number


def port(text: str) -> int:
    """Read a TCP port; 0 lets the system choose. Raises ValueError."""
    number = count(text)
    if number > 65535:
        raise ValueError(f"{text!r} is not a port; ports end at 65535 (0 lets the system choose one)")
    return number


def switch(text: str) -> bool:
    """Read an on/off environment value. Raises ValueError."""
    word = text.strip().lower()
    if word not in {"1", "0", "true", "false", "yes", "no", "on", "off", ""}:
        raise ValueError(f"{text!r} is neither on nor off; write 1 or 0")
    return word in {"1", "true", "yes", "on"}


def origins(text: str) -> tuple[str, ...]:
    """Read exact web origins, separated by commas or spaces. Raises ValueError on `*` or a path."""
    found = []
    for origin in (part.rstrip("/").lower() for part in _parts(text)):
        match = re.fullmatch(r"(http|https)://(?:[0-9a-z._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", origin)
        if not match:
            raise ValueError(f"{origin!r} is not an origin; write it exactly, such as https://example.org")
        # As browsers write it: without the scheme's own port (RFC 6454 §6.2).
        default = {"http": ":80", "https": ":443"}[match[1]]
        found.append(origin.removesuffix(default))
    return tuple(found)


def host_names(text: str) -> tuple[str, ...]:
    """Read names for the Host field, in lower case and without the last dot. Raises ValueError on `*` or a port."""
    found = []
    for part in (part.lower().removesuffix(".") for part in _parts(text)):
        bracketed = part.startswith("[") and part.endswith("]")
        address = part[1:-1] if bracketed else part
        if bracketed or address.count(":") > 1:
            try:
                part = f"[{ipaddress.IPv6Address(address)}]"
            except ValueError:
                raise ValueError(f"{part!r} is not an IPv6 address; write it without a port") from None
        elif not re.fullmatch(r"\.?[0-9a-z_-]+(\.[0-9a-z_-]+)*", part):
            raise ValueError(
                f"{part!r} is not a host's name; write it without scheme and port, such as example.org, "
                "or .example.org for it and all names below it"
            )
        found.append(part)
    return tuple(found)


def networks(text: str) -> tuple[Network, ...]:
    """Read IP addresses and networks, separated by commas or spaces. Raises ValueError."""
    try:
        return tuple(ipaddress.ip_network(part) for part in _parts(text))
    except ValueError as error:
        raise ValueError(f"{error}; write networks as 10.0.0.0/8 or fd00::/8, or single addresses") from None


def _parts(text: str) -> list[str]:
    return text.replace(",", " ").split()


def resolved_path(text: str) -> Path:
    """Read a path, resolved now: the working directory becomes the app's folder later. Raises ValueError."""
    if not text:
        raise ValueError("'' names no folder; write its path, or leave the flag out")
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # nobody's home; links in a circle
        raise ValueError(f"{text!r} names no folder: {error}") from None


def resolved_file(text: str) -> Path:
    """Read a file's path, resolved now as folders are. Raises ValueError."""
    if not text:
        raise ValueError("'' names no file")
    return resolved_path(text)


def model_name(text: str) -> str:
    """Read a model name: what can stand in a URL's path unescaped. Raises ValueError."""
    if not re.fullmatch(r"[0-9A-Za-z._~-]{1,128}", text) or text in (".", ".."):
        raise ValueError(f"{text!r} is not a model name; use letters, digits, dots, dashes and underscores")
    return text


def store_url(text: str) -> str:
    """Read the address of a Valkey or Redis. Raises ValueError, which never shows the password in it."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("redis", "rediss") or not rest:
        raise ValueError("a store's address begins with redis:// or rediss://, such as redis://localhost:6379/0")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """Return what reads one of these words."""
    told = f"neither {words[0]} nor {words[1]}" if len(words) == 2 else f"none of {', '.join(words)}"

    def read(text: str) -> str:
        """Raises ValueError."""
        if text not in words:
            raise ValueError(f"{text!r} is {told}")
        return text

    return read
