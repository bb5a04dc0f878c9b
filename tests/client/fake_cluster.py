"""A store in one process that speaks the stream and misbehaves on command.

The state machine is a dictionary with the session table of the design: known answers first, then the window, then
the range, then execution. All nodes see it at once: there is no replication here, only what a client can observe of it.

Invariant: `Shard.log` has one row for each execution of a mutation; a mutation executed twice shows there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from kvstore.base.errors import CODES, Code, Invalid, KVError
from kvstore.base.limits import SESSION_WINDOW_MS, STAMP_AHEAD_MS_MAX, Limits
from kvstore.base.operations import (
    Batch,
    BatchDone,
    Cas,
    Delete,
    DeleteRange,
    Failure,
    Found,
    Get,
    Item,
    Mismatch,
    Mutation,
    Page,
    Put,
    RangeDeleted,
    ReadOperation,
    Result,
    Scan,
    decode_mutations,
    decode_reads,
)
from kvstore.base.shards import Route
from kvstore.base.stream import GetRoutes, Hello, Mutate, Ping, Pong, Read, Refused, Reply, Results, Routes, Welcome

LOOK_SECONDS = 0.02  # between two looks for a change, for who waits
STALE = Failure(Code.STALE_ROUTE, "moved")


class Act(Enum):
    """What a node does with a frame instead of executing and answering it."""

    DROP_BEFORE = auto()  # closes the connection
    DROP_AFTER = auto()  # executes, then closes
    HANG = auto()  # never answers, nor executes
    HANG_AFTER = auto()  # executes, never answers
    GARBAGE = auto()  # answers with bytes that are no message
    SHORT = auto()  # executes, and answers with one result too few


@dataclass(frozen=True)
class Refuse:
    """Answers the frame with a refusal."""

    code: Code
    definite: bool | None = None
    retry_after_ms: int | None = None
    routes: tuple[Route, ...] = ()
    execute: bool = False  # first, as after a proposal whose fate is not known


@dataclass(frozen=True)
class FailEach:
    """Answers each operation with a Failure, executing none."""

    failure: Failure


@dataclass(frozen=True)
class Delay:
    """Executes, and answers later."""

    seconds: float


Fault = Act | Refuse | FailEach | Delay
Script = Callable[["Node", Mutate | Read], Fault | None]


@dataclass
class Shard:
    id: int
    start: bytes
    end: bytes
    version: int = 1
    term: int = 1
    leader: str | None = "n1"
    revision: int = 0
    floor: int = 0  # ms stamp
    skew_ms: int = 0  # of this shard's clock
    data: dict[bytes, Found] = field(default_factory=dict)
    answers: dict[tuple[bytes, int], Result] = field(default_factory=dict)
    log: list[tuple[bytes, int, Mutation]] = field(default_factory=list)  # (session, seq, operation)
    low: dict[bytes, int] = field(default_factory=dict)  # by session

    def covers(self, key: bytes) -> bool:
        return self.start <= key and (not self.end or key < self.end)

    def covers_range(self, start: bytes, end: bytes) -> bool:
        return self.covers(start) and (not end or not self.end or end <= self.end)

    def keys(self, start: bytes, end: bytes) -> list[bytes]:
        end = end or self.end
        return sorted(key for key in self.data if start <= key and (not end or key < end))

    # -- mutations
    def mutate(self, frame: Mutate, operations: list[Mutation], stamp: int) -> list[Result]:
        if frame.session:
            self.low[frame.session] = max(self.low.get(frame.session, 0), frame.low)
        return [self._mutate_one(frame, operation, stamp) for operation in operations]

    def _mutate_one(self, frame: Mutate, operation: Mutation, stamp: int) -> Result:
        name = (frame.session, operation.seq)
        if frame.session:
            if name in self.answers:
                return self.answers[name]
            if frame.issued_at <= max(self.floor, stamp - SESSION_WINDOW_MS):
                return Failure(Code.SESSION_EXPIRED, "too old")
            if operation.seq < self.low[frame.session]:
                return Failure(Code.SESSION_EXPIRED, "given up")
            if frame.issued_at > stamp + STAMP_AHEAD_MS_MAX:
                return Failure(Code.INVALID, "ahead")
        if frame.version != self.version or not self._holds(operation):
            return STALE
        result = self._execute(operation)
        self.log.append((frame.session, operation.seq, operation))
        if frame.session:
            self.answers[name] = result
        return result

    def _holds(self, operation: Mutation) -> bool:
        if isinstance(operation, Batch):
            return all(self.covers(one.key) for one in operation.operations)
        if isinstance(operation, DeleteRange):
            return self.covers_range(operation.start, operation.end)
        return self.covers(operation.key)

    def _execute(self, operation: Mutation) -> Result:
        if isinstance(operation, Batch):
            return self._batch(operation)
        if isinstance(operation, DeleteRange):
            keys = self.keys(operation.start, operation.end)
            doomed, rest = keys[: operation.limit], keys[operation.limit :]
            for key in doomed:
                del self.data[key]
            self.revision += bool(doomed)
            return RangeDeleted(len(doomed), self.revision if doomed else 0, rest[0] if rest else None)
        current = self.data.get(operation.key)
        if isinstance(operation, Cas) and not _condition(operation, current):
            return Mismatch(0, current)
        revision = self.revision + 1
        if self._change(operation, revision):
            self.revision = revision
            return revision
        return 0

    def _batch(self, operation: Batch) -> Result:
        for index, one in enumerate(operation.operations):
            if isinstance(one, Cas) and not _condition(one, self.data.get(one.key)):
                return Mismatch(index, self.data.get(one.key))
        found = [self.data.get(one.key) if isinstance(one, Get) else None for one in operation.operations]
        revision = self.revision + 1
        results: list[int | Found | None] = []
        changed = False
        for one, before in zip(operation.operations, found, strict=True):
            if isinstance(one, Get):
                results.append(before)
            else:
                did = self._change(one, revision)
                changed |= did
                results.append(revision if did else 0)
        self.revision += changed
        return BatchDone(revision if changed else 0, results)

    def _change(self, operation: Put | Delete | Cas, revision: int) -> bool:
        old = self.data.get(operation.key)
        value = None if isinstance(operation, Delete) else operation.value
        if value is None:
            return self.data.pop(operation.key, None) is not None
        created = old.create_revision if old is not None else revision
        self.data[operation.key] = Found(value, revision, created, old.version + 1 if old is not None else 1)
        return True

    # -- reads
    def read(self, operations: list[ReadOperation]) -> list[Result]:
        return [self.data.get(one.key) if isinstance(one, Get) else self._scan(one) for one in operations]

    def _scan(self, scan: Scan) -> Page:
        keys = self.keys(scan.start, scan.end)
        if scan.reverse:
            keys.reverse()
        items: list[Item] = []
        size = 0
        for key in keys:
            if len(items) >= scan.limit or size >= scan.bytes_max:
                cursor = items[-1].key if scan.reverse else key
                return Page(items, cursor, self.revision)
            found = self.data[key]
            items.append(Item(key, found.value, found.mod_revision, found.create_revision, found.version))
            size += len(key) + len(found.value)
        return Page(items, None, self.revision)


def _condition(operation: Cas, current: Found | None) -> bool:
    if operation.revision is not None:
        return operation.revision == (current.mod_revision if current is not None else 0)
    return current is not None and current.value == operation.expected


class Node:
    """One node's way of answering; its connections belong to a transport (memory or WebSocket)."""

    def __init__(self, cluster: Cluster, name: str, address: str) -> None:
        self.cluster = cluster
        self.name = name
        self.address = address
        self.up = True
        self.connections: set[Peer] = set()
        self.dialled = 0
        self.frames: list[Mutate | Read] = []  # all that came, in order
        self.hint: Callable[[Route], Route] = lambda route: route  # what this node believes of a route
        self.lets_wait = True  # or answers requests that wait at once, as a node that stops
        self.asked: list[GetRoutes] = []
        self._told: object = None  # what was shown at the last version
        self._version = 1_000 * len(cluster.nodes_made)
        cluster.nodes_made.append(self)
        self.mute = False  # takes messages and never says anything, not even Pong: a paused process

    def kill(self) -> None:
        self.up = False
        for peer in list(self.connections):
            peer.close()

    def routes_version(self) -> int:
        """Another one with each change of what this node would tell."""
        shown = (self.cluster.routes(self), self.cluster.members())
        if shown != self._told:
            self._told = shown
            self._version += 1
        return self._version

    def on_frame(self, peer: Peer, frame: Mutate | Read) -> None:
        self.frames.append(frame)
        fault = self.cluster.fault_for(self, frame)
        if fault is None:
            peer.push(self.answer(frame))
        elif isinstance(fault, Refuse):
            if fault.execute:
                self.answer(frame)
            info = CODES[fault.code]
            definite = info.definite if fault.definite is None else fault.definite
            after = info.retry_after_ms if fault.retry_after_ms is None else fault.retry_after_ms
            stamp = self.cluster.stamp()
            peer.push(Refused(frame.id, stamp, fault.code, "as told", definite, after, fault.routes))
        elif isinstance(fault, FailEach):
            count = len(msgspec.msgpack.decode(frame.operations))
            peer.push(Results(frame.id, self.cluster.stamp(), [fault.failure] * count))
        elif isinstance(fault, Delay):
            answer = self.answer(frame)
            asyncio.get_running_loop().call_later(fault.seconds, peer.push, answer)
        else:
            self._act(peer, frame, fault)

    def _act(self, peer: Peer, frame: Mutate | Read, act: Act) -> None:
        if act in (Act.DROP_AFTER, Act.HANG_AFTER, Act.SHORT):
            answer = self.answer(frame)
            if act is Act.SHORT and isinstance(answer, Results):
                answer.results.pop()
                peer.push(answer)
        if act in (Act.DROP_BEFORE, Act.DROP_AFTER):
            peer.close()
        if act is Act.GARBAGE:
            peer.push_raw(b"\xc1\x00garbage")

    def answer(self, frame: Mutate | Read) -> Results | Refused:
        shard = self.cluster.shards.get(frame.shard)
        if shard is None:
            return self._refuse(frame, Code.STALE_ROUTE, self.cluster.routes(self))
        stale_read = isinstance(frame, Read) and frame.max_staleness_ms >= 0
        if shard.leader != self.name and not stale_read:
            return self._refuse(frame, Code.NOT_LEADER, (self.hint(self.cluster.route(shard)),))
        if frame.version != shard.version:
            return self._refuse(frame, Code.STALE_ROUTE, self.cluster.routes(self))
        stamp = self.cluster.stamp() + shard.skew_ms
        try:
            if isinstance(frame, Mutate):
                operations = decode_mutations(frame.operations, self.cluster.limits)
                return Results(frame.id, stamp, shard.mutate(frame, operations, stamp))
            reads = decode_reads(frame.operations, self.cluster.limits)
        except KVError as error:
            return self._refuse(frame, error.code, ())
        if stale_read:
            return Results(frame.id, stamp, shard.read(reads), applied=shard.revision, age_ms=7)
        return Results(frame.id, stamp, shard.read(reads))

    def _refuse(self, frame: Mutate | Read, code: Code, routes: tuple[Route, ...]) -> Refused:
        info = CODES[code]
        return Refused(frame.id, self.cluster.stamp(), code, info.meaning, info.definite, info.retry_after_ms, routes)


