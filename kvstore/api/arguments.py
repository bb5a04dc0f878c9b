"""What a request asks for, taken from its path, query and headers: strictly, as bytes, with typed errors.

The path and the query are read as they were sent: URL libraries repair bad percent-encoding and normalise paths, but a
key is any bytes and a typing error in a condition must never make an unconditional write.

Invariant: an unknown or repeated query parameter is refused.
Raises: Invalid (malformed), TooLarge (over a limit). Nothing else.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from aiohttp import web

from kvstore.base.errors import Invalid, NotFound
from kvstore.base.limits import DEADLINE_MS_DEFAULT, SESSION_BYTES, Limits
from kvstore.base.operations import check_key
from kvstore.base.stream import LINEARIZABLE

TIMEOUT_HEADER = "Kv-Timeout-Ms"
IDEMPOTENCY_HEADER = "Idempotency-Key"
ISSUED_AT_HEADER = "Kv-Issued-At"
IDEMPOTENCY_KEY_CHARS_MAX = 255
STALENESS_MS_DEFAULT = 10_000  # of consistency=stale when max_staleness_ms is not given
STALENESS_MS_MAX = 86_400_000

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"  # of keyspaces and nodes
_NAME = re.compile(NAME_PATTERN)
_DIGITS = re.compile(r"[0-9]{1,19}")


class Session(NamedTuple):
    """What makes a mutation exactly-once; an empty id = it is not."""

    id: bytes
    seq: int
    low: int
    issued_at: int  # ms


NO_SESSION = Session(b"", 0, 0, 0)


def decode_percent(text: str, what: str) -> bytes:
    """The bytes that a percent-encoded text stands for. Raises Invalid."""
    if not text.isascii():
        raise Invalid(f"the {what} has characters that are not ASCII; percent-encode them")
    if "%" not in text:
        return text.encode("ascii")
    if _BAD_ESCAPE.search(text):
        raise Invalid(f"the {what} has a % that two hexadecimal digits do not follow; write %25 for a percent sign")
    return unquote_to_bytes(text)


def decode_name(text: str, what: str) -> str:
    """A keyspace's, node's or similar name from the path. Raises NotFound for what no name can be."""
    name = decode_percent(text, what).decode("utf-8", "replace")
    if not _NAME.fullmatch(name):
        raise NotFound(f"there is no {what} {name[:64]!r}")
    return name


def address_of(request: web.Request) -> tuple[str, bytes]:
    """(keyspace, key) of /v1/kv/{keyspace}/{key}. Slashes in the key may be written as they are."""
    _, _, _, keyspace, key = request.rel_url.raw_path.split("/", 4)
    key_bytes = decode_percent(key, "key")
    check_key(key_bytes)
    return decode_name(keyspace, "keyspace"), key_bytes


def segment_of(request: web.Request, position: int) -> str:
    """A segment of the path, as sent; the first after the leading slash has position 1."""
    return request.rel_url.raw_path.split("/")[position]


def query_of(request: web.Request, allowed: frozenset[str]) -> dict[str, bytes]:
    """The query's parameters as bytes; `+` is a space, as in forms. Raises Invalid."""
    raw = request.rel_url.raw_query_string
    if not raw:
        return {}
    parameters: dict[str, bytes] = {}
    for part in raw.split("&"):
        if not part:
            continue
        name_text, _, value_text = part.partition("=")
        name = decode_percent(name_text, "query").decode("utf-8", "replace")
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise Invalid(f"unknown query parameter {name[:64]!r}; this request knows {known}")
        if name in parameters:
            raise Invalid(f"the query parameter {name} is given twice")
        parameters[name] = decode_percent(value_text.replace("+", " "), f"query parameter {name}")
    return parameters


def integer(text: str, what: str, *, low: int, high: int) -> int:
    if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
        raise Invalid(f"{what} must be a whole number from {low} to {high}, not {text[:40]!r}")
    return int(text)


def integer_in(query: Mapping[str, bytes], name: str, default: int, *, low: int, high: int) -> int:
    value = query.get(name)
    return default if value is None else integer(value.decode("latin-1"), name, low=low, high=high)


def flag_in(query: Mapping[str, bytes], name: str) -> bool:
    value = query.get(name, b"false")
    if value not in (b"true", b"false"):
        raise Invalid(f"{name} is true or false")
    return value == b"true"


def base64_in(query: Mapping[str, bytes], name: str) -> bytes:
    """A parameter in base64, standard or URL-safe, padded or not."""
    text = query[name].replace(b"-", b"+").replace(b"_", b"/").replace(b" ", b"+")
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise Invalid(f"{name} is not base64") from None


def timeout_of(request: web.Request, query: Mapping[str, bytes], limits: Limits) -> int:
    """Milliseconds until the request must be answered; ?timeout_ms= goes before the header."""
    if "timeout_ms" in query:
        return integer_in(query, "timeout_ms", 0, low=1, high=limits.deadline_ms_max)
    header = request.headers.get(TIMEOUT_HEADER)
    if header is None:
        return DEADLINE_MS_DEFAULT
    return integer(header, TIMEOUT_HEADER, low=1, high=limits.deadline_ms_max)


def staleness_of(query: Mapping[str, bytes]) -> int:
    """How old the answer may be, in ms; LINEARIZABLE unless consistency=stale."""
    consistency = query.get("consistency", b"linearizable")
    if consistency == b"linearizable":
        if "max_staleness_ms" in query:
            raise Invalid("max_staleness_ms needs consistency=stale")
        return LINEARIZABLE
    if consistency != b"stale":
        raise Invalid("consistency is linearizable or stale")
    return integer_in(query, "max_staleness_ms", STALENESS_MS_DEFAULT, low=0, high=STALENESS_MS_MAX)


def session_of(request: web.Request, keyspace: str, stamp_ms: int) -> Session:
    """The session of an Idempotency-Key: one mutation long, the same on whichever node a retry arrives.

    `issued_at` is the caller's Kv-Issued-At, or else now. With the caller's own, a retry that comes after the store has
    forgotten the first attempt is refused (SESSION_EXPIRED); without, it would be executed again.
    """
    header = request.headers.get(IDEMPOTENCY_HEADER)
    if header is None:
        return NO_SESSION
    if not header or len(header) > IDEMPOTENCY_KEY_CHARS_MAX:
        raise Invalid(f"{IDEMPOTENCY_HEADER} has 1 to {IDEMPOTENCY_KEY_CHARS_MAX} characters")
    text = f"{keyspace}\0{header}".encode("utf-8", "surrogateescape")  # neither part can hold a NUL
    issued = request.headers.get(ISSUED_AT_HEADER)
    return Session(
        id=blake2b(text, digest_size=SESSION_BYTES).digest(),
        seq=1,
        low=1,
        issued_at=stamp_ms if issued is None else integer(issued, ISSUED_AT_HEADER, low=1, high=(1 << 63) - 1),
    )
