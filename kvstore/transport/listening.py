"""Where a node listens: aiohttp's site, without the connection that asyncio loses when it stops to listen.

Invariant: each connection that was accepted is served, or closed.
Called by: kvstore/node_http.py.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

TURN_SECONDS = 1e-6  # so short that the timer fires in the next turn of the loop
TURNS_OF_A_CONNECTION = 2


class ListeningSite(web.SockSite):
    """On a socket that listens already.

    asyncio attaches a connection to its server one turn of the loop after it has accepted it, and neither serves nor
    closes it if the server is closed in between (CPython's issue 109564). In each turn timers fire after the accepts:
    what a timer wakes runs, in the next turn, after these have been attached and before more are accepted.

    aiohttp closes the connections on which it awaits a request, and waits for all others as for requests under way. So
    these get the turns in which they are made known to it and begin to await.
    """

    async def stop(self) -> None:
        await asyncio.sleep(TURN_SECONDS)
        await super().stop()
        for _ in range(TURNS_OF_A_CONNECTION):
            await asyncio.sleep(0)
