"""Settings: one field each, with its default, its unit and the reason for it.

The command line, the environment (`SHIM_PORT=…`) and `--help` are all made from the fields of `Settings`, so a setting
is stated once. Times are in seconds, sizes in bytes; on the command line `500ms`, `2m`, `4M` say what they mean.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from .values import (
    MIB,
    Network,
    at_least_one,
    count,
    host_names,
    model_name,
    networks,
    one_of,
    origins,
    port,
    positive_seconds,
    positive_size,
    resolved_file,
    resolved_path,
    seconds,
    size,
    store_url,
    switch,
)

# What a body of one text takes while it is read and parsed, and no request gets all of --body-total (budget, weights).
BODY_FACTOR = 6
ENVIRONMENT_PREFIX = "SHIM_"


def setting(default: Any, read: Callable[[str], Any], group: str, metavar: str, text: str) -> Any:
    return field(default=default, metadata={"read": read, "group": group, "metavar": metavar, "help": text})


@dataclass(frozen=True)
class Settings:
    """What the server runs with. The comments say why the default is what it is."""

    model: Path = setting(Path("."), resolved_path, "app", "DIR", "the app's folder: app.py and input_schema.py")
    # None: the folder's own name.
    name: str | None = setting(
        None, model_name, "app", "NAME", "the model's name in URLs and answers (the folder's name)"
    )
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
        "stay",
        one_of("stay", "exit"),
        "running",
        "WHAT",
        "when every slot is held by an infer that does not end: stay, or exit (70)",
    )
    # What a person reads; a log collector wants json.
    log_format: str = setting(
        "text", one_of("text", "json"), "running", "FORMAT", "log lines: text, or json, one object a line"
    )
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
        "interval", one_of("off", "interval", "always"), "keeping", "WHEN",
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
