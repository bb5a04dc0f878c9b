"""Real drivers: UDP and HTTP on one port of the loopback each, with times ten times as short as in production.

Waiting is always for what a driver believes, bounded by `WAIT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
from aiohttp import web

from kvstore.gossip.driver import GossipDriver
from kvstore.gossip.endpoint import Endpoint, UdpEndpoint
from kvstore.gossip.events import Event
from kvstore.gossip.member import INCARNATIONS_PER_BOOT, Member, MemberState
from kvstore.gossip.resolver import Target
from kvstore.gossip.settings import GossipSettings
from kvstore.transport.listening import ListeningSite

WAIT_SECONDS = 15.0
CLUSTER = "c" * 32
IDS = {f"n{number}": f"{number:x}" * 32 for number in range(1, 10)}
FAST = GossipSettings(
    probe_seconds=0.2,
    probe_timeout_seconds=0.1,
    ping_again_seconds=0.05,
    gossip_seconds=0.02,
    reconnect_seconds=0.5,
    push_pull_seconds=0.5,
    sync_seconds=0.1,
    sync_patience_seconds=0.5,
)


class Parcels:
    """Cargo: texts that are told once to whoever asks, and compared whole."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self._due: list[str] = []

    def add(self, *texts: str) -> None:
        self._due += [text for text in texts if text not in self.held]
        self.held.update(texts)

    @property
    def pending(self) -> int:
        return len(self._due)

    def digest(self) -> int:
        return sum(hash_of(text) for text in self.held) & 0xFFFF_FFFF_FFFF_FFFF

    def take(self, bytes_max: int, *, members: int) -> list[msgspec.Raw]:
        taken: list[msgspec.Raw] = []
        while self._due and bytes_max >= len(self._due[0]) + 5:
            text = self._due.pop()
            bytes_max -= len(text) + 5
            taken.append(msgspec.Raw(msgspec.msgpack.encode(text)))
        return taken

    def receive(self, items: Sequence[msgspec.Raw], now: float) -> None:
        self.held.update(msgspec.msgpack.decode(item, type=str) for item in items)

    def buckets(self) -> bytes:
        return self.digest().to_bytes(8, "big")

    def differing(self, buckets: bytes, *, bytes_max: int, packets_max: int) -> list[list[msgspec.Raw]]:
        if buckets == self.buckets():
            return []
        return [[msgspec.Raw(msgspec.msgpack.encode(text))] for text in sorted(self.held)][:packets_max]


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[:8].ljust(8, b"\0"), "big")


class Lossy:
    """An endpoint in front of the real one that can be cut off."""

    def __init__(self, real: UdpEndpoint) -> None:
        self._real = real
        self.cut = False
        self.errors = real.errors
        self.sent: list[tuple[str, bytes]] = []

    def open(self, on_datagram: Callable[[bytes, Target], None], on_batch: Callable[[], None]) -> None:
        def hear(datagram: bytes, source: Target) -> None:
            if not self.cut:
                on_datagram(datagram, source)

        self._real.open(hear, on_batch)

    def send(self, address: str, datagram: bytes) -> None:
        self.sent.append((address, datagram))
        if not self.cut:
            self._real.send(address, datagram)

    async def close(self) -> None:
        await self._real.close()


class Node:
    """A driver with its own HTTP server."""

    def __init__(
        self,
        name: str,
        *,
        seeds: Sequence[str] = (),
        node: str | None = None,
        cluster: str = CLUSTER,
        secrets: Sequence[bytes] = (),
        boots: int = 1,
        host: str = "127.0.0.1",
        port: int = 0,
        settings: GossipSettings = FAST,
        labels: dict[str, str] | None = None,
    ) -> None:
        self.listener, bound = bind_both(host, port)
        self.port: int = self.listener.getsockname()[1]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.events: list[Event] = []
        self.parcels = Parcels()
        self.seeds = list(seeds)
        self.changed = asyncio.Event()
        self.endpoint = Lossy(UdpEndpoint(bound))
        me = Member(
            node=node or IDS[name],
            name=name,
            address=self.address,
            incarnation=boots * INCARNATIONS_PER_BOOT,
            labels=labels or {},
            version="test",
        )
        self.id = me.node
        endpoint: Endpoint = self.endpoint
        try:
            self.driver = GossipDriver(
                me=me,
                cluster=cluster,
                boot=f"{name}-{boots}",
                boots=boots,
                endpoint=endpoint,
                secrets=secrets,
                seeds=lambda: self.seeds,
                cargo=self.parcels,
                rng=random.Random(f"{name} {boots}"),
                settings=settings,
                on_event=self._on_event,
            )
        except BaseException:
            bound.close()
            self.listener.close()
            raise
        self._runner: web.AppRunner | None = None

    def _on_event(self, event: Event) -> None:
        self.events.append(event)

    async def start(self) -> None:
        app = web.Application()
        app.add_routes(self.driver.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await ListeningSite(self._runner, self.listener).start()
        self.driver.start()

    async def stop(self, *, leave: bool = False) -> None:
        if leave:
            await self.driver.leave(1.0)
        await self.driver.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self.listener.close()

    def states(self) -> dict[str, MemberState]:
        return {view.member.name: view.member.state for view in self.driver.members()}

    def state(self, name: str) -> MemberState | None:
        return self.states().get(name)


def bind_both(host: str, port: int = 0) -> tuple[socket.socket, socket.socket]:
    """A listening TCP socket and a UDP socket of the same number."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        tcp, udp = socket.socket(family, socket.SOCK_STREAM), socket.socket(family, socket.SOCK_DGRAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind((host, port))
            udp.bind((host, tcp.getsockname()[1]))
        except OSError:
            tcp.close()
            udp.close()
            if port:
                raise
            continue
        tcp.listen()
        tcp.setblocking(False)
        return tcp, udp


async def until(true: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 (what is waited for is what several drivers believe)
            await asyncio.sleep(0.005)


async def start_all(*nodes: Node) -> None:
    """Start them, and wait until each believes all of them alive."""
    for node in nodes:
        await node.start()
    await until(lambda: all(list(node.states().values()) == [MemberState.ALIVE] * len(nodes) for node in nodes))


async def stop_all(*nodes: Node) -> None:
    for node in nodes:
        await node.stop()


def with_settings(**changes: float) -> GossipSettings:
    return replace(FAST, **changes)  # type: ignore[arg-type]
