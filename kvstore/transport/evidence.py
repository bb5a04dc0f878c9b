"""Is there still a process behind a peer's address? A fresh TCP connect tells: a refusal means that nobody listens.

A process that is being killed closes its connections first and its listener last, so the first connect after a loss
often still succeeds; it is then reset as soon as the listener goes. `linger` waits for that.

Invariant: only a refusal is evidence. A connect that takes too long, a name that can't be resolved, a network that
    can't be reached say nothing about the process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from enum import Enum
from typing import Any

from kvstore.base.config import split_address


class Reach(Enum):
    OPEN = "open"  # somebody accepted
    REFUSED = "refused"
    UNKNOWN = "unknown"


async def probe(address: str, *, seconds_max: float, linger: float = 0.0) -> Reach:
    """Connect to HOST:PORT and close again. A name with several addresses is refused when all of them are.

    `linger`: seconds for which an accepted connection is watched; if it is closed meanwhile, connect once more.
    """
    try:
        async with asyncio.timeout(seconds_max):
            return await _probe_all(address, linger)
    except (TimeoutError, OSError):
        return Reach.UNKNOWN


async def _probe_all(address: str, linger: float) -> Reach:
    host, port = split_address(address)
    answers = [await _probe_one(family, target, linger) for family, target in await _resolve(host, port)]
    if Reach.OPEN in answers:
        return Reach.OPEN
    if answers and all(answer is Reach.REFUSED for answer in answers):
        return Reach.REFUSED
    return Reach.UNKNOWN


async def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Literal addresses take no look-up: a thread of the resolver would cost the milliseconds that evidence saves."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, target) for family, _, _, _, target in found]
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]


async def _probe_one(family: socket.AddressFamily, target: Any, linger: float) -> Reach:
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setblocking(False)
        try:
            await loop.sock_connect(one, target)
        except (ConnectionRefusedError, ConnectionResetError):
            return Reach.REFUSED
        except OSError:
            return Reach.UNKNOWN
        if met_itself(one):
            return Reach.REFUSED
        if linger <= 0 or not await _closed_within(one, linger):
            return Reach.OPEN
    return await _probe_one(family, target, 0.0)


async def _closed_within(one: socket.socket, seconds: float) -> bool:
    """Nobody sends anything on a connection that has asked for nothing: what can be read is its end."""
    try:
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_recv(one, 1)
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def met_itself(one: socket.socket) -> bool:
    """A connect to a free local port may get that very port as its own, and then TCP connects it with itself."""
    return bool(one.getsockname() == one.getpeername())
