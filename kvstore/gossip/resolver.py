"""HOST:PORT -> what a UDP socket takes as a target. Names are looked up off the loop, and remembered for a while.

Invariant: at most NAMES_MAX addresses are remembered and LOOKUPS_MAX looked up at once; `get` never blocks.
Called by: endpoint.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable

from kvstore.base.config import split_address
from kvstore.base.errors import StartRefused

logger = logging.getLogger(__name__)

Target = tuple[str, int] | tuple[str, int, int, int]
NAMES_MAX = 4_096
LOOKUPS_MAX = 16
NAME_SECONDS = 30.0  # a name is looked up again after this; the old answer is used until there is a new one
FAILURE_SECONDS = 5.0
_NEVER = float("inf")


def text_of(target: Target) -> str:
    """The HOST:PORT of a socket's address."""
    host, port = target[0], target[1]
    if host.startswith("::ffff:") and "." in host:
        return f"{host[7:]}:{port}"
    if len(target) == 4 and target[3] and "%" not in host:
        host = f"{host}%{target[3]}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Resolver:
    """For a socket of one family. `on_done` is called at the end of each look-up, with None where it failed."""

    def __init__(self, family: socket.AddressFamily, *, on_done: Callable[[str, Target | None], None]) -> None:
        self._family = family
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, tuple[Target | None, float]] = {}  # with the loop time until which it is fresh
        self._lookups: dict[str, asyncio.Task[None]] = {}

    def get(self, address: str) -> Target | None:
        """None: not known, perhaps not yet."""
        known = self._known.get(address)
        if known is None:
            target = self._literal(address)
            if target is not None:
                self._remember(address, target, _NEVER)
                return target
            self._look_up(address)
            return None
        if known[1] < self._loop.time():
            self._look_up(address)
        return known[0]

    def is_pending(self, address: str) -> bool:
        return address in self._lookups

    async def close(self) -> None:
        tasks = list(self._lookups.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _literal(self, address: str) -> Target | None:
        """The target of an address that is a number; an IPv4 one is written as IPv6 for a socket of that family."""
        try:
            host, port = split_address(address)
            number = ipaddress.ip_address(host)
        except (StartRefused, ValueError):
            return None
        return self._fitting(str(number), port, number.version)

    def _fitting(self, host: str, port: int, version: int) -> Target | None:
        if self._family == socket.AF_INET:
            return (host, port) if version == 4 else None
        if version == 4:
            return (f"::ffff:{host}", port, 0, 0)
        host, _, zone = host.partition("%")
        return (host, port, 0, _zone_number(zone))

    def _look_up(self, address: str) -> None:
        if address in self._lookups or len(self._lookups) >= LOOKUPS_MAX:
            return
        self._lookups[address] = self._loop.create_task(self._find(address), name=f"gossip-lookup {address}")

    async def _find(self, address: str) -> None:
        old = self._known.get(address)
        try:
            host, port = split_address(address)
            found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, family=self._asked)
            targets = [
                self._fitting(str(one[0]), port, 6 if family == socket.AF_INET6 else 4) for family, *_, one in found
            ]
            target = next((one for one in targets if one is not None), None)
        except (OSError, UnicodeError, StartRefused) as error:
            logger.debug("%s can't be resolved: %s", address, error)
            target = None
        finally:
            self._lookups.pop(address, None)
        if target is None:
            self._remember(address, old[0] if old else None, self._loop.time() + FAILURE_SECONDS)
        else:
            self._remember(address, target, self._loop.time() + NAME_SECONDS)
        self._on_done(address, target)

    @property
    def _asked(self) -> socket.AddressFamily:
        return socket.AF_INET if self._family == socket.AF_INET else socket.AF_UNSPEC

    def _remember(self, address: str, target: Target | None, until: float) -> None:
        self._known.pop(address, None)
        if len(self._known) >= NAMES_MAX:
            del self._known[next(iter(self._known))]
        self._known[address] = (target, until)


def _zone_number(zone: str) -> int:
    if not zone:
        return 0
    try:
        return int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except OSError:
        return 0
