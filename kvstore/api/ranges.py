"""GET and DELETE of /v1/kv/{keyspace}: pages of a range or prefix.

Invariant: deleting takes an explicit range, prefix or all=true: a forgotten key must not empty a keyspace.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping

from aiohttp import web

from kvstore.api.arguments import (
    Session,
    decode_name,
    flag_in,
    integer_in,
    query_of,
    segment_of,
    session_of,
    staleness_of,
    timeout_of,
)
from kvstore.api.cursors import Span, encode_cursor, piece_of, prefix_end, rest_of, resume
from kvstore.api.encoding import Format, document, format_of, item_json, item_msgpack
from kvstore.api.kv import single
from kvstore.base.errors import Invalid, StaleRoute, TooLarge
from kvstore.base.limits import KEY_BYTES_MAX, Limits
from kvstore.base.operations import DeleteRange, Page, RangeDeleted, Scan
from kvstore.base.shards import Route
from kvstore.base.stream import LINEARIZABLE
from kvstore.router.protocol import Router

RANGE_PARAMETERS = frozenset({"prefix", "start", "end", "limit", "cursor", "timeout_ms"})
SCAN_PARAMETERS = RANGE_PARAMETERS | {"reverse", "consistency", "max_staleness_ms"}
DELETE_PARAMETERS = RANGE_PARAMETERS | {"all"}

FIRST_KEY = b"\0"  # no key is before it; unlike b"" it can be in a cursor
_REPLANS_MAX = 3  # a page is planned anew when its shard has split or merged meanwhile
_REPLAN_SECONDS = 0.02  # gives the news time to arrive here


class RangeEndpoint:
    """Pages."""

    def __init__(self, router: Router, *, limits: Limits) -> None:
        self._router = router
        self._limits = limits

    async def scan(self, request: web.Request) -> web.Response:
        keyspace = decode_name(segment_of(request, 3), "keyspace")
        query = query_of(request, SCAN_PARAMETERS)
        reverse = flag_in(query, "reverse")
        limit = integer_in(query, "limit", self._limits.scan_keys_max, low=1, high=self._limits.scan_keys_max)
        staleness = staleness_of(query)
        timeout_ms = timeout_of(request, query, self._limits)
        span = span_of(query, reverse=reverse)
        if span.empty:
            page, rest, applied, age_ms = Page([], None, 0), None, 0, 0
        else:
            page, rest, applied, age_ms = await self._page(
                keyspace, span, limit=limit, reverse=reverse, staleness=staleness, deadline=_deadline(timeout_ms)
            )
        shape = item_json if format_of(request) is Format.JSON else item_msgpack
        response = document(
            request,
            {
                "items": [shape(item) for item in page.items],
                "cursor": encode_cursor(rest, reverse=reverse),
                "revision": page.revision,
            },
        )
        if staleness != LINEARIZABLE:
            response.headers["Kv-Applied-Index"] = str(applied)
            response.headers["Kv-Age-Ms"] = str(age_ms)
        return response

    async def delete(self, request: web.Request) -> web.Response:
        keyspace = decode_name(segment_of(request, 3), "keyspace")
        query = query_of(request, DELETE_PARAMETERS)
        everything = flag_in(query, "all")
        limit_max = self._limits.delete_range_keys_max
        limit = integer_in(query, "limit", limit_max, low=1, high=limit_max)
        timeout_ms = timeout_of(request, query, self._limits)
        named = any(query.get(name) for name in ("prefix", "start", "end"))
        if named == everything:
            raise Invalid("name what to delete: a prefix, start or end; or all=true for the whole keyspace")
        session = session_of(request, keyspace, self._router.stamp_ms())
        span = span_of(query, reverse=False)
        deleted: RangeDeleted = RangeDeleted(0, 0, None)
        rest: Span | None = None
        if not span.empty:
            deleted, rest = await self._delete_page(
                keyspace, span, limit=limit, session=session, deadline=_deadline(timeout_ms)
            )
        return document(
            request,
            {
                "deleted": deleted.deleted,
                "revision": deleted.revision,
                "cursor": encode_cursor(rest, reverse=False),
            },
        )

    async def _page(
        self, keyspace: str, span: Span, *, limit: int, reverse: bool, staleness: int, deadline: float
    ) -> tuple[Page, Span | None, int, int]:
        """(page, what is left, applied index, age in ms)."""
        for attempt in itertools.count():
            piece = piece_of(span, self._routes(keyspace), reverse=reverse)
            scan = Scan(0, piece.span.start, piece.span.end, limit, self._limits.scan_bytes_max, reverse)
            try:
                results, applied, age_ms = await self._router.query(
                    keyspace, [scan], timeout_ms=_left_ms(deadline), max_staleness_ms=staleness
                )
                page = single(results)
            except StaleRoute as error:
                await _replan(attempt, deadline, error)
                continue
            assert type(page) is Page, f"a scan was answered by {type(page).__name__}"
            if not piece.exact(piece_of(span, self._routes(keyspace), reverse=reverse)):
                await _replan(attempt, deadline, StaleRoute())
                continue
            return page, rest_of(span, piece, page.cursor, reverse=reverse), applied, age_ms
        raise AssertionError("unreachable")

    async def _delete_page(
        self, keyspace: str, span: Span, *, limit: int, session: Session, deadline: float
    ) -> tuple[RangeDeleted, Span | None]:
        """(what was deleted, what is left)."""
        for attempt in itertools.count():
            piece = piece_of(span, self._routes(keyspace), reverse=False)
            try:
                results = await self._router.execute(
                    keyspace,
                    [DeleteRange(session.seq, piece.span.start, piece.span.end, limit)],
                    timeout_ms=_left_ms(deadline),
                    session=session.id,
                    low=session.low,
                    issued_at=session.issued_at,
                )
                result = single(results)
            except StaleRoute as error:
                await _replan(attempt, deadline, error)
                continue
            assert type(result) is RangeDeleted, f"a delete-range was answered by {type(result).__name__}"
            if not piece.exact(piece_of(span, self._routes(keyspace), reverse=False)):
                return result, Span(start=span.start or FIRST_KEY, end=span.end)  # look through all of it once more
            return result, rest_of(span, piece, result.cursor, reverse=False)
        raise AssertionError("unreachable")

    def _routes(self, keyspace: str) -> list[Route]:
        """Of the keyspace's shards, in key order."""
        _, keyspaces, routes = self._router.routes()
        number = keyspaces.get(keyspace)
        return [route for route in routes if route.keyspace == number]


