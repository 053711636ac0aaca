"""Settings: one field each, with its default, its unit and the reason for it.

The command line, the environment (`SHIM_PORT=…`) and `--help` are all made from the fields of `Settings`, so a setting
is stated once. Times are in seconds, sizes in bytes; on the command line `500ms`, `2m`, `4M` say what they mean.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

KIB, MIB = 1024, 1024 * 1024
TIME_UNITS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
SIZE_UNITS = {"": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": 1024 * MIB, "gib": 1024 * MIB}
# 11 days: the kernel takes a connection's timeout in milliseconds of 31 bits, which is 24.
LONGEST_TIME = 1_000_000
LARGEST_SIZE = 2**50
# What a body of one text takes while it is read and parsed, and no request gets all of --body-total (budget, weights).
BODY_FACTOR = 6
NUMBER_AND_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
ENVIRONMENT_PREFIX = "SHIM_"
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


def name(text: str) -> str:
    """Read a model name: what can stand in a URL's path unescaped. Raises ValueError."""
    if not re.fullmatch(r"[0-9A-Za-z._~-]{1,128}", text) or text in (".", ".."):
        raise ValueError(f"{text!r} is not a model name; use letters, digits, dots, dashes and underscores")
    return text


def on_stuck(text: str) -> str:
    """Read what happens when no slot is left. Raises ValueError."""
    if text not in ("stay", "exit"):
        raise ValueError(f"{text!r} is neither stay nor exit")
    return text


def log_format(text: str) -> str:
    """Read how log lines look. Raises ValueError."""
    if text not in ("text", "json"):
        raise ValueError(f"{text!r} is neither text nor json")
    return text


def log_sync(text: str) -> str:
    """Read when the journal is synced. Raises ValueError."""
    if text not in ("off", "interval", "always"):
        raise ValueError(f"{text!r} is none of off, interval, always")
    return text


