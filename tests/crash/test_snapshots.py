"""Replicas that are so far behind that they need a snapshot, and what can go wrong on its way.

Method: production nodes in this process, with a log that is kept for 64 KiB only, and a gate between chunks of the
sender's reader, where the test damages, stops and kills.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from kvstore.base.errors import KVError
from kvstore.base.limits import KIB
from kvstore.client import Client
from kvstore.replica import flush
from kvstore.storage import chunks
from kvstore.storage.snapshot_reader import LmdbSnapshot
from kvstore.testing import LocalCluster
from kvstore.transport.peer_link import WebSocketTransport
from tests.crash.load import Load

VALUE = b"v" * 1_000
KEYS = 600


@pytest.fixture(autouse=True)
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "LOG_KEEP_BYTES", 64 * KIB)
    monkeypatch.setattr(chunks, "SNAPSHOT_CHUNK_BYTES", 64 * KIB)  # about ten chunks


@pytest.fixture
async def cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(nodes=3, flush_interval_ms=100) as running:
        yield running


class Gate:
    """Chunks from `at` on wait at the sender until `open` is set; `reached` tells that one waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        original = WebSocketTransport.send_snapshot

        async def send(
            transport: WebSocketTransport, node: str, header: bytes, read: Callable[[int], Awaitable[bytes | None]]
        ) -> None:
            async def read_gated(number: int) -> bytes | None:
                if number >= at and not self.open.is_set():
                    self.reached.set()
                    await self.open.wait()
                return await read(number)

            await original(transport, node, header, read_gated)

        monkeypatch.setattr(WebSocketTransport, "send_snapshot", send)


@pytest.fixture
async def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch, at=4)


async def _leave_behind(cluster: LocalCluster, kv: Client) -> str:
    """A follower is stopped, and so much is written that its next entry is compacted everywhere; its name."""
    await kv.put(b"before", b"1")
    leader = await cluster.leader()
    behind = next(name for name in ("n3", "n2") if name != leader)
    last = cluster.nodes[behind].host.core.replicas[2].raw.last_index
    await cluster.kill(behind)
    results = [await kv.put_many({b"key-%d-%03d" % (part, n): VALUE for n in range(KEYS // 4)}) for part in range(4)]
    assert all(type(one) is int for part in results for one in part)

    async def compacted() -> bool:
        await kv.put(b"more", VALUE * 10)
        return all(node.host.core.replicas[2].log.first_index() > last + 1 for node in cluster.nodes.values())

    await cluster.until(compacted)
    return behind


async def _caught_up(cluster: LocalCluster, name: str) -> None:
    """Until the node has applied all that is committed now, and is not barred from voting."""
    target = cluster.nodes[await cluster.leader()].host.core.replicas[2].raw.commit

    async def level() -> bool:
        own = cluster.nodes[name].host.core.replicas.get(2)
        return (
            own is not None
            and own.state is not None
            and not own.failed
            and not own.healing.damaged
            and own.state.applied_index >= target
        )

    await cluster.until(level)


async def _check_on(cluster: LocalCluster, name: str, kv: Client) -> None:
    """Everything is on this node: it is needed for the quorum and made the leader."""
    await cluster.nodes[name].admin.placement.set_settings({"rebalance": False})  # which might move it back
    leader = await cluster.leader()
    await cluster.kill(next(one for one in cluster.nodes if one not in (name, leader)))

    async def led() -> bool:
        leader = await cluster.leader()
        if leader != name:
            with contextlib.suppress(KVError):  # the members' records are read every half second only
                await cluster.nodes[leader].admin.transfer(2, name)
        return leader == name

    await cluster.until(led)
    assert len([item async for item in kv.scan(prefix=b"key-")]) == KEYS
    assert await cluster.leader() == name


async def test_follower_far_behind_catches_up_while_writes_go_on(cluster: LocalCluster) -> None:
    async with cluster.client() as kv:
        behind = await _leave_behind(cluster, kv)
        async with Load(kv, pause=0.01) as load:
            node = await cluster.start(behind)
            await _caught_up(cluster, behind)
            assert node.metrics.snapshots_installed == 1
        await load.check()
        assert not load.told.errors
        await _caught_up(cluster, behind)
        await _check_on(cluster, behind, kv)


async def test_damaged_chunk_is_refused_and_the_next_try_succeeds(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = LmdbSnapshot.chunk
    damaged: list[int] = []

    def chunk(reader: LmdbSnapshot, number: int) -> bytes | None:
        data = original(reader, number)
        if number == 2 and data is not None and not damaged:
            damaged.append(number)
            data = data[:100] + bytes((data[100] ^ 1,)) + data[101:]
        return data

    monkeypatch.setattr(LmdbSnapshot, "chunk", chunk)
    async with cluster.client() as kv:
        behind = await _leave_behind(cluster, kv)
        with caplog.at_level(logging.WARNING):
            node = await cluster.start(behind)
            await _caught_up(cluster, behind)
        assert damaged
        assert node.metrics.snapshots_installed == 1
        assert any("does not match its checksum" in record.getMessage() for record in caplog.records)
        await _check_on(cluster, behind, kv)


async def test_receiver_killed_in_the_middle_is_healed_after_its_start(
    cluster: LocalCluster, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.client() as kv:
        behind = await _leave_behind(cluster, kv)
        node = await cluster.start(behind)
        await _half_installed(cluster, behind, gate)
        await cluster.kill(behind)
        gate.open.set()
        with caplog.at_level(logging.WARNING):
            node = await cluster.start(behind)
        assert any("was cut off" in record.getMessage() for record in caplog.records)
        assert node.host.core.replicas[2].raw.barred
        await _caught_up(cluster, behind)
        assert node.metrics.snapshots_installed == 1
        assert not node.host.core.replicas[2].raw.barred
        await kv.put(b"after", b"1")
        await _check_on(cluster, behind, kv)


async def test_leader_killed_in_the_middle_is_replaced_as_the_sender(cluster: LocalCluster, gate: Gate) -> None:
    """The receiver must not wait for the rest of a snapshot that will not come: another leader has another one."""
    async with cluster.client(timeout=20) as kv:
        behind = await _leave_behind(cluster, kv)
        node = await cluster.start(behind)
        await _half_installed(cluster, behind, gate)
        killed = await cluster.leader()
        stay = next(name for name in cluster.nodes if name not in (killed, behind))
        await cluster.kill(killed)
        gate.open.set()
        await cluster.start(killed)

        async def led() -> bool:
            return cluster.nodes[stay].host.core.replicas[2].raw.leader_id != 0

        await cluster.until(led)
        await kv.put(b"after", b"1")
        async with asyncio.timeout(15):  # not the half minute for which a broken stream is waited for
            await _caught_up(cluster, behind)
        assert node.metrics.snapshots_installed == 1
        await _check_on(cluster, behind, kv)


async def _half_installed(cluster: LocalCluster, name: str, gate: Gate) -> None:
    async def half() -> bool:
        incoming = cluster.nodes[name].host.snapshots.incoming.get(2)
        return gate.reached.is_set() and incoming is not None and incoming.next_chunk == 4

    await cluster.until(half)
