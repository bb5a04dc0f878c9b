"""HTTP's conditional requests (RFC 9110, 13) as compare-and-set: an ETag is a key's mod_revision in quotes.

Invariant: a condition that can't be kept exactly is refused, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import web

from kvstore.api.arguments import base64_in
from kvstore.base.errors import Conflict, Invalid
from kvstore.base.operations import Cas, Delete, Found, Put

_ETAG = re.compile(r'(W/)?"([^"]*)"')
_REVISION = re.compile(r"[1-9][0-9]{0,18}")

CONDITION_PARAMETERS = frozenset({"expect", "expect_base64"})


def etags(header: str, name: str) -> list[tuple[bool, str]]:
    """(weak, opaque tag) of each entity tag in the header. Raises Invalid."""
    tags: list[tuple[bool, str]] = []
    for part in header.split(","):
        match = _ETAG.fullmatch(part.strip())
        if match is None:
            raise Invalid(f'{name} is a revision in quotes as the ETag gives it, like "42", not {part.strip()[:40]!r}')
        tags.append((match[1] is not None, match[2]))
    return tags


def expected_of(request: web.Request, query: Mapping[str, bytes]) -> tuple[int | None, bytes | None]:
    """(revision, value) that a write is conditional on; revision 0 = absence; (None, None) = unconditional."""
    if_match = request.headers.getall("If-Match", [])
    if_none_match = request.headers.getall("If-None-Match", [])
    given = bool(if_match) + bool(if_none_match) + len(CONDITION_PARAMETERS & query.keys())
    if given == 0:
        return None, None
    if given > 1:
        raise Invalid("give one condition: If-Match, If-None-Match, expect or expect_base64")
    if if_none_match:
        if ", ".join(if_none_match).strip() != "*":
            raise Invalid("a write knows only If-None-Match: * (the key must be absent)")
        return 0, None
    if "expect" in query:
        return None, query["expect"]
    if "expect_base64" in query:
        return None, base64_in(query, "expect_base64")
    tags = etags(", ".join(if_match), "If-Match")
    if len(tags) > 1:
        raise Invalid("If-Match takes one revision on a write")
    weak, tag = tags[0]
    if weak or not _REVISION.fullmatch(tag):
        raise Invalid('If-Match is a revision in quotes as the ETag gives it, like "42"; 0 and * can not be asked for')
    return int(tag), None


def conditional_put(seq: int, key: bytes, value: bytes, expected: tuple[int | None, bytes | None]) -> Put | Cas:
    revision, old = expected
    if revision is None and old is None:
        return Put(seq, key, value)
    return Cas(seq, key, value, revision, old)


def conditional_delete(seq: int, key: bytes, expected: tuple[int | None, bytes | None]) -> Delete | Cas:
    revision, old = expected
    if revision is None and old is None:
        return Delete(seq, key)
    if revision == 0:
        raise Invalid("If-None-Match: * asks that the key be absent; there would be nothing to delete")
    return Cas(seq, key, None, revision, old)


def not_modified(request: web.Request, found: Found) -> bool:
    """Whether a read is answered 304. Raises Conflict when If-Match does not hold, Invalid when malformed."""
    headers = request.headers
    tag = str(found.mod_revision)
    if "If-Match" in headers:
        wanted = ", ".join(headers.getall("If-Match"))
        if wanted.strip() != "*" and (False, tag) not in etags(wanted, "If-Match"):
            raise Conflict(f"the key's revision is {tag}", detail=found)
    if "If-None-Match" in headers:
        known = ", ".join(headers.getall("If-None-Match"))
        return known.strip() == "*" or any(tag == one for _, one in etags(known, "If-None-Match"))
    return False
