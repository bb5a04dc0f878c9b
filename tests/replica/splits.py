"""Shards that split, in a simulated cluster: how to ask for one, and what must hold on every node at every moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import msgspec
import pytest

from kvstore.base.operations import Mutation, encode
from kvstore.base.shards import keyspace_range
from kvstore.base.stream import Mutate
from kvstore.replica.replica import Replica
from kvstore.replica.requests import SplitRequest
from kvstore.state.command import Split
from kvstore.transport.protocol import GroupMessage
from tests.replica.world import SHARD, Answer, SimNode, World

PREFIX = b"\0\0\0\1"
CHILD = 100


def replica_of(node: SimNode, shard: int) -> Replica | None:
    return node.host.core.replicas.get(shard) if node.running else None


def leader_of(world: World, shard: int) -> SimNode | None:
    """The one that leads the shard and has applied everything of its term's beginning."""
    return next(
        (node for node in world.nodes.values() if (one := replica_of(node, shard)) is not None and one.leads), None
    )


def split_at(
    node: SimNode, key: bytes, child: int, *, shard: int = SHARD, left_bytes: int = 0
) -> asyncio.Future[Answer]:
    """Ask this node's replica; `key` is the user's."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    replica = node.host.core.replicas[shard]
    assert replica.state is not None
    descriptor = replica.state.descriptor
    command = Split(descriptor.version, descriptor.conf, PREFIX + key, child, left_bytes)
    request: SplitRequest | None = replica.splits.stage(command, timeout_ms=10_000, reply=future.set_result)
    if request is not None:
        node.host.track(request)
        node.host.mark(replica)
    return future


def mutate_shard(
    node: SimNode,
    *operations: Mutation,
    shard: int,
    version: int,
    session: bytes = b"",
    issued_at: int = 0,
    timeout_ms: int = 2_000,
) -> asyncio.Future[Answer]:
    """Straight to this node's replica of the shard."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    raw = msgspec.Raw(encode(list(operations)))
    stamp = issued_at or node.router.stamp_ms()
    node.router.mutate(Mutate(1, shard, version, timeout_ms, session, 0, stamp, raw), future.set_result)
    return future


def check_ranges(world: World) -> None:
    """No two live replicas of a node overlap, nobody has failed; where all are settled there is no gap either."""
    for node in world.nodes.values():
        assert not node.fatal, (node.name, node.fatal)
        if not node.running:
            continue
        live = []
        for replica in node.host.core.replicas.values():
            assert not replica.failed, (node.name, replica.group, replica.failed)
            if replica.state is not None and replica.state.descriptor.keyspace == 1:
                live.append((replica.state.descriptor.start, replica.state.descriptor.end, replica.group))
        live.sort()
        for left, right in pairwise(live):
            assert left[1] <= right[0], (node.name, left, right)


def shards_of(node: SimNode) -> list[tuple[int, bytes, bytes]]:
    """(group, start, end) of the live replicas of keyspace 1, in key order."""
    found = [
        (replica.group, replica.state.descriptor.start, replica.state.descriptor.end)
        for replica in node.host.core.replicas.values()
        if replica.state is not None and replica.state.descriptor.keyspace == 1
    ]
    return sorted(found, key=lambda one: one[1])


def covers_all(node: SimNode) -> bool:
    """Whether the node's shards are the whole keyspace, without a gap."""
    start, end = keyspace_range(1)
    for _, low, high in shards_of(node):
        if low != start:
            return False
        start = high
    return start == end


@contextmanager
def deaf_for(node: SimNode, group: int) -> Iterator[None]:
    """The node hears nothing of this group: its replica there falls behind, and all others go on."""
    core = node.host.core
    heard = core.on_messages

    def on_messages(node: str, messages: Iterable[GroupMessage]) -> None:
        heard(node, [message for message in messages if message.group != group])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "on_messages", on_messages)
        yield
