"""What people ask of the placement driver: drains, settings, and an end of operators."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from kvstore.api.arguments import decode_name, integer, query_of, segment_of
from kvstore.api.body import BodyReader
from kvstore.api.encoding import document
from kvstore.base.errors import Invalid
from kvstore.base.limits import KIB
from kvstore.router.protocol import Placement

_BODY_BYTES_MAX = 64 * KIB
_ID_MAX = (1 << 63) - 1
_decode_changes = msgspec.json.Decoder(dict[str, bool | int | float | None]).decode


class PlacementEndpoint:
    def __init__(self, placement: Placement, *, bodies: BodyReader) -> None:
        self._placement = placement
        self._bodies = bodies

    async def drain(self, request: web.Request) -> web.Response:
        return document(request, await self._placement.drain(_member_of(request)))

    async def undrain(self, request: web.Request) -> web.Response:
        return document(request, await self._placement.undrain(_member_of(request)))

    async def drain_progress(self, request: web.Request) -> web.Response:
        return document(request, await self._placement.drain_progress(_member_of(request)))

    async def settings(self, request: web.Request) -> web.Response:
        query_of(request, frozenset())
        return document(request, await self._placement.settings())

    async def set_settings(self, request: web.Request) -> web.Response:
        query_of(request, frozenset())
        data = await self._bodies.read(request, _BODY_BYTES_MAX, "body")
        try:
            changes: dict[str, Any] = _decode_changes(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"malformed body: {error}") from None
        if not changes:
            raise Invalid("no setting is named")
        return document(request, await self._placement.set_settings(changes))

    async def cancel_operator(self, request: web.Request) -> web.Response:
        query_of(request, frozenset())
        operator = integer(segment_of(request, 3), "the operator's id", low=1, high=_ID_MAX)
        return document(request, await self._placement.cancel_operator(operator))


def _member_of(request: web.Request) -> str:
    query_of(request, frozenset())
    return decode_name(segment_of(request, 3), "member")
