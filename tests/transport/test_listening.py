"""A connection that comes while a site stops is closed at once, at whatever turn of the loop it comes.

Method: a client connects (the kernel does that without the site), the loop takes a given number of turns, the site
stops. A socket that is left open would be found by the garbage collector, whose warnings are errors here.
"""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
from aiohttp import web

from kvstore.transport.listening import ListeningSite


@pytest.mark.parametrize("turns", range(8))
async def test_no_connection_is_lost_when_the_site_stops(turns: int) -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await ListeningSite(runner, listener).start()
    with socket.create_connection(listener.getsockname()) as client:
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):  # not as long as a request under way may take
            await runner.cleanup()
        gc.collect()
        client.settimeout(1)
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass  # it waited in the listener's queue
