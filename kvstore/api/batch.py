"""POST /v1/batch/{keyspace}: several operations, all or nothing, as JSON or MessagePack.

JSON names bytes `key`, `value`, `expected` (UTF-8) or the same with `_base64`; MessagePack carries binary strings.
An unknown field is refused: a misspelt condition must not become an unconditional write.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from kvstore.api.arguments import decode_name, query_of, segment_of, session_of, timeout_of
from kvstore.api.body import BodyReader
from kvstore.api.encoding import Format, document, format_of, found_json, found_msgpack
from kvstore.api.kv import mismatch, single
from kvstore.base.errors import Invalid, TooLarge
from kvstore.base.limits import Limits
from kvstore.base.operations import (
    Batch,
    BatchDone,
    Cas,
    Delete,
    Found,
    Get,
    Mismatch,
    Put,
    check_key,
    check_value,
)
from kvstore.router.protocol import Router

BATCH_PARAMETERS = frozenset({"timeout_ms"})
_REVISION_MAX = (1 << 63) - 1

Operation = Put | Delete | Cas | Get


class JsonOperation(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One operation in JSON. Which fields it may have depends on `op`; `_operation` says."""

    op: str
    key: str | None = None
    key_base64: bytes | None = None
    value: str | None = None
    value_base64: bytes | None = None
    revision: int | None = None
    expected: str | None = None
    expected_base64: bytes | None = None
    absent: bool | None = None


class PackedOperation(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One operation in MessagePack."""

    op: str
    key: bytes | None = None
    value: bytes | None = None
    revision: int | None = None
    expected: bytes | None = None
    absent: bool | None = None


class JsonBatch(msgspec.Struct, forbid_unknown_fields=True):
    operations: list[JsonOperation]


class PackedBatch(msgspec.Struct, forbid_unknown_fields=True):
    operations: list[PackedOperation]


_decode_json = msgspec.json.Decoder(JsonBatch).decode
_decode_msgpack = msgspec.msgpack.Decoder(PackedBatch).decode


class BatchEndpoint:
    def __init__(self, router: Router, *, limits: Limits, bodies: BodyReader) -> None:
        self._router = router
        self._limits = limits
        self._bodies = bodies

    async def post(self, request: web.Request) -> web.Response:
        keyspace = decode_name(segment_of(request, 3), "keyspace")
        query = query_of(request, BATCH_PARAMETERS)
        timeout_ms = timeout_of(request, query, self._limits)
        session = session_of(request, keyspace, self._router.stamp_ms())
        body = await self._bodies.read(request, self._limits.request_bytes_max, "batch")
        operations = decode_batch(body, request.content_type, self._limits)
        results = await self._router.execute(
            keyspace,
            [Batch(session.seq, operations)],
            timeout_ms=timeout_ms,
            session=session.id,
            low=session.low,
            issued_at=session.issued_at,
        )
        result = single(results)
        if type(result) is Mismatch:
            raise mismatch(result)
        assert type(result) is BatchDone, f"a batch was answered by {type(result).__name__}"
        assert len(result.results) == len(operations)
        shape = found_json if format_of(request) is Format.JSON else found_msgpack
        return document(
            request,
            {"revision": result.revision, "results": [_result(one, shape) for one in result.results]},
            etag=result.revision,
        )


def _result(result: int | Found | None, shape: Any) -> dict[str, Any] | None:
    if type(result) is int:
        return {"revision": result}
    return None if result is None else shape(result)


def decode_batch(body: bytes, content_type: str, limits: Limits) -> list[Operation]:
    """The checked operations of a body. Raises Invalid or TooLarge, whatever the bytes."""
    given: list[JsonOperation | PackedOperation]
    try:
        if content_type in ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack"):
            given = list(_decode_msgpack(body).operations)
        elif content_type in ("application/json", "application/octet-stream"):  # the latter: nothing was said
            given = list(_decode_json(body).operations)
        else:
            raise Invalid(f"a batch is application/json or application/msgpack, not {content_type[:64]!r}")
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Invalid(f"malformed batch: {error}") from None
    if not given:
        raise Invalid("the batch is empty")
    if len(given) > limits.batch_operations_max:
        raise TooLarge(f"the batch has {len(given)} operations; at most {limits.batch_operations_max} are allowed")
    operations: list[Operation] = []
    for index, one in enumerate(given):
        try:
            operations.append(_operation(_packed(one), limits))
        except Invalid as error:
            raise Invalid(f"operation {index}: {error.message}") from None
        except TooLarge as error:
            raise TooLarge(f"operation {index}: {error.message}") from None
    return operations


def _packed(one: JsonOperation | PackedOperation) -> PackedOperation:
    """The same operation with its bytes as bytes."""
    if type(one) is PackedOperation:
        return one
    assert type(one) is JsonOperation
    return PackedOperation(
        op=one.op,
        key=_bytes("key", one.key, one.key_base64),
        value=_bytes("value", one.value, one.value_base64),
        revision=one.revision,
        expected=_bytes("expected", one.expected, one.expected_base64),
        absent=one.absent,
    )


def _bytes(name: str, text: str | None, decoded: bytes | None) -> bytes | None:
    if text is None:
        return decoded
    if decoded is not None:
        raise Invalid(f"give {name} or {name}_base64, not both")
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise Invalid(f"{name} is not Unicode text; use {name}_base64") from None


def _operation(one: PackedOperation, limits: Limits) -> Operation:
    """Check one operation's fields against its `op`."""
    if one.key is None:
        raise Invalid("it has no key")
    check_key(one.key)
    for value in (one.value, one.expected):
        if value is not None:
            check_value(value, limits)
    conditions = (one.revision, one.expected, one.absent)
    if one.op == "cas":
        return _cas(one, one.key)
    if any(condition is not None for condition in conditions):
        raise Invalid(f"{one.op[:16]!r} takes no condition; cas does")
    if one.op == "put":
        if one.value is None:
            raise Invalid("put needs a value")
        return Put(0, one.key, one.value)
    if one.value is not None:
        raise Invalid(f"{one.op[:16]!r} takes no value")
    if one.op == "delete":
        return Delete(0, one.key)
    if one.op == "get":
        return Get(0, one.key)
    raise Invalid(f"op is put, delete, cas or get, not {one.op[:16]!r}")


def _cas(one: PackedOperation, key: bytes) -> Cas:
    if one.absent is False:
        raise Invalid("absent is true, or left out")
    if sum(condition is not None for condition in (one.revision, one.expected, one.absent)) != 1:
        raise Invalid("cas needs one of revision, expected and absent")
    if one.absent:
        return Cas(0, key, one.value, 0, None)
    if one.revision is not None and not 0 <= one.revision <= _REVISION_MAX:
        raise Invalid(f"a revision is 0 to {_REVISION_MAX}")
    return Cas(0, key, one.value, one.revision, one.expected)
