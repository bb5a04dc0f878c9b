"""Snapshots between nodes: what the leader's replica sends, and how the receiver's one takes it in.

While a snapshot is written under a replica, its Raft core stands still: it takes no message and no tick, so nothing
that the core believes can change between the check of the offer and the installation.

Invariant: a snapshot is taken only when it is newer than everything committed here, and its range meets no other
           live replica's.
Invariant: the state's last transaction comes before the log's reset (a crash between the two is repaired at the start).
Called by: host_driver.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.replica.environment import Environment
from kvstore.replica.flush import Flusher
from kvstore.replica.host_core import HostCore
from kvstore.replica.lifecycle import Lifecycle
from kvstore.replica.membership import image_conf_state
from kvstore.replica.replica import Replica
from kvstore.state.shard import ShardState
from kvstore.state.shard_meta import decode_meta
from kvstore.storage.errors import SnapshotLost
from kvstore.storage.protocol import ShardImage, SnapshotHeader, SnapshotReader
from kvstore.transport.protocol import PeerTransport, SnapshotRefused
from raft import Message, MessageType, SnapshotMeta, StepRefused

logger = logging.getLogger(__name__)

RESUME_SECONDS = 30.0
"""How long a half-received snapshot waits for its stream to come back."""
ADMIT_SECONDS = 5.0
REFUSED_SECONDS = 0.5
"""How long a receiver that has refused is left alone: what is in the way takes a while to go."""


class SnapshotOffer(msgspec.Struct, array_like=True, frozen=True):
    """What opens a snapshot stream."""

    group: int
    from_id: int
    to_id: int
    term: int  # of the sending leader
    image: ShardImage
    start: bytes
    end: bytes

    @property
    def header(self) -> SnapshotHeader:
        return SnapshotHeader(group=self.group, image=self.image, start=self.start, end=self.end)

    @property
    def message(self) -> Message:
        meta = SnapshotMeta(self.image.applied_index, self.image.applied_term, image_conf_state(self.image))
        return Message(MessageType.SNAPSHOT, to_id=self.to_id, from_id=self.from_id, term=self.term, snapshot=meta)


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(SnapshotOffer)


@dataclass(slots=True)
class Incoming:
    """A snapshot that is being written here."""

    header: bytes
    term: int  # of the leader that sends it
    replica: Replica
    next_chunk: int = 0
    receiving: bool = True  # a stream is feeding it; a second one, come early, would write chunks twice
    give_up: asyncio.TimerHandle | None = field(default=None)


class Snapshots:
    """Sends and installs snapshots for one host."""

    def __init__(
        self,
        core: HostCore,
        environment: Environment,
        lifecycle: Lifecycle,
        flusher: Flusher,
        schedule_pump: Callable[[], None],
    ) -> None:
        self.core = core
        self.environment = environment
        self.lifecycle = lifecycle
        self.flusher = flusher
        self.schedule_pump = schedule_pump
        self.transport: PeerTransport | None = None
        self.incoming: dict[int, Incoming] = {}
        self._sending: set[tuple[int, int]] = set()
        self._refused: dict[tuple[int, int], float] = {}  # until when (loop time) it is not offered again
        self._tasks: set[asyncio.Task[None]] = set()

    # -- sending ---------------------------------------------------------------------------------------------------

    def send(self, replica: Replica, message: Message) -> None:
        """Begin to stream the replica's flushed state to the peer that the core wants to have it."""
        key = (replica.group, message.to_id)
        node = replica.node_of.get(message.to_id)
        state = replica.state
        if key in self._sending:
            return
        loop = asyncio.get_running_loop()
        if self._refused.get(key, 0.0) > loop.time():
            replica.raw.report_snapshot(message.to_id, False)  # the core asks again with the next heartbeat
            self.core.mark(replica)
            return
        if node is None or state is None or self.transport is None:
            replica.raw.report_snapshot(message.to_id, False)
            self.core.mark(replica)
            return
        reader = self._open(replica, state)
        if reader is None:
            replica.raw.report_snapshot(message.to_id, False)
            self.core.mark(replica)
            return
        self._sending.add(key)
        self._refused.pop(key, None)
        task = loop.create_task(self._stream(replica, message, node, reader))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _open(self, replica: Replica, state: ShardState) -> SnapshotReader | None:
        """The flushed state, with the range that it had then. One from before a split is not sent: its receiver may
        have the child already. None: not now."""
        store = self.environment.state_store
        image = store.shards().get(replica.group)
        flushed = None if image is None else decode_meta(image.meta).descriptor
        if flushed is None or flushed.version != state.descriptor.version:
            self.environment.flush_wanted = True
            return None
        return store.open_snapshot(replica.group, flushed.start, flushed.end)

    async def _stream(self, replica: Replica, message: Message, node: str, reader: SnapshotReader) -> None:
        header = reader.header
        index = header.image.applied_index
        offer = SnapshotOffer(
            group=replica.group,
            from_id=replica.replica_id,
            to_id=message.to_id,
            term=message.term,
            image=header.image,
            start=header.start,
            end=header.end,
        )

        async def read_chunk(number: int) -> bytes | None:
            # On the loop: a chunk takes 1 ms here, and beside a busy loop far longer on a thread that wants the GIL.
            return reader.chunk(number)

        installed = False
        self.flusher.pin(replica.group, index)
        logger.info("group %d: snapshot at %d goes to replica %d", replica.group, index, message.to_id)
        try:
            assert self.transport is not None
            await self.transport.send_snapshot(node, _encode(offer), read_chunk)
            installed = True
            self.environment.metrics.snapshots_sent += 1
        except DamagedRecord as error:
            replica.rot(error)  # with this state nobody can be healed: let a sound replica lead
        except (ConnectionError, TimeoutError, SnapshotRefused, SnapshotLost) as error:
            if isinstance(error, SnapshotRefused):  # by another shard in its place, maybe, that has to go first
                pause = REFUSED_SECONDS * self.environment.rng.uniform(0.5, 1.0)
                self._refused[replica.group, message.to_id] = asyncio.get_running_loop().time() + pause
            logger.warning("group %d: snapshot for replica %d: %s", replica.group, message.to_id, error)
        finally:
            self._sending.discard((replica.group, message.to_id))
            self.flusher.unpin(replica.group, index)
            reader.close()
            if self.core.replicas.get(replica.group) is replica:
                replica.raw.report_snapshot(message.to_id, installed)
                self.core.mark(replica)
                self.schedule_pump()

    # -- receiving -------------------------------------------------------------------------------------------------

    def resume_at(self, header: bytes) -> int:
        """The first chunk that is still wanted of this very snapshot."""
        return next((one.next_chunk for one in self.incoming.values() if one.header == header), 0)

    async def receive(self, node: str, header: bytes, chunks: AsyncIterator[tuple[int, bytes]]) -> None:
        """Install a snapshot. Raises SnapshotRefused where it can't be; a broken stream may come back."""
        try:
            offer = _decoder.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SnapshotRefused(f"malformed offer: {error}") from None
        incoming = self.incoming.get(offer.group)
        if incoming is None:
            incoming = await self._begin(node, header, offer)  # its second await has the group in `incoming`
        elif incoming.header != header or incoming.receiving:
            raise SnapshotRefused("a snapshot of this group is being installed")
        else:
            incoming.receiving = True
        if incoming.give_up is not None:
            incoming.give_up.cancel()
            incoming.give_up = None
        try:
            async for number, data in chunks:
                if number != incoming.next_chunk:
                    raise ConnectionError(f"chunk {number} came where {incoming.next_chunk} was due")
                await self._done(partial(self._install_chunk, offer, data))
                incoming.next_chunk += 1
            await self._done(lambda done: self.environment.state_store.install_finish(offer.header, done))
        except DamagedRecord as error:
            self._give_up(incoming, offer.group)
            raise SnapshotRefused(str(error)) from None
        except BaseException:
            incoming.receiving = False
            loop = asyncio.get_running_loop()
            incoming.give_up = loop.call_later(RESUME_SECONDS, self._give_up, incoming, offer.group)
            raise
        self._finish(incoming, offer)

    def _install_chunk(self, offer: SnapshotOffer, data: bytes, done: Callable[[], None]) -> None:
        self.environment.state_store.install_chunk(offer.group, data, done)

    async def _begin(self, node: str, header: bytes, offer: SnapshotOffer) -> Incoming:
        self._check_range(offer)
        replica = await self._receiver(offer)
        if replica.installing:
            raise SnapshotRefused("a snapshot of this group is being installed")
        raw = replica.raw
        if offer.term < raw.term:
            raise SnapshotRefused(f"the snapshot's term {offer.term} is over; this replica is in term {raw.term}")
        if replica.state is not None and offer.image.applied_index <= raw.commit:
            self._step(replica, offer.message)  # the core answers with what it has
            raise SnapshotRefused("the snapshot is older than what is committed here")
        self._check_range(offer)  # again: the replica may have taken a moment to be admitted
        old = replica.state
        # What the replica held behind the snapshot's end belongs to nobody here until the child's snapshot comes.
        clear_to = offer.end if old is None else max(offer.end, old.descriptor.end)
        replica.node_of.setdefault(offer.from_id, node)
        replica.end_requests("the replica is being replaced by a snapshot")
        replica.installing = True
        replica.state = None
        incoming = Incoming(header=header, term=offer.term, replica=replica)
        self.incoming[offer.group] = incoming
        store = self.environment.state_store
        await self._done(lambda done: store.install_begin(offer.header, done, clear_to=clear_to))
        return incoming

    def _check_range(self, offer: SnapshotOffer) -> None:
        """Raises SnapshotRefused while the range is another shard's here, in memory or on the disk (the leader offers
        it again): that one has to be split, flushed or destroyed first, and what is being deleted, be gone."""
        group, start, end = offer.group, offer.start, offer.end
        if group in self.lifecycle.births.unborn:
            raise SnapshotRefused("this replica's state is made by its parent's replay, or given up when that can't be")
        overlapping = self.lifecycle.overlapping(group, start, end)
        if overlapping:
            raise SnapshotRefused(f"its range overlaps that of local shards {list(overlapping)}")
        if self.lifecycle.flushed_overlapping(group, start, end) or self.lifecycle.births.unflushed_of(group):
            self.environment.flush_wanted = True
            raise SnapshotRefused("a split that was applied here has to be flushed first")

    async def _receiver(self, offer: SnapshotOffer) -> Replica:
        replica = self.core.replicas.get(offer.group)
        if replica is None or replica.replica_id < offer.to_id:
            self.lifecycle.admit(offer.group, offer.to_id)
            async with asyncio.timeout(ADMIT_SECONDS):
                await self._done(lambda done: self.environment.log_store.submit([], done))
            replica = self.core.replicas.get(offer.group)
        if replica is None or replica.replica_id != offer.to_id or replica.failed:
            raise SnapshotRefused(f"replica {offer.to_id} of group {offer.group} is not to be had here")
        return replica

    def _finish(self, incoming: Incoming, offer: SnapshotOffer) -> None:
        """The data is whole and durable: from here the replica stands at the snapshot's index."""
        replica = incoming.replica
        del self.incoming[offer.group]
        environment = self.environment
        store = environment.state_store
        replica.installing = False
        self._step(replica, offer.message)
        assert replica.raw.commit == offer.image.applied_index, (replica.raw.commit, offer.image.applied_index)
        replica.adopt(ShardState.load(offer.group, offer.image, store.sessions(offer.group), store))
        replica.log.set_snapshot(offer.message.snapshot)
        overlapping = self.lifecycle.overlapping(offer.group, offer.start, offer.end)
        assert not overlapping, f"group {offer.group} was installed into the ranges of {list(overlapping)}"
        self.lifecycle.births.on_installed(offer.group, offer.image.applied_index)
        environment.metrics.snapshots_installed += 1
        logger.info("group %d: snapshot at %d is installed", offer.group, offer.image.applied_index)
        self.schedule_pump()

    def _step(self, replica: Replica, message: Message) -> None:
        try:
            replica.raw.step(message)
        except StepRefused as error:
            raise SnapshotRefused(str(error)) from None
        self.core.mark(replica)
        self.schedule_pump()

    def on_leader(self, group: int, term: int) -> None:
        """The leader of this term writes to a replica that waits for the rest of a snapshot: if that was another's, its
        stream does not come back. The new leader can't know what is needed here until this replica answers again."""
        incoming = self.incoming.get(group)
        if incoming is not None and not incoming.receiving and incoming.term < term:
            if incoming.give_up is not None:
                incoming.give_up.cancel()
            self._give_up(incoming, group)

    def _give_up(self, incoming: Incoming, group: int) -> None:
        """The stream did not come back, or brought damage: the half-written state is of no use."""
        if self.incoming.get(group) is not incoming:
            return
        del self.incoming[group]
        logger.warning("group %d: the installation of a snapshot was given up", group)
        self.lifecycle.reload_without_state(incoming.replica)
        self.schedule_pump()

    async def _done(self, start: Callable[[Callable[[], None]], None]) -> None:
        """Wait for the `done` of a storage call."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done() -> None:
            if not future.done():
                future.set_result(None)

        start(done)
        await future

    async def close(self) -> None:
        """Stop sending; what is half received is found incomplete at the next start."""
        for incoming in self.incoming.values():
            if incoming.give_up is not None:
                incoming.give_up.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