def _deadline(timeout_ms: int) -> float:
    return asyncio.get_running_loop().time() + timeout_ms / 1000


def _left_ms(deadline: float) -> int:
    """Until the deadline; at least 1, so that whoever is asked says TIMEOUT rather than INVALID."""
    return max(1, int((deadline - asyncio.get_running_loop().time()) * 1000))


async def _replan(attempt: int, deadline: float, error: StaleRoute) -> None:
    """Before a page is planned anew; raises the error when that has not helped often enough."""
    if attempt >= _REPLANS_MAX or _left_ms(deadline) == 1:
        raise error
    await asyncio.sleep(_REPLAN_SECONDS * (attempt + 1))


def span_of(query: Mapping[str, bytes], *, reverse: bool) -> Span:
    """The range that a request names, from its cursor on. Raises Invalid, TooLarge."""
    prefix = query.get("prefix")
    start, end = query.get("start", b""), query.get("end", b"")
    if prefix is not None:
        if "start" in query or "end" in query:
            raise Invalid("give a prefix, or start and end, not both")
        start, end = prefix, prefix_end(prefix)
    if len(start) > KEY_BYTES_MAX or len(end) > KEY_BYTES_MAX:
        raise TooLarge(f"a bound of the range has more than {KEY_BYTES_MAX} bytes")
    if end and start > end:
        raise Invalid("the range's start lies behind its end")
    span = Span(start=start, end=end)
    cursor = query.get("cursor")
    return span if cursor is None else resume(span, cursor, reverse=reverse)