class Peer:
    """One connection as the node sees it: `push` answers, `close` ends it."""

    def __init__(self, node: Node, send: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self._node = node
        self._send = send
        self._close = close
        self._greeted = False
        node.connections.add(self)
        node.dialled += 1

    def close(self) -> None:
        if self in self._node.connections:
            self._node.connections.discard(self)
            self._close()

    def push(self, reply: Reply) -> None:
        self.push_raw(msgspec.msgpack.encode([reply]))

    def push_raw(self, data: bytes) -> None:
        if self in self._node.connections and not self._node.mute:
            self._send(data)

    def receive(self, message: bytes) -> None:
        for frame in self._node.cluster.decode(message):
            if self not in self._node.connections:
                return
            self._on_frame(frame)

    def _on_frame(self, frame: Hello | Mutate | Read | GetRoutes | Ping) -> None:
        node, cluster = self._node, self._node.cluster
        if isinstance(frame, Hello):
            assert not self._greeted
            self._greeted = True
            self.push(Welcome(cluster.protocol, node.name, cluster.id, cluster.stamp(), cluster.limits_dict()))
            return
        assert self._greeted
        if isinstance(frame, Ping):
            self.push(Pong(frame.id, cluster.stamp()))
        elif isinstance(frame, GetRoutes):
            node.asked.append(frame)
            until = asyncio.get_running_loop().time() + frame.wait_ms / 1_000
            self._tell_routes(frame, until if node.lets_wait else 0.0)
        else:
            node.on_frame(self, frame)

    def _tell_routes(self, frame: GetRoutes, until: float) -> None:
        """Now, or when something has changed, or at that time."""
        loop = asyncio.get_running_loop()
        node, cluster = self._node, self._node.cluster
        version = node.routes_version()
        if version == frame.version and loop.time() < until and self in node.connections:
            loop.call_later(LOOK_SECONDS, self._tell_routes, frame, until)
            return
        if version == frame.version:
            self.push(Routes(frame.id, version, dict(cluster.keyspaces), [], whole=False))
        else:
            members = cluster.members()
            self.push(Routes(frame.id, version, dict(cluster.keyspaces), list(cluster.routes(node)), members))


class Cluster:
    def __init__(self, nodes: int = 3, *, splits: tuple[bytes, ...] = ()) -> None:
        self.id = "c" * 32
        self.protocol = 1
        self.limits = Limits()
        self.keyspaces = {"default": 1}
        self.skew_ms = 0  # of the nodes' clocks
        self.conf = 1  # of every shard: raised when their replicas change
        self.bare: set[str] = set()  # nodes without replicas
        self.nodes_made: list[Node] = []
        self.nodes = {f"n{i}": Node(self, f"n{i}", f"10.0.0.{i}:7001") for i in range(1, nodes + 1)}
        bounds = (b"", *splits, b"")
        names = list(self.nodes)
        self.shards = {
            2 + i: Shard(2 + i, bounds[i], bounds[i + 1], leader=names[i % nodes]) for i in range(len(bounds) - 1)
        }
        self.script: Script | None = None
        self._faults: deque[Fault | None] = deque()
        self.messages: list[list[Hello | Mutate | Read | GetRoutes | Ping]] = []  # messages as they came

    # -- what happens
    def then(self, *faults: Fault | None) -> None:
        """What becomes of the next frames of operations, one each; afterwards all is well again."""
        self._faults.extend(faults)

    def fault_for(self, node: Node, frame: Mutate | Read) -> Fault | None:
        if self._faults:
            return self._faults.popleft()
        return self.script(node, frame) if self.script is not None else None

    def lead(self, shard: int, name: str | None) -> None:
        self.shards[shard].leader = name
        self.shards[shard].term += 1

    def split(self, shard: int, at: bytes, *, child: int, leader: str) -> None:
        """The child takes the upper half, with a copy of the session table."""
        left = self.shards[shard]
        right = Shard(child, at, left.end, version=left.version + 1, leader=leader, revision=left.revision)
        right.answers, right.low, right.floor = dict(left.answers), dict(left.low), left.floor
        right.data = {key: found for key, found in left.data.items() if key >= at}
        left.data = {key: found for key, found in left.data.items() if key < at}
        left.end, left.version = at, left.version + 1
        self.shards[child] = right

    def merge(self, shard: int, other: int) -> None:
        left, right = self.shards[shard], self.shards.pop(other)
        assert left.end == right.start
        left.end, left.version = right.end, max(left.version, right.version) + 1
        left.data |= right.data
        left.answers |= right.answers
        left.log += right.log
        for session, low in right.low.items():
            left.low[session] = max(low, left.low.get(session, 0))
        left.revision = max(left.revision, right.revision)

    def add_node(self, name: str, address: str, *, bare: bool = False) -> None:
        """It gets a replica of every shard, or none."""
        self.nodes[name] = Node(self, name, address)
        if bare:
            self.bare.add(name)
        else:
            self.conf += 1

    # -- what is so
    def stamp(self) -> int:
        return 1_700_000_000_000 + int(asyncio.get_running_loop().time() * 1000) + self.skew_ms

    def route(self, shard: Shard) -> Route:
        leader = self.nodes.get(shard.leader) if shard.leader is not None else None
        return Route(
            shard.id,
            1,
            shard.start,
            shard.end,
            shard.version,
            self.conf,
            shard.term,
            leader.name if leader is not None else None,
            leader.address if leader is not None else None,
            tuple((node.name, node.address, 1) for node in self.nodes.values() if node.name not in self.bare),
        )

    def members(self) -> tuple[tuple[str, str], ...]:
        """Those that are alive."""
        return tuple((node.name, node.address) for node in self.nodes.values() if node.up)

    def routes(self, node: Node) -> tuple[Route, ...]:
        return tuple(node.hint(self.route(shard)) for shard in sorted(self.shards.values(), key=lambda one: one.start))

    def limits_dict(self) -> dict[str, int]:
        return {name: getattr(self.limits, name) for name in self.limits.__dataclass_fields__}

    def decode(self, message: bytes) -> list[Hello | Mutate | Read | GetRoutes | Ping]:
        frames = msgspec.msgpack.decode(message, type=list[Hello | Mutate | Read | GetRoutes | Ping])
        if len(message) > self.limits.request_bytes_max:
            raise Invalid("too long")
        self.messages.append(frames)
        return frames

    def log(self) -> list[tuple[bytes, int, Mutation]]:
        """Every execution of every shard."""
        return [row for shard in self.shards.values() for row in shard.log]

    def frames(self) -> list[Mutate | Read]:
        return [frame for node in self.nodes.values() for frame in node.frames]