def store_url(text: str) -> str:
    """Read the address of a Valkey or Redis. Raises ValueError, which never shows the password in it."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("redis", "rediss") or not rest:
        raise ValueError("a store's address begins with redis:// or rediss://, such as redis://localhost:6379/0")
    return text


def setting(default: Any, read: Callable[[str], Any], group: str, metavar: str, text: str) -> Any:
    return field(default=default, metadata={"read": read, "group": group, "metavar": metavar, "help": text})


@dataclass(frozen=True)
class Settings:
    """What the server runs with. The comments say why the default is what it is."""

    model: Path = setting(Path("."), resolved_path, "app", "DIR", "the app's folder: app.py and input_schema.py")
    # None: the folder's own name.
    name: str | None = setting(None, name, "app", "NAME", "the model's name in URLs and answers (the folder's name)")
    # Some public apps break Inferless's own rule on streaming inputs and run all the same.
    relaxed_schema: bool = setting(
        False, switch, "app", "", "warn instead of refusing inputs that Inferless does not allow in a streaming app"
    )
    check: bool = setting(False, switch, "app", "", "say what the folder holds, and exit")

    # Whoever runs a model on a laptop does not expect the café to use it.
    host: str = setting("127.0.0.1", str, "network", "ADDRESS", "address to listen on; :: is every address")
    port: int = setting(8000, port, "network", "N", "port to listen on; 0 lets the system choose one and prints it")
    # One thread each; past it a connection is told 503 and closed.
    max_connections: int = setting(1024, at_least_one, "network", "N", "connections at once")
    # 0: many people share an address behind a company's NAT, or behind a proxy that is not named as one.
    max_connections_per_client: int = setting(
        0, count, "network", "N", "connections at once from one address, or one IPv6 /64; 0 is no bound"
    )
    # An API's base64 image fits; nothing a schema allows needs more.
    max_body: int = setting(10 * MIB, positive_size, "network", "BYTES", "largest request body")
    # Six bodies of 10 MiB that come at once, or hundreds of 500 KiB that wait.
    body_total: int = setting(
        256 * MIB,
        positive_size,
        "network",
        "BYTES",
        "memory for bodies and waiting inputs; at least 6 times --max-body",
    )
    read_timeout: float = setting(
        10.0,
        positive_seconds,
        "network",
        "S",
        "longest wait for a request's head; a body has that and 1 s for each 64 KiB",
    )
    idle_timeout: float = setting(
        60.0, positive_seconds, "network", "S", "how long an idle keep-alive connection is held"
    )

    # None: plain HTTP; what lies between two machines is then for a proxy or a private network to protect.
    tls_cert: Path | None = setting(
        None, resolved_file, "network", "FILE", "the certificate and its chain, as PEM: https; reread on SIGHUP"
    )
    tls_key: Path | None = setting(None, resolved_file, "network", "FILE", "the certificate's private key, as PEM")

    # None: whoever reaches the port may call, which on loopback is whoever has an account on this machine.
    api_key_file: Path | None = setting(
        None, resolved_file, "access", "FILE", "who may call: one key, or name:key, a line; reread on SIGHUP"
    )
    insecure: bool = setting(False, switch, "access", "", "do not warn of an address that others reach without a key")
    open_metrics: bool = setting(False, switch, "access", "", "let /metrics be read without a key")
    cors: tuple[str, ...] = setting((), origins, "access", "ORIGIN", "web origins that may call from their pages")
    # On loopback only names of this machine are taken, or a page elsewhere could be pointed here (DNS rebinding).
    allowed_host: tuple[str, ...] = setting(
        (), host_names, "access", "NAME", "names that the server may be called by; .example.org is all below it, too"
    )
    trusted_proxy: tuple[Network, ...] = setting(
        (), networks, "access", "CIDR", "proxies whose X-Forwarded-For and X-Forwarded-Proto are believed"
    )

    # Inferless runs one infer at a time per replica, and public apps rely on it.
    concurrency: int = setting(1, at_least_one, "running", "N", "infer calls at once")
    queue: int = setting(100, count, "running", "N", "requests that may wait; past it a request is told 503")
    # Inferless's own limit.
    infer_timeout: float = setting(180.0, positive_seconds, "running", "S", "longest infer, waiting not included")
    stuck_grace: float = setting(
        10.0, seconds, "running", "S", "how long a late infer, or threads that infer left, may go on"
    )
    # Whoever looks at /v2/health/ready restarts it; who has a supervisor alone wants `exit`.
    on_stuck: str = setting(
        "stay", on_stuck, "running", "WHAT", "when every slot is held by an infer that does not end: stay, or exit (70)"
    )
    # What a person reads; a log collector wants json.
    log_format: str = setting("text", log_format, "running", "FORMAT", "log lines: text, or json, one object a line")
    # What Kubernetes gives after SIGTERM; a supervisor that gives less wants less here.
    drain: float = setting(30.0, seconds, "running", "S", "how long running streams may finish after SIGTERM")

    # Proxies and browsers give up on a silent connection after 30 to 60 s.
    heartbeat: float = setting(10.0, positive_seconds, "streams", "S", "silence after which a comment is sent")
    # A phone that changes networks is back in less.
    linger: float = setting(30.0, seconds, "streams", "S", "how long a stream that nobody follows goes on")
    retention: float = setting(300.0, seconds, "streams", "S", "how long a finished stream can be replayed")
    retry: float = setting(
        2.0, positive_seconds, "streams", "S", "how long a client is asked to wait before it reconnects"
    )
    stall: float = setting(
        30.0, positive_seconds, "streams", "S", "how long a client may take under 1 KiB/s of what waits for it"
    )
    # 4 MiB is about 100,000 tokens.
    log_cap: int = setting(4 * MIB, size, "streams", "BYTES", "what is kept of one stream; the oldest is forgotten")
    log_total: int = setting(256 * MIB, size, "streams", "BYTES", "what is kept of all streams together")
    max_streams: int = setting(1000, at_least_one, "streams", "N", "streams kept, running and finished")
    max_event: int = setting(
        1 * MIB, positive_size, "streams", "BYTES", "largest single event; a larger one raises in the app"
    )

    # None: a stream is forgotten with its process.
    log_dir: Path | None = setting(
        None,
        resolved_path,
        "keeping",
        "DIR",
        "write streams behind their events to files in DIR, for the next process",
    )
    # A crash of the machine, not of the process, loses at most a second.
    log_sync: str = setting(
        "interval", log_sync, "keeping", "WHEN",
        "sync these files: off, interval (once a second), or always, before clients see an event",
    )  # fmt: skip
    # Ten million tokens.
    log_dir_total: int = setting(
        1024 * MIB, positive_size, "keeping", "BYTES", "what is kept in DIR of all streams together"
    )
    # None: a stream can be followed on the replica that runs it alone.
    log: str | None = setting(
        None, store_url, "keeping", "URL", "share streams with other replicas: redis://host:6379/0, rediss:// over TLS"
    )
    # A pause of the whole process, as by the garbage collector or a loaded machine, must not end its streams.
    log_lease: float = setting(
        10.0, positive_seconds, "keeping", "S", "how long after a replica's death its streams are called interrupted"
    )


GROUPS = {
    "app": "the app",
    "network": "network",
    "access": "who may call",
    "running": "running the app",
    "streams": "streams",
    "keeping": "what outlives the process",
}
DESCRIPTION = "Serve an Inferless app: JSON in, resumable Server-Sent Events out."
EPILOG = """\
Every flag is also an environment variable: --infer-timeout is
SHIM_INFER_TIMEOUT. A flag wins. Times are seconds, or a number with
ms, s, m, h. Sizes are bytes, or a number with K, M, G (4M is 4 MiB)."""


def flag(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def make_parser() -> argparse.ArgumentParser:
    """Make the command line from the fields of `Settings`; a flag that is absent leaves no attribute."""
    parser = argparse.ArgumentParser(
        prog="server.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups = {key: parser.add_argument_group(title) for key, title in GROUPS.items()}
    for each in fields(Settings):
        about = each.metadata
        if about["read"] is switch:
            groups[about["group"]].add_argument(flag(each.name), action="store_true", help=about["help"])
        else:
            text = about["help"] + shown_default(each.name, each.default, about["read"])
            # Of a list there may be several, after one flag or after several of them.
            several: dict[str, Any] = {"nargs": "+", "action": "extend"} if each.default == () else {}
            groups[about["group"]].add_argument(
                flag(each.name), type=reader(about["read"]), metavar=about["metavar"], help=text, **several
            )
    return parser


def shown_default(field_name: str, default: Any, read: Callable[[str], Any]) -> str:
    if default is None or default == () or field_name == "model":
        return ""
    if read in (size, positive_size):
        return f" ({default // MIB}M)"
    return f" ({default:g})" if isinstance(default, (int, float)) else f" ({default})"


def reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show our sentence instead of its own 'invalid … value'."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read `SHIM_*` variables of known settings. Raises ValueError that names the variable."""
    found = {}
    for each in fields(Settings):
        variable = ENVIRONMENT_PREFIX + each.name.upper()
        if variable in environment:
            try:
                found[each.name] = each.metadata["read"](environment[variable])
            except ValueError as error:
                raise ValueError(f"{variable}: {error}") from None
    return found


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read flags over environment over defaults; a wrong one ends the process with status 2 and a sentence."""
    parser = make_parser()
    flags = vars(parser.parse_args(arguments))
    for name, value in flags.items():
        if value == [()]:  # of a shell variable that is not set; what was to be closed must not be open
            parser.error(f"{flag(name)} names nothing; leave it out, or say what")
    flags |= {name: tuple(chain.from_iterable(value)) for name, value in flags.items() if isinstance(value, list)}
    try:
        given = from_environment(environment) | flags
    except ValueError as error:
        parser.error(str(error))
    if "model" not in given:
        parser.error("which app? Give its folder: --model models/echo")
    settings = Settings(**given)
    if settings.log_dir is not None and settings.log is not None:
        parser.error("streams are kept in one place: choose --log-dir (one machine) or --log (several replicas)")
    least = settings.max_body * BODY_FACTOR
    if "body_total" in given and settings.body_total < least:
        parser.error(
            f"--body-total must be at least {BODY_FACTOR} times --max-body, or no body of that size could be read"
        )
    return replace(settings, body_total=max(settings.body_total, least))
