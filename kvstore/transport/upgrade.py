"""From a request to a WebSocket, on the side that was connected to."""

from __future__ import annotations

from aiohttp import web

GONE_STATUS = 400
"""For the response that aiohttp wants all the same; nobody reads it."""


async def upgrade(websocket: web.WebSocketResponse, request: web.Request) -> bool:
    """Answer the request; False if whoever sent it has gone, as after a pause of this process."""
    try:
        await websocket.prepare(request)
    except ConnectionResetError:
        return False
    return True
