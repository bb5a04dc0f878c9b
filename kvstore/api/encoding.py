"""How answers are written: JSON (base64 where the bytes are no UTF-8), MessagePack, or the value's own bytes.

In JSON a field that holds bytes is a string `name` when they are UTF-8, else `name_base64`. In MessagePack the
same maps carry binary strings under `name`.

Invariant: exactly one of `name` and `name_base64` is there, so decoding is never a guess.
"""

from __future__ import annotations

from base64 import b64encode
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec
from aiohttp import web

from kvstore.base.operations import Found, Item
from kvstore.base.shards import Route

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


class Format(StrEnum):
    RAW = "application/octet-stream"
    JSON = "application/json"
    MSGPACK = "application/msgpack"


_NAMES: dict[str, Format] = {
    "application/octet-stream": Format.RAW,
    "application/json": Format.JSON,
    "application/msgpack": Format.MSGPACK,
    "application/x-msgpack": Format.MSGPACK,
    "application/vnd.msgpack": Format.MSGPACK,
}

VALUE_FORMATS = (Format.RAW, Format.JSON, Format.MSGPACK)
DOCUMENT_FORMATS = (Format.JSON, Format.MSGPACK)


@lru_cache(maxsize=256)
def negotiate(accept: str, offered: tuple[Format, ...]) -> Format:
    """The offered format that the Accept header likes best; the first when it likes none (RFC 9110, 12.5.1)."""
    best, best_quality = offered[0], 0.0
    for part in accept.split(","):
        name, *parameters = part.split(";")
        media = name.strip().lower()
        format_ = offered[0] if media in ("*/*", "application/*") else _NAMES.get(media)
        if format_ not in offered:
            continue
        quality = _quality(parameters)
        if quality > best_quality:
            best, best_quality = format_, quality
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value.strip()), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def format_of(request: web.Request, offered: tuple[Format, ...] = DOCUMENT_FORMATS) -> Format:
    accept = request.headers.get("Accept")
    return offered[0] if accept is None or accept == "*/*" else negotiate(accept, offered)


def document(request: web.Request, body: Any, *, etag: int = 0, status: int = 200) -> web.Response:
    """A JSON-ready value as the caller wants it. `etag` 0 = none."""
    format_ = format_of(request)
    encode = _encode_json if format_ is Format.JSON else _encode_msgpack
    headers = {"Content-Type": format_.value}
    if etag:
        headers["ETag"] = f'"{etag}"'
    return web.Response(status=status, body=encode(body), headers=headers)


def bytes_field(name: str, data: bytes) -> dict[str, str]:
    """`{name: text}` for UTF-8, else `{name_base64: ...}`."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(data).decode()}


def found_json(found: Found) -> dict[str, Any]:
    return {
        **bytes_field("value", found.value),
        "mod_revision": found.mod_revision,
        "create_revision": found.create_revision,
        "version": found.version,
    }


def found_msgpack(found: Found) -> dict[str, Any]:
    return {
        "value": found.value,
        "mod_revision": found.mod_revision,
        "create_revision": found.create_revision,
        "version": found.version,
    }


def item_json(item: Item) -> dict[str, Any]:
    return {
        **bytes_field("key", item.key),
        **bytes_field("value", item.value),
        "mod_revision": item.mod_revision,
        "create_revision": item.create_revision,
        "version": item.version,
    }


def item_msgpack(item: Item) -> dict[str, Any]:
    return {
        "key": item.key,
        "value": item.value,
        "mod_revision": item.mod_revision,
        "create_revision": item.create_revision,
        "version": item.version,
    }


def route_json(route: Route) -> dict[str, Any]:
    """A shard's route; `end` "" = no upper bound."""
    return {
        "id": route.id,
        "keyspace": route.keyspace,
        **bytes_field("start", route.start),
        **bytes_field("end", route.end),
        "epoch": {"version": route.version, "conf": route.conf},
        "term": route.term,
        "leader": route.leader,
        "address": route.address,
        "replicas": [
            {"node": node, "address": address, "role": "voter" if role == 1 else "learner"}
            for node, address, role in route.replicas
        ],
    }
