"""The transport without sockets: many nodes in one process, on any asyncio loop, with faults that a seed decides.

It keeps the contract of `protocol` and, beyond it, behaves as TCP does: in order while a connection lasts; what was
under way when a process died still arrives; what is sent into a cut is held and arrives late if the cut heals in
time; a cut ends the connection by silence and is no evidence, a dead process refuses and is. `loss` drops whole
frames, which a full queue would also do.

Invariant: all time is the loop's, all chance the given generator's: the same seed on a virtual loop gives the same run.
Invariant: frames pass through `frames`, so no two nodes ever share an object, and a simulation runs the real codec.
Called by: simulations and tests.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from kvstore.transport.backoff import Backoff
from kvstore.transport.frames import Removed, decode, encode, message_bytes_max
from kvstore.transport.hello import Identity
from kvstore.transport.protocol import GroupMessage, PeerHandler, SnapshotRefused
from kvstore.transport.rate_limit import TokenBucket
from kvstore.transport.settings import TransportSettings


@dataclass(slots=True, kw_only=True)
class Weather:
    """What the network does to frames. May be changed at any time."""

    latency_seconds_min: float = 0.0002
    latency_seconds_max: float = 0.001
    loss: float = 0.0  # of each frame, 0 to 1


class MemoryNetwork:
    """All nodes of a simulated world, and what lies between them."""

    def __init__(
        self, rng: random.Random, *, weather: Weather | None = None, settings: TransportSettings | None = None
    ) -> None:
        self.rng = rng
        self.weather = weather or Weather()
        self.settings = settings or TransportSettings()
        self._listening: dict[str, MemoryTransport] = {}  # by address
        self._cuts: dict[tuple[str, str], None] = {}  # (from node, to node), a dict for its order
        self._ends: dict[_End, None] = {}  # all open ones

    def transport(self, identity: Identity, address: str) -> MemoryTransport:
        """A node's end; it listens from `start` to `close` or `kill`. A later one at the address takes it over."""
        return MemoryTransport(self, identity, address)

    def cut(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Nothing gets from any of the sources to any of the targets any more (one way); node ids."""
        targets = list(targets)
        self._cuts.update({(source, target): None for source in sources for target in targets if source != target})
        for end in list(self._ends):
            if self.is_cut(end.peer_node, end.owner.node):
                end.expect_silence()

    def partition(self, one_side: Iterable[str], other_side: Iterable[str]) -> None:
        """Cut both ways."""
        one_side, other_side = list(one_side), list(other_side)
        self.cut(one_side, other_side)
        self.cut(other_side, one_side)

    def heal(self) -> None:
        """End every cut; what was held by it arrives now, unless its connection has ended."""
        self._cuts.clear()
        for end in list(self._ends):
            end.release()

    def uncut(self, source: str, target: str) -> None:
        """End this cut alone."""
        self._cuts.pop((source, target), None)
        for end in list(self._ends):
            if end.peer_node == source and end.owner.node == target:
                end.release()

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts

    def latency(self) -> float:
        weather = self.weather
        return self.rng.uniform(weather.latency_seconds_min, weather.latency_seconds_max)

    def loses(self) -> bool:
        return self.weather.loss > 0 and self.rng.random() < self.weather.loss

    def at(self, address: str) -> MemoryTransport | None:
        return self._listening.get(address)

    def listen(self, transport: MemoryTransport) -> None:
        self._listening[transport.address] = transport

    def unlisten(self, transport: MemoryTransport) -> None:
        if self._listening.get(transport.address) is transport:
            del self._listening[transport.address]


class _End:
    """One side's end of a connection, with what is on its way to it."""

    def __init__(self, owner: MemoryTransport, peer_node: str, boot: str) -> None:
        self.owner = owner
        self.peer_node = peer_node
        self.peer_boot = boot
        self.other: _End | None = None
        self.open = True
        self.under_way_bytes = 0
        self._network = owner.network
        self._loop = asyncio.get_running_loop()
        self._last_arrival = 0.0
        self._lane: deque[tuple[Callable[[], None], int]] = deque()  # a loop may swap timers of the same instant
        self._held: deque[tuple[Callable[[], None], int]] = deque()
        self._silence: asyncio.TimerHandle | None = None
        self._network._ends[self] = None

    def push(self, on_arrival: Callable[[], None], size: int = 0) -> None:
        """Something of that many bytes sets out for this end; it arrives after all that set out before."""
        self.under_way_bytes += size
        if self._network.is_cut(self.peer_node, self.owner.node) or self._held:
            self._held.append((on_arrival, size))
            return
        arrival = max(self._last_arrival, self._loop.time() + self._network.latency())
        self._last_arrival = arrival
        self._lane.append((on_arrival, size))
        self._loop.call_at(arrival, self._arrive, context=self.owner.context)

    def push_frame(self, frame: bytes) -> None:
        self.push(partial(self.owner.deliver, self, frame), len(frame))

    def expect_silence(self) -> None:
        """The other's beats stop arriving: after some of them the connection is given up."""
        if self._silence is None and self.open:
            settings = self._network.settings
            seconds = settings.beat_seconds * settings.silent_beats_max
            self._silence = self._loop.call_later(seconds, self.owner.end_closed, self, context=self.owner.context)

    def release(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        held, self._held = self._held, deque()
        for on_arrival, size in held:
            self.under_way_bytes -= size
            self.push(on_arrival, size)

    def shut(self) -> None:
        """No more arrives here, and the other side learns of it in its turn."""
        if not self.open:
            return
        self.open = False
        if self._silence is not None:
            self._silence.cancel()
        self._held.clear()
        self._network._ends.pop(self, None)
        if self.other is not None:
            self.other.push(partial(self.other.owner.end_closed, self.other))

    def _arrive(self) -> None:
        on_arrival, size = self._lane.popleft()
        self.under_way_bytes -= size
        if self.open:
            on_arrival()


class _Peer:
    __slots__ = ("address", "backoff", "beats", "end", "frames", "node", "timer")

    def __init__(self, node: str, backoff: Backoff) -> None:
        self.node = node
        self.frames = 0  # received
        self.beats = 0  # those that have come, as far as anybody has asked
        self.address: str | None = None
        self.end: _End | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.backoff = backoff


class MemoryTransport:
    """See protocol.PeerTransport."""

    def __init__(self, network: MemoryNetwork, identity: Identity, address: str) -> None:
        self.network = network
        self.identity = identity
        self.address = address
        self.messages_dropped = 0
        self._handler: PeerHandler | None = None
        self._addresses: dict[str, str] = {}
        self._peers: dict[str, _Peer] = {}
        self._closed = False
        self.context = contextvars.copy_context()  # what comes from others runs in it: a simulation tells by it whose
        self._bucket = TokenBucket(rate=network.settings.snapshot_bytes_per_second, burst=0)
        self._installs: dict[asyncio.Task[None], tuple[str, bytes]] = {}

    @property
    def node(self) -> str:
        return self.identity.node

    async def start(self, handler: PeerHandler) -> None:
        assert self._handler is None
        assert not self._closed
        self._handler = handler
        self.network.listen(self)
        self.set_peers(self._addresses)

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        self._addresses = {node: address for node, address in addresses.items() if node != self.node}
        if self._handler is None or self._closed:
            return
        for peer in [peer for peer in self._peers.values() if peer.address and peer.node not in self._addresses]:
            self._forget(peer)
        for node, address in self._addresses.items():
            peer = self._peer(node)
            if peer.address != address:
                peer.address = address
                peer.backoff.reset()
                self._try_later(peer, 0.0)

    def send(self, node: str, messages: list[GroupMessage]) -> bool:
        peer = self._peers.get(node)
        other = peer.end.other if peer is not None and peer.end is not None else None
        if other is None or other.under_way_bytes + _bytes_max(messages) > self.network.settings.queue_bytes_max:
            self.messages_dropped += len(messages)
            return False
        if not self.network.loses():
            other.push_frame(encode(messages))
        return True

    def send_removed(self, node: str, group: int, replica_id: int) -> None:
        peer = self._peers.get(node)
        other = peer.end.other if peer is not None and peer.end is not None else None
        if other is not None and not self.network.loses():
            other.push_frame(encode((), (Removed(group, replica_id),)))

    def connected(self, node: str) -> bool:
        peer = self._peers.get(node)
        return peer is not None and peer.end is not None

    def heard(self, node: str) -> int:
        """Beats are not sent, only counted when somebody asks: a timer would keep an idle world from standing still."""
        peer = self._peers.get(node)
        if peer is None:
            return 0
        if peer.end is not None and not self.network.is_cut(node, self.node):
            peer.beats = int(asyncio.get_running_loop().time() / self.network.settings.beat_seconds)
        return peer.frames + peer.beats

    async def close(self) -> None:
        self.kill()
        tasks = list(self._installs)
        await asyncio.gather(*tasks, return_exceptions=True)

    def kill(self) -> None:
        """The process ends at once. What it sent before still arrives; what is on its way to it does not."""
        if self._closed:
            return
        self._closed = True
        self.network.unlisten(self)
        for peer in self._peers.values():
            if peer.timer is not None:
                peer.timer.cancel()
            if peer.end is not None:
                end, peer.end = peer.end, None
                end.shut()
        for task in self._installs:
            task.cancel()

    # -- connections; what the network calls back

    def deliver(self, end: _End, frame: bytes) -> None:
        if self._handler is None or self._closed:
            return
        whole = decode(frame)
        if (peer := self._peers.get(end.peer_node)) is not None:
            peer.frames += 1
        if whole.messages:
            self._handler.on_messages(end.peer_node, whole.messages)
        for removed in whole.removed:
            self._handler.on_removed(end.peer_node, removed.group, removed.replica_id)

    def end_closed(self, end: _End) -> None:
        """The other side closed, or was silent for too long."""
        end.shut()
        peer = self._peers.get(end.peer_node)
        if peer is None or self._closed or (peer.end is not None and peer.end is not end):
            return
        peer.end = None
        if peer.address is None:
            del self._peers[peer.node]
        else:
            self._try_later(peer, 0.0)

    def _peer(self, node: str) -> _Peer:
        peer = self._peers.get(node)
        if peer is None:
            settings = self.network.settings
            backoff = Backoff(
                seconds_min=settings.backoff_seconds_min,
                seconds_max=settings.backoff_seconds_max,
                rng=self.network.rng,
            )
            peer = self._peers[node] = _Peer(node, backoff)
        return peer

    def _forget(self, peer: _Peer) -> None:
        del self._peers[peer.node]
        peer.address = None
        if peer.timer is not None:
            peer.timer.cancel()
        if peer.end is not None:
            end, peer.end = peer.end, None
            end.shut()

    def _try_later(self, peer: _Peer, seconds: float) -> None:
        """Dial, or see whether somebody still listens there: a SYN's way and back after the pause."""
        if peer.timer is not None:
            peer.timer.cancel()
        seconds += self.network.latency()
        peer.timer = asyncio.get_running_loop().call_later(seconds, self._try, peer)

    def _try(self, peer: _Peer) -> None:
        network = self.network
        if self._closed or peer.end is not None or peer.address is None:
            return
        if network.is_cut(self.node, peer.node) or network.is_cut(peer.node, self.node):
            self._try_later(peer, network.settings.probe_seconds_max)
            return
        target = network.at(peer.address)
        if target is None:
            assert self._handler is not None
            self._try_later(peer, peer.backoff.next())
            self._handler.on_peer_gone(peer.node)
        elif target.node != peer.node or target.identity.cluster != self.identity.cluster:
            peer.backoff.slow_down()
            self._try_later(peer, peer.backoff.next())
        else:
            if self.node < peer.node or self.node not in target._addresses:
                mine = _End(self, target.node, target.identity.boot)
                mine.push(partial(self._on_accepted, mine))  # before anything that the other sends
                target.context.copy().run(target._accept, self, mine)
            self._try_later(peer, network.settings.hello_seconds_max)

    def _accept(self, dialer: MemoryTransport, theirs: _End) -> None:
        """The listener's half of the hello."""
        mine = _End(self, dialer.node, dialer.identity.boot)
        mine.other, theirs.other = theirs, mine
        self._register(mine)

    def _on_accepted(self, end: _End) -> None:
        if self._closed or end.peer_node not in self._peers:
            end.shut()
        else:
            self._register(end)

    def _register(self, end: _End) -> None:
        assert self._handler is not None
        peer = self._peer(end.peer_node)
        older, peer.end = peer.end, end
        if older is not None:
            older.shut()
        peer.backoff.reset()
        self._handler.on_peer_up(end.peer_node, end.peer_boot)

    # -- snapshots

    async def send_snapshot(
        self, node: str, header: bytes, read_chunk: Callable[[int], Awaitable[bytes | None]]
    ) -> None:
        settings, attempt, best = self.network.settings, 0, 0
        while True:
            stream = _Stream()
            try:
                await self._stream(node, header, read_chunk, stream)
                return
            except ConnectionError as error:
                stream.fail(error)
                attempt = 1 if stream.taken > best else attempt + 1
                best = max(best, stream.taken)
                if attempt >= settings.snapshot_attempts_max or self._closed:
                    raise
            except BaseException:
                stream.fail(ConnectionResetError("the sender gave up"))
                raise
            await asyncio.sleep(settings.snapshot_backoff_seconds * min(2 ** (attempt - 1), 10))

    async def _stream(
        self, node: str, header: bytes, read_chunk: Callable[[int], Awaitable[bytes | None]], stream: _Stream
    ) -> None:
        target = await self._reach(node)
        number = stream.taken = await target._begin_install(self.node, header, stream)
        while True:
            data = await read_chunk(number)
            delay = self._bucket.reserve(len(data or b""), now=asyncio.get_running_loop().time())
            await asyncio.sleep(delay + self.network.latency())
            if await self._reach(node) is not target:
                raise ConnectionResetError("the receiver has restarted")
            if data is None:
                stream.end()
                break
            if not await stream.put(number, data, self.network.settings.snapshot_window):
                break  # the handler has ended without wanting more
            number += 1
        assert stream.installing is not None
        await asyncio.wait((stream.installing,))
        if await self._reach(node) is not target or stream.installing.cancelled():
            raise ConnectionResetError("the receiver has restarted")
        error = stream.installing.exception()
        if isinstance(error, ConnectionError | SnapshotRefused):
            raise error
        if error is not None:
            raise SnapshotRefused(f"the installation failed: {type(error).__name__}")

    async def _reach(self, node: str) -> MemoryTransport:
        await asyncio.sleep(self.network.latency())
        address = self._addresses.get(node)
        target = self.network.at(address) if address is not None else None
        if self._closed or self.network.is_cut(self.node, node) or self.network.is_cut(node, self.node):
            raise ConnectionResetError(f"node {node[:8]} can't be reached")
        if target is None or target.node != node:
            raise ConnectionRefusedError(f"node {node[:8]} is not there")
        return target

    async def _begin_install(self, node: str, header: bytes, stream: _Stream) -> int:
        """Raises SnapshotRefused when too many are being installed."""
        assert self._handler is not None
        for task in [task for task, key in self._installs.items() if key == (node, header)]:
            await asyncio.wait((task,), timeout=self.network.settings.snapshot_wait_seconds_max)
        if len(self._installs) >= self.network.settings.snapshot_streams_max:
            raise SnapshotRefused("busy with other snapshots, try later")
        at = self._handler.snapshot_resume_at(node, header)
        install = _install(self._handler, node, header, stream)
        task = asyncio.get_running_loop().create_task(install, context=self.context.copy())
        stream.installing = task
        self._installs[task] = node, header
        task.add_done_callback(lambda done: self._installs.pop(done, None))
        task.add_done_callback(stream.on_installed)
        return at


class _Stream(AsyncIterator[tuple[int, bytes]]):
    """The chunks of one attempt between a sender and a handler, which iterates over it."""

    def __init__(self) -> None:
        self.taken = 0
        self.installing: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._in_hand = False
        self._ended = False
        self._error: ConnectionError | None = None
        self._changed = asyncio.Event()

    def fail(self, error: ConnectionError) -> None:
        self._error = error
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def on_installed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # the sender may be gone; nobody else asks
        self._changed.set()

    async def put(self, number: int, data: bytes, window: int) -> bool:
        """Once there is room; False when the handler has ended."""
        assert self.installing is not None
        while number - self.taken >= window and not self.installing.done():
            self._changed.clear()
            await self._changed.wait()
        self._waiting.append((number, data))
        self._changed.set()
        return not self.installing.done()

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        if self._in_hand:
            self._in_hand = False
            self.taken += 1
            self._changed.set()
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        self._in_hand = True
        return self._waiting.popleft()


async def _install(handler: PeerHandler, node: str, header: bytes, stream: _Stream) -> None:
    await handler.on_snapshot(node, header, stream)


def _bytes_max(messages: list[GroupMessage]) -> int:
    return sum(message_bytes_max(one.message) for one in messages)
