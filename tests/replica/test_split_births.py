"""The child of a split where the parent's replica is late, gone, or was flushed long ago: nothing is created twice,
nothing that was voted is forgotten, and no two replicas of a node ever claim one key.

Method: one situation each, brought about by a node that is deaf for one group, on virtual time.
"""

from __future__ import annotations

import asyncio

import pytest

from kvstore.base.operations import Found, Put
from kvstore.base.shards import ReplicaRole
from kvstore.base.stream import Results
from kvstore.placement.replica_change import ReplicaChange
from kvstore.replica import flush as flush_module
from kvstore.replica.membership import FOUNDERS_IDS_MAX
from kvstore.storage.keys import LogKind, log_key
from tests.replica.splits import (
    CHILD,
    check_ranges,
    covers_all,
    deaf_for,
    leader_of,
    mutate_shard,
    replica_of,
    shards_of,
    split_at,
)
from tests.replica.test_split import both_led, filled
from tests.replica.world import SHARD, SimNode, World, simulated


def same_state(*nodes: SimNode, shard: int = CHILD) -> bool:
    """Whether every one of them has the shard, with the same state."""
    states = [one.state if (one := replica_of(node, shard)) is not None else None for node in nodes]
    return len({None if state is None else state.image().meta for state in states} | {None}) == 2 and None not in states


async def write_some(world: World, shard: int, *, version: int = 2, count: int = 5) -> None:
    leader = leader_of(world, shard)
    assert leader is not None
    for number in range(count):
        answer = await mutate_shard(leader, Put(0, b"x%d" % number, b"new"), shard=shard, version=version)
        assert isinstance(answer, Results), answer


@simulated
async def test_child_of_a_parent_that_is_behind_waits_and_keeps_its_vote() -> None:
    """The child's leader has an empty replica made, which votes; its snapshot must wait for the parent's split."""
    async with World() as world:
        leader = await filled(world)
        late = next(node for node in world.nodes.values() if node is not leader)
        with deaf_for(late, SHARD):
            await split_at(leader, b"m", CHILD)
            await both_led(world)
            await write_some(world, CHILD)
            await world.until(lambda: replica_of(late, CHILD) is not None)
            empty = replica_of(late, CHILD)
            assert empty is not None
            assert empty.state is None
            first = leader_of(world, CHILD)
            assert first is not None
            rest = next(node for node in world.nodes.values() if node not in (late, first))
            await first.crash()
            await world.until(lambda: rest.host.leads(CHILD))  # by the vote of the empty one
            term = empty.raw.term
            voted, _ = empty.log.initial_state()
            assert (voted.term, voted.vote) == (term, rest.host.core.replicas[CHILD].replica_id)
            assert empty.state is None
            check_ranges(world)
            await first.boot()
        await world.until(lambda: len(shards_of(late)) == 2)
        child = replica_of(late, CHILD)
        assert child is not None
        assert child is not empty
        voted, _ = child.log.initial_state()
        assert voted.term >= term
        if voted.term == term:
            assert voted.vote == rest.host.core.replicas[CHILD].replica_id
        await world.until(lambda: same_state(*world.nodes.values()))
        check_ranges(world)


@simulated
async def test_replica_added_again_waits_until_the_split_is_flushed() -> None:
    """Its snapshot is durable at once. Were the parent's flushed state still the whole shard's, a crash would bring
    back a parent that writes over it."""
    async with World() as world:
        leader = await filled(world)
        await split_at(leader, b"m", CHILD)
        _, led = await both_led(world)
        again = next(node for node in world.nodes.values() if node not in (leader, led))
        await world.until(lambda: covers_all(again) and replica_of(again, CHILD) is not None)
        assert CHILD not in again.states.shards()
        change = ReplicaChange(led.host, CHILD, timeout_seconds=20)
        await change.remove(again.node)
        await ReplicaChange(led.host, CHILD, timeout_seconds=20).add(again.node)
        replica = replica_of(again, CHILD)
        assert replica is not None
        assert replica.replica_id > FOUNDERS_IDS_MAX
        await write_some(world, CHILD)
        await again.crash()
        await again.boot()
        check_ranges(world)
        await world.until(lambda: same_state(*world.nodes.values()))
        await world.until(lambda: same_state(*world.nodes.values(), shard=SHARD))
        check_ranges(world)
        found, _ = again.states.scan(b"\0\0\0\1x", b"\0\0\0\1y", limit=10, bytes_max=1_000)
        assert [record.value for _, record in found] == [b"new"] * 5


