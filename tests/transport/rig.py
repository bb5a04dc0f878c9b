"""Real transports on real aiohttp servers on free loopback ports, and a handler that records what it is told.

Waiting is always for an event of the recorder, bounded by `WAIT_SECONDS`, never for a time to pass.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from kvstore.transport.hello import Identity
from kvstore.transport.listening import ListeningSite
from kvstore.transport.peer_link import WebSocketTransport
from kvstore.transport.protocol import GroupMessage
from kvstore.transport.settings import TransportSettings
from raft.types import Entry, Message, MessageType
from tests.ports import free_port

WAIT_SECONDS = 10.0
FAST = TransportSettings(
    hello_seconds_max=2.0,
    backoff_seconds_min=0.005,
    backoff_seconds_max=0.05,
    beat_seconds=0.1,
    silent_beats_max=4,
    farewell_seconds_max=0.2,
    snapshot_backoff_seconds=0.05,
    snapshot_wait_seconds_max=0.3,
)
CLUSTER = "c" * 32
IDS = {"n1": "1" * 32, "n2": "2" * 32, "n3": "3" * 32}


def _opened() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class Recorder:
    """A PeerHandler. `events` in the order of the calls; `when` are loop times of the same."""

    events: list[tuple[object, ...]] = field(default_factory=list)
    when: list[float] = field(default_factory=list)
    messages: dict[str, list[GroupMessage]] = field(default_factory=dict)
    calls: int = 0
    partial: dict[tuple[str, bytes], list[bytes]] = field(default_factory=dict)
    snapshots: dict[tuple[str, bytes], list[bytes]] = field(default_factory=dict)
    resumes: list[int] = field(default_factory=list)
    refusal: Exception | None = None
    gate: asyncio.Event = field(default_factory=lambda: _opened())  # closed = a chunk is not finished
    install_gate: asyncio.Event = field(default_factory=lambda: _opened())
    installing: int = 0
    installing_max: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def _note(self, *event: object) -> None:
        self.events.append(event)
        self.when.append(asyncio.get_running_loop().time())
        self._changed.set()

    def on_messages(self, node: str, messages: list[GroupMessage]) -> None:
        self.calls += 1
        self.messages.setdefault(node, []).extend(messages)
        self._changed.set()

    def on_removed(self, node: str, group: int, replica_id: int) -> None:
        self._note("removed", node, group, replica_id)

    def on_peer_up(self, node: str, boot: str) -> None:
        self._note("up", node, boot)

    def on_peer_gone(self, node: str) -> None:
        self._note("gone", node)

    async def on_snapshot(self, node: str, header: bytes, chunks: AsyncIterator[tuple[int, bytes]]) -> None:
        """Keeps what was taken over broken connections, as a host does."""
        self._note("snapshot", node)
        taken = self.partial.setdefault((node, header), [])
        self.installing += 1
        self.installing_max = max(self.installing_max, self.installing)
        try:
            if self.refusal is not None:
                raise self.refusal
            async for number, data in chunks:
                assert number == len(taken)
                await self.gate.wait()
                taken.append(data)
                self._changed.set()
                if self.refusal is not None:
                    raise self.refusal
            await self.install_gate.wait()
        except ConnectionError:
            self._note("snapshot broken", node)
            raise
        finally:
            self.installing -= 1
        self.snapshots[node, header] = self.partial.pop((node, header))
        self._note("snapshot installed", node)

    def snapshot_resume_at(self, node: str, header: bytes) -> int:
        at = len(self.partial.get((node, header), ()))
        self.resumes.append(at)
        return at

    async def until(self, condition: Callable[[], bool], seconds_max: float = WAIT_SECONDS) -> None:
        async with asyncio.timeout(seconds_max):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_event(self, *event: object, count: int = 1, seconds_max: float = WAIT_SECONDS) -> float:
        """When the event has been seen `count` times; its loop time."""
        await self.until(lambda: self.events.count(event) >= count, seconds_max)
        places = [place for place, seen in enumerate(self.events) if seen == event]
        return self.when[places[count - 1]]

    def indexes(self, node: str) -> list[int]:
        return [one.message.index for one in self.messages.get(node, ())]


class Node:
    """One transport on a server of its own. `stop` and `kill` may be followed by `start` on the same port."""

    def __init__(
        self,
        name: str,
        *,
        node: str | None = None,
        cluster: str = CLUSTER,
        secrets: tuple[bytes, ...] = (),
        settings: TransportSettings = FAST,
        port: int | None = None,
    ) -> None:
        self.name = name
        self.node = IDS[name] if node is None else node
        self.cluster = cluster
        self.secrets = secrets
        self.settings = settings
        self.port = free_port() if port is None else port
        self.boots = 0
        self.handler = Recorder()
        self.transport: WebSocketTransport = None  # type: ignore[assignment]  # set by start
        self._runner: web.AppRunner | None = None
        self._sockets: list[socket.socket] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def boot(self) -> str:
        return f"{self.name}-boot-{self.boots}"

    async def start(self, peers: Mapping[str, str] | None = None) -> None:
        self.boots += 1
        self.transport = WebSocketTransport(
            secrets=self.secrets,
            rng=random.Random(self.boots),
            settings=self.settings,
            identity=Identity(cluster=self.cluster, node=self.node, name=self.name, boot=self.boot),
        )
        app = web.Application()
        app.add_routes(self.transport.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await ListeningSite(self._runner, socket.create_server(("127.0.0.1", self.port), backlog=128)).start()
        self.transport.set_peers(peers or {})
        await self.transport.start(self.handler)

    async def stop(self) -> None:
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        await self.transport.close()
        await runner.cleanup()

    async def kill(self) -> None:
        """As SIGKILL does it: the listener and every connection close at once, without a goodbye."""
        assert self._runner is not None
        runner, self._runner = self._runner, None
        for site in list(runner.sites):
            await site.stop()
        for peer in self.transport._peers.values():
            if peer.connection is not None:
                peer.connection._open = False
                peer.connection._cut()
        await self.transport.close()
        await runner.cleanup()

    def messages_from(self, other: Node) -> list[GroupMessage]:
        return self.handler.messages.get(other.node, [])


def append(index: int, *payloads: bytes, term: int = 1, group: int = 2) -> GroupMessage:
    """An APPEND that is told by its index."""
    entries = tuple(Entry(term, index + 1 + offset, data=payload) for offset, payload in enumerate(payloads))
    return GroupMessage(group, Message(MessageType.APPEND, 2, 1, term, term, index, index, entries))


def heartbeat(index: int, group: int = 2) -> GroupMessage:
    return GroupMessage(group, Message(MessageType.HEARTBEAT, 2, 1, 1, index=index, commit=index))


async def connect(*nodes: Node) -> None:
    """Start them, tell each of all others, and wait until every pair is connected."""
    for node in nodes:
        await node.start()
    introduce(*nodes)
    for node in nodes:
        for other in nodes:
            if other is not node:
                await node.handler.until_event("up", other.node, other.boot)


def introduce(*nodes: Node) -> None:
    addresses = {node.node: node.address for node in nodes}
    for node in nodes:
        node.transport.set_peers(addresses)


async def stop_all(*nodes: Node) -> None:
    for node in nodes:
        await node.stop()
