"""Is there still a process behind a peer's address? A fresh TCP connect tells: a refusal means that nobody listens.

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


async def probe(address: str, *, seconds_max: float) -> Reach:
    """Connect to HOST:PORT and close again. A name with several addresses is refused when all of them are."""
    try:
        async with asyncio.timeout(seconds_max):
            return await _probe_all(address)
    except (TimeoutError, OSError):
        return Reach.UNKNOWN


async def _probe_all(address: str) -> Reach:
    host, port = split_address(address)
    answers = [await _probe_one(family, target) for family, target in await _resolve(host, port)]
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


async def _probe_one(family: socket.AddressFamily, target: Any) -> Reach:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(one, target)
            # A connect to a free port of the range for outgoing connections may meet itself.
            return Reach.REFUSED if one.getsockname() == one.getpeername() else Reach.OPEN
        except (ConnectionRefusedError, ConnectionResetError):
            return Reach.REFUSED
        except OSError:
            return Reach.UNKNOWN
