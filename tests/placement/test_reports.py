"""Reports of simulated nodes: what is told, when, and that loads are smoothed."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.base.errors import Invalid
from kvstore.base.stream import Results
from kvstore.placement.replica_change import ReplicaChange
from kvstore.placement.reports import Reporter, look_at, pack, unpack_node, unpack_shard
from tests.replica.world import SHARD, SimNode, World, simulated


def reporter(node: SimNode) -> Reporter:
    return Reporter(node.node, node.host.core.replicas, lambda: (40, 100))


@simulated
async def test_a_leader_tells_of_its_shards_once_and_then_what_is_new() -> None:
    async with World() as world:
        leader = await world.leader()
        await world.until(lambda: leader.replica.leads is not None)
        told = reporter(leader)
        first = told.collect(1.0)
        assert (first.node, first.full, first.capacity_bytes, first.used_bytes) == (leader.node, True, 100, 60)
        (shard,) = [one for one in first.led if one.descriptor.id == SHARD]
        assert (shard.leader, shard.term, shard.joint) == (leader.node, leader.replica.raw.term, False)
        second = told.collect(2.0)
        assert (second.full, second.led, second.given_up) == (False, (), ())
        told.forget()
        assert told.collect(3.0).led == first.led
        assert unpack_node(pack(first)) == first
        assert unpack_shard(pack(shard)) == shard


@simulated
async def test_a_leadership_that_is_gone_is_told() -> None:
    async with World() as world:
        leader = await world.leader()
        await world.until(lambda: leader.replica.leads is not None)
        told = reporter(leader)
        told.collect(1.0)
        term = leader.replica.raw.term
        leader.replica.transfer_away()
        leader.host.mark(leader.replica)
        await world.until(lambda: not leader.replica.is_leader)
        assert told.collect(2.0).given_up == ((SHARD, term),)
        assert look_at(leader.replica) is None


@simulated
async def test_sizes_and_loads() -> None:
    """In a steady state it is the rate; when nothing is asked any more, it fades to nothing."""
    async with World() as world:
        leader = await world.leader()
        told = reporter(leader)
        await world.until(lambda: leader.replica.leads is not None)
        told.collect(0.0)
        for second in range(1, 101):
            for _ in range(10):
                assert isinstance(await leader.put(b"k", b"v"), Results)
            for _ in range(30):
                await leader.get(b"k")
            report = told.collect(float(second))
            if second == 1:
                assert len(report.led) == 1  # it is not idle any more
            elif second == 2:
                assert report.led == ()  # less than is worth a report
        told.forget()
        (shard,) = [one for one in told.collect(101.0).led if one.descriptor.id == SHARD]
        assert shard.writes == pytest.approx(10, abs=2)
        assert shard.reads == pytest.approx(30, abs=4)
        for second in range(102, 102 + 120):
            report = told.collect(float(second))
        told.forget()
        (shard,) = [one for one in told.collect(300.0).led if one.descriptor.id == SHARD]
        assert (shard.writes, shard.reads) == (0, 0)


@simulated
async def test_a_swap_is_one_joint_change() -> None:
    """The number of voters is never another one, and the group serves all the time."""
    async with World(nodes=3, spare=1) as world:
        leader = await world.leader()
        spare = world.nodes["d"]
        gone = world.others(leader)[0]
        change = ReplicaChange(leader.host, SHARD, timeout_seconds=10)
        await change.add_learner(spare.node)
        await change.add_learner(spare.node)  # again: nothing
        sizes: set[tuple[int, int]] = set()

        async def watch() -> None:
            while True:
                state = leader.replica.raw.conf_state
                sizes.add((len(state.voters), len(state.voters_outgoing)))
                await asyncio.sleep(0.001)

        watcher = asyncio.get_running_loop().create_task(watch())
        await change.promote(spare.node, other=gone.node)
        watcher.cancel()
        assert sizes <= {(3, 0), (3, 3)}
        await change.promote(spare.node, other=gone.node)  # again: nothing
        state = leader.replica.state
        assert state is not None
        assert {place.node for place in state.descriptor.replicas} == {
            node.node for node in (leader, spare, *world.others(leader)[1:]) if node is not gone
        }
        assert isinstance(await leader.put(b"k", b"v"), Results)


@pytest.mark.parametrize("text", ["", "AAAA", "nonsense", 5, None])
def test_malformed_reports(text: object) -> None:
    for unpack in (unpack_node, unpack_shard):
        with pytest.raises(Invalid):
            unpack(text)
