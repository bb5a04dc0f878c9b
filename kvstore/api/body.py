"""Reading a request's body within bounds of bytes and of time.

Invariant: no more than `BODY_BYTES_TOTAL_MAX` of unfinished bodies are held at once; over it a request is refused
           with OVERLOADED before it is read. (A small body arrives with its head and is not counted.)
Invariant: a body that does not arrive in `BODY_SECONDS_MAX` is given up. (Whenever an answer leaves before the body has
           been read, the middleware lets the connection be closed behind it.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from kvstore.api.problems import problem
from kvstore.base.errors import CODES, Code, Invalid, Overloaded, TooLarge
from kvstore.base.limits import MIB

BODY_SECONDS_MAX = 30.0  # 4 MiB over a bad line of 150 kB/s
BODY_BYTES_TOTAL_MAX = 256 * MIB  # of all connections of a node


def permission(bytes_max: int) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """aiohttp's expect_handler: lets a client that asks (Expect: 100-continue) send up to `bytes_max`, no more.

    It runs before the middleware, so it answers by itself.
    """

    async def expect(request: web.Request) -> web.StreamResponse | None:
        wish = request.headers.get("Expect", "")
        response: web.StreamResponse
        if wish.lower() != "100-continue":
            response = problem(CODES[Code.INVALID], f"Expect: {wish[:40]!r} is not known here", status=417)
        elif (request.content_length or 0) > bytes_max:
            response = problem(
                CODES[Code.TOO_LARGE], f"the body has {request.content_length} bytes; at most {bytes_max} are allowed"
            )
        else:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # of the answer, which has not begun
            return None
        response.force_close()  # whether its body comes all the same can't be known
        return response

    return expect


class BodyReader:
    """Reads bodies for one node; keeps the budget of those under way."""

    def __init__(self, *, seconds_max: float = BODY_SECONDS_MAX, bytes_total_max: int = BODY_BYTES_TOTAL_MAX) -> None:
        self._seconds_max = seconds_max
        self._bytes_total_max = bytes_total_max
        self._reserved = 0

    @property
    def reserved_bytes(self) -> int:
        return self._reserved

    async def read(self, request: web.Request, bytes_max: int, what: str) -> bytes:
        """The whole body. Raises TooLarge, Overloaded, Invalid; ConnectionError when the client goes away."""
        declared = request.content_length
        if declared is not None and declared > bytes_max:
            raise TooLarge(f"the {what} has {declared} bytes; at most {bytes_max} are allowed")
        encoding = request.headers.get("Content-Encoding")
        if encoding is not None and encoding.lower() != "identity":
            raise Invalid(f"a body with Content-Encoding {encoding[:40]!r} is not taken; send the {what} as it is")
        content = request.content
        if content.is_eof():  # all of it is here already: no timer, no reservation
            body = content.read_nowait(-1)
            if len(body) > bytes_max:
                raise TooLarge(f"the {what} has {len(body)} bytes; at most {bytes_max} are allowed")
            return body
        return await self._read_slowly(request, bytes_max if declared is None else declared, bytes_max, what)

    async def _read_slowly(self, request: web.Request, reserve: int, bytes_max: int, what: str) -> bytes:
        if self._reserved + reserve > self._bytes_total_max:
            raise Overloaded("too many large request bodies are under way")
        self._reserved += reserve
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds_max):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > bytes_max:
                        raise TooLarge(f"the {what} has more than {bytes_max} bytes")
        except TimeoutError:
            raise Invalid(f"the {what} did not arrive within {self._seconds_max:g} s") from None
        finally:
            self._reserved -= reserve
        return bytes(body)