@simulated
async def test_removed_child_is_not_born_again_by_the_parents_replay() -> None:
    async with World() as world:
        leader = await filled(world)
        await split_at(leader, b"m", CHILD)
        _, led = await both_led(world)
        node = next(node for node in world.nodes.values() if node not in (leader, led))
        await world.until(lambda: replica_of(node, CHILD) is not None)
        await ReplicaChange(led.host, CHILD, timeout_seconds=20).remove(node.node)
        removed = replica_of(node, CHILD)
        assert removed is not None
        await world.until(lambda: removed.removed)
        node.host.lifecycle.destroy(removed)
        await asyncio.sleep(0.1)
        assert not node.states.incomplete()
        await node.crash()
        await node.boot()
        assert node.host.core.tombstones[CHILD] == removed.replica_id
        await world.until(lambda: same_state(*world.nodes.values(), shard=SHARD))
        assert replica_of(node, CHILD) is None
        await world.until(lambda: not node.states.incomplete())
        found, _ = node.states.scan(b"\0\0\0\1m", b"\0\0\0\2", limit=10, bytes_max=1_000)
        assert not found, "the replay's writes from before the split are deleted with the range"


async def cut_off_the_log(world: World, leader: SimNode) -> None:
    """Who is away now will need a snapshot of the parent, from behind the split."""
    for number in range(60):
        answer = await mutate_shard(leader, Put(0, b"b%d" % number, b"v" * 100), shard=SHARD, version=2)
        assert isinstance(answer, Results)
    running = [node for node in world.nodes.values() if node.running]
    for node in running:
        assert node.host.flusher.begin() or node.host.flusher.under_way
    await world.until(lambda: not any(node.host.flusher.under_way for node in running))
    await write_some(world, CHILD)


@pytest.mark.parametrize("away_from", ["before the split", "behind it", "behind it, with a damaged log"])
def test_parent_healed_by_a_snapshot_from_behind_the_split(away_from: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away since before: what the parent held of the child's range is deleted, and the child comes by a snapshot, too.
    Away since behind it, before a flush: the child's identity proves that the split is committed, so the child is born
    again before the parent's snapshot comes. With the split's entry lost, the child's log has no state to go on from:
    it is healed by its leader, and has no vote until then."""
    monkeypatch.setattr(flush_module, "LOG_KEEP_BYTES", 1_000)

    @simulated
    async def body() -> None:
        async with World() as world:
            leader = await filled(world)
            late = next(node for node in world.nodes.values() if node is not leader)
            if away_from == "before the split":
                await late.crash()
            await split_at(leader, b"m", CHILD)
            await both_led(world)
            await write_some(world, CHILD)
            if late.running:
                await world.until(lambda: same_state(*world.nodes.values()))
                await late.crash()
            await cut_off_the_log(world, leader)
            if "damaged" in away_from:
                late.disk.log_env.flip(log_key(SHARD, LogKind.ENTRY, 5), 3)
            await late.boot()
            if "damaged" in away_from:
                assert late.host.lifecycle.births.unborn
                await world.until(lambda: (one := replica_of(late, CHILD)) is not None and one.healing.damaged)
            await world.until(lambda: same_state(*world.nodes.values(), shard=SHARD), seconds=60)
            await world.until(lambda: same_state(*world.nodes.values()), seconds=60)
            child = replica_of(late, CHILD)
            assert child is not None
            await world.until(lambda: not child.healing.damaged)
            assert late.environment.metrics.snapshots_installed == (1 if away_from == "behind it" else 2)
            check_ranges(world)

    body()


@simulated
async def test_lease_mode_lets_the_child_be_led_at_once() -> None:
    """Nobody can have promised a lease to a leader of a group that has just come into being."""
    async with World(read_mode="lease") as world:
        leader = await filled(world)
        await split_at(leader, b"m", CHILD)
        await world.until(lambda: leader_of(world, CHILD) is not None, seconds=0.1)


@simulated
async def test_learner_of_the_parent_is_one_of_the_child() -> None:
    async with World(spare=1) as world:
        leader = await filled(world)
        spare = world.nodes["d"]
        await ReplicaChange(leader.host, SHARD, timeout_seconds=20).add_learner(spare.node)
        await split_at(leader, b"m", CHILD)
        await both_led(world)
        await world.until(lambda: len(shards_of(spare)) == 2)
        child = replica_of(spare, CHILD)
        assert child is not None
        assert child.state is not None
        place = child.state.descriptor.replica_on(spare.node)
        assert place is not None
        assert place.role == ReplicaRole.LEARNER
        await world.until(lambda: child.role_name == "learner")
        await write_some(world, CHILD)
        await world.until(lambda: same_state(*world.nodes.values()))


@simulated
async def test_newcomer_to_the_parent_has_no_child() -> None:
    """What is sent to it is the parent as it is now, flushed for that purpose, not the whole shard from before."""
    async with World(spare=1) as world:
        leader = await filled(world)
        assert leader.host.flusher.begin()
        await split_at(leader, b"m", CHILD)
        await both_led(world)
        spare = world.nodes["d"]
        await ReplicaChange(leader.host, SHARD, timeout_seconds=20).add(spare.node)
        await world.until(lambda: same_state(*world.nodes.values(), shard=SHARD))
        assert replica_of(spare, CHILD) is None
        found, _ = spare.states.scan(b"\0\0\0\1m", b"\0\0\0\2", limit=10, bytes_max=1_000)
        assert not found
        answer = await leader.get(b"a", version=2)
        assert isinstance(answer, Results)
        assert isinstance(answer.results[0], Found)
