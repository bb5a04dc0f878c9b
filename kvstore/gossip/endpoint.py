"""The node's UDP socket: what arrives is read in bounded batches, what can't be sent is dropped and counted.

The socket is used directly instead of through the loop's datagram transport. That one queues without bound what the
kernel does not take, and (asyncio's) allocates 256 KiB for each datagram that it reads.

Invariant: nothing is raised for what the network does; `errors` counts it by the name of the error.
Invariant: at most BATCH datagrams are handled before other work of the loop has its turn; nothing is queued here but
    WAITING_MAX datagrams each for addresses whose name is being looked up.
Called by: driver.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Protocol

from kvstore.base.config import split_address
from kvstore.base.errors import StartRefused
from kvstore.gossip.resolver import Resolver, Target
from kvstore.gossip.seal import DATAGRAM_BYTES_MAX

BATCH = 64
WAITING_MAX = 8
RECEIVE_BUFFER_BYTES = 1 << 20  # wanted; Linux gives net.core.rmem_max at most, 208 KiB usually: some 200 datagrams
_SKIPPED = (BlockingIOError, InterruptedError)


class Endpoint(Protocol):
    """What the driver needs of it; a test may put something of its own in between."""

    errors: dict[str, int]  # by the error's name

    def open(self, on_datagram: Callable[[bytes, Target], None], on_batch: Callable[[], None]) -> None:
        """From now on call `on_datagram` for each that arrives, and `on_batch` after each few of them."""

    def send(self, address: str, datagram: bytes) -> None: ...
    async def close(self) -> None: ...


def bind_datagrams(listen: str) -> socket.socket:
    """A UDP socket at HOST:PORT. Raises StartRefused."""
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_DGRAM)
    try:
        one.bind((host, port))  # without SO_REUSEADDR, which would let two nodes have the same port
    except OSError as error:
        one.close()
        raise StartRefused(
            f"can't use UDP port {listen}: {error.strerror}; gossip needs the same port for UDP as for TCP"
        ) from None
    return one


class UdpEndpoint:
    """Takes over a bound socket."""

    def __init__(self, bound: socket.socket) -> None:
        self.errors: dict[str, int] = {}
        self._socket = bound
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(bound.family, on_done=self._on_looked_up)
        self._waiting: dict[str, list[bytes]] = {}
        self._on_datagram: Callable[[bytes, Target], None] | None = None
        self._on_batch: Callable[[], None] | None = None

    def open(self, on_datagram: Callable[[bytes, Target], None], on_batch: Callable[[], None]) -> None:
        self._on_datagram = on_datagram
        self._on_batch = on_batch
        self._loop.add_reader(self._socket.fileno(), self._read)

    def send(self, address: str, datagram: bytes) -> None:
        target = self._resolver.get(address)
        if target is not None:
            self._send_to(target, datagram)
        elif self._resolver.is_pending(address):
            waiting = self._waiting.setdefault(address, [])
            if len(waiting) < WAITING_MAX:
                waiting.append(datagram)
        else:
            self._count("unresolved")

    async def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        await self._resolver.close()
        self._waiting.clear()

    def _on_looked_up(self, address: str, target: Target | None) -> None:
        for datagram in self._waiting.pop(address, ()):
            if target is None:
                self._count("unresolved")
            else:
                self._send_to(target, datagram)

    def _send_to(self, target: Target, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, target)
        except OSError as error:
            self._count(_name(error))

    def _read(self) -> None:
        assert self._on_datagram is not None
        assert self._on_batch is not None
        try:
            for _ in range(BATCH):
                # One byte more than allowed, so that what is too long shows.
                datagram, source = self._socket.recvfrom(DATAGRAM_BYTES_MAX + 1)
                self._on_datagram(datagram, source)
        except _SKIPPED:
            pass  # nothing more for now
        except OSError as error:
            self._count(_name(error))
        finally:
            self._on_batch()

    def _count(self, name: str) -> None:
        self.errors[name] = self.errors.get(name, 0) + 1


def _name(error: OSError) -> str:
    """A few texts at most, whatever happens: they become label values."""
    return errno.errorcode.get(error.errno or 0, "other").lower()
