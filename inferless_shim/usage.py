"""How to call what runs here: a curl line that works when pasted, and the plain page at `/`. No I/O."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from urllib.parse import quote

from .loader import SCHEMA_FILE, App
from .service import Service

# A terminal still takes this much in one pasted line; public schemas hold examples of a megabyte.
MAX_PASTED = 4000
EXAMPLES = (
    "import json, input_schema; "
    'print(json.dumps({n: d["example"] for n, d in input_schema.INPUT_SCHEMA.items() if d.get("example")}))'
)


def curl_line(app: App, base: str, *, local: bool = True, with_key: bool = False, flags: Sequence[str] = ()) -> str:
    """Write a curl command, made of the schema's own examples, that works when pasted into a shell.

    `flags` are what curl needs to trust a certificate; where a key is needed, it is the shell's $KEY. Examples too
    large to paste are read from the app's folder, which only a `local` user has. An app that declares its inputs in
    `app.py` has them once it is loaded.
    """
    assert app.schema is not None, "curl_line before load"
    body = json.dumps(app.schema.example(), ensure_ascii=False)
    key = '-H "Authorization: Bearer $KEY" ' if with_key else ""
    curl = f"curl -N {shlex.join([*flags, base + '/infer'])} {key}-d "
    if len(body) <= MAX_PASTED:
        return curl + shlex.quote(body)
    if not local or not (app.folder / SCHEMA_FILE).is_file():
        return curl + "@request.json"
    return f"(cd {shlex.quote(str(app.folder))} && python3 -c {shlex.quote(EXAMPLES)}) | {curl}@-"


def page(service: Service, base: str) -> str:
    """Say what runs here and how to call it."""
    app, name = service.app, quote(service.app.name)
    kind = "a stream of Server-Sent Events" if app.streaming else "JSON"
    return f"""{app.name} is {service.state}. It answers with {kind}.

{how_to_call(app, base, with_key=service.admission.keys is not None)}

Routes:
  POST /infer                               inputs as JSON
  GET  /infer?NAME=value                    the same from a browser's EventSource
  GET  /streams/<id>                        follow or replay a stream; DELETE cancels it
  POST /v2/models/{name}/infer           Inference Protocol v2
  POST /v2/models/{name}/generate        one JSON answer
  POST /v2/models/{name}/generate_stream a stream
  GET  /v2/health/live, /v2/health/ready, /v2
  GET  /v2/models/{name}, /v2/models/{name}/config, /v2/models/{name}/ready
  GET  /metrics                             figures for Prometheus
  POST /v2/repository/index                 what is loaded
  POST /v2/repository/models/{name}/load, /v2/repository/models/{name}/unload

A stream that was cut goes on where it stopped: send the last id back as the Last-Event-ID header.
"""


def how_to_call(app: App, base: str, *, with_key: bool) -> str:
    """Tell the inputs and a curl line, as soon as they are known."""
    if app.schema is None:
        return "Its inputs are known once it is loaded."
    inputs = "\n".join(
        f"  {each.name:<20} {each.datatype:<8} shape {list(each.shape)}  {'required' if each.required else 'optional'}"
        for each in app.schema.inputs.values()
    )
    return f"Inputs:\n{inputs}\n\nTry it:\n  {curl_line(app, base, local=False, with_key=with_key)}"
