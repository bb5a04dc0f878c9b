"""GET, PUT and DELETE of one key: /v1/kv/{keyspace}/{key}.

The value is the body, as raw bytes; its ETag is the key's mod_revision; HTTP's conditions are compare-and-set.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from kvstore.api.arguments import (
    Session,
    address_of,
    query_of,
    session_of,
    staleness_of,
    timeout_of,
)
from kvstore.api.body import BodyReader
from kvstore.api.conditions import (
    CONDITION_PARAMETERS,
    conditional_delete,
    conditional_put,
    expected_of,
    not_modified,
)
from kvstore.api.encoding import VALUE_FORMATS, Format, bytes_field, document, format_of, found_json, found_msgpack
from kvstore.api.problems import raise_failure
from kvstore.base.errors import Conflict, NotFound
from kvstore.base.limits import Limits
from kvstore.base.operations import Failure, Found, Get, Mismatch, Mutation, Result
from kvstore.base.stream import LINEARIZABLE
from kvstore.router.protocol import Router

READ_PARAMETERS = frozenset({"consistency", "max_staleness_ms", "timeout_ms"})
WRITE_PARAMETERS = CONDITION_PARAMETERS | {"timeout_ms"}
_encode_msgpack = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode


class KeyEndpoint:
    """One key at a time."""

    def __init__(self, router: Router, *, limits: Limits, bodies: BodyReader) -> None:
        self._router = router
        self._limits = limits
        self._bodies = bodies

    async def get(self, request: web.Request) -> web.Response:
        keyspace, key = address_of(request)
        query = query_of(request, READ_PARAMETERS)
        staleness = staleness_of(query)
        results, applied, age_ms = await self._router.query(
            keyspace,
            [Get(0, key)],
            timeout_ms=timeout_of(request, query, self._limits),
            max_staleness_ms=staleness,
        )
        found = single(results)
        if found is None:
            raise NotFound("the key does not exist")
        assert type(found) is Found, f"a get was answered by {type(found).__name__}"
        headers = {
            "ETag": f'"{found.mod_revision}"',
            "Kv-Mod-Revision": str(found.mod_revision),
            "Kv-Create-Revision": str(found.create_revision),
            "Kv-Version": str(found.version),
            "Vary": "Accept",
        }
        if staleness != LINEARIZABLE:
            headers["Kv-Applied-Index"] = str(applied)
            headers["Kv-Age-Ms"] = str(age_ms)
        if not_modified(request, found):
            return web.Response(status=304, headers=headers)
        return _value_response(request, key, found, headers)

    async def put(self, request: web.Request) -> web.Response:
        keyspace, key = address_of(request)
        query = query_of(request, WRITE_PARAMETERS)
        expected = expected_of(request, query)
        session = session_of(request, keyspace, self._router.stamp_ms())
        timeout_ms = timeout_of(request, query, self._limits)
        value = await self._bodies.read(request, self._limits.value_bytes_max, "value")
        operation = conditional_put(session.seq, key, value, expected)
        revision = await self._mutate(keyspace, operation, timeout_ms=timeout_ms, session=session)
        return document(request, {"revision": revision}, etag=revision)

    async def delete(self, request: web.Request) -> web.Response:
        keyspace, key = address_of(request)
        query = query_of(request, WRITE_PARAMETERS)
        expected = expected_of(request, query)
        session = session_of(request, keyspace, self._router.stamp_ms())
        operation = conditional_delete(session.seq, key, expected)
        revision = await self._mutate(
            keyspace, operation, timeout_ms=timeout_of(request, query, self._limits), session=session
        )
        return document(request, {"deleted": revision > 0, "revision": revision})

    async def _mutate(self, keyspace: str, operation: Mutation, *, timeout_ms: int, session: Session) -> int:
        results = await self._router.execute(
            keyspace,
            [operation],
            timeout_ms=timeout_ms,
            session=session.id,
            low=session.low,
            issued_at=session.issued_at,
        )
        result = single(results)
        if type(result) is Mismatch:
            raise mismatch(result)
        assert type(result) is int, f"a write was answered by {type(result).__name__}"
        return result


def single(results: list[Result]) -> Result:
    """The result of a request of one operation. Raises the KVError that it stands for."""
    assert len(results) == 1, f"one operation, {len(results)} results"
    result = results[0]
    if type(result) is Failure:
        raise_failure(result)
    return result


def mismatch(result: Mismatch) -> Conflict:
    if result.current is None:
        return Conflict("the key does not exist", detail=result)
    return Conflict(f"the key has another value; its revision is {result.current.mod_revision}", detail=result)


def _value_response(request: web.Request, key: bytes, found: Found, headers: dict[str, str]) -> web.Response:
    format_ = format_of(request, VALUE_FORMATS)
    headers["Content-Type"] = format_.value
    if format_ is Format.RAW:
        return web.Response(body=found.value, headers=headers)
    if format_ is Format.MSGPACK:
        packed: dict[str, Any] = {"key": key, **found_msgpack(found)}
        return web.Response(body=_encode_msgpack(packed), headers=headers)
    return web.Response(body=_encode_json({**bytes_field("key", key), **found_json(found)}), headers=headers)
