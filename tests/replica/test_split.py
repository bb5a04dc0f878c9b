"""A shard splits in a running cluster: both halves go on, with all that was there, and nothing is done twice.

Method: three nodes on virtual time; each test brings about one situation and looks at all replicas.
"""

from __future__ import annotations

import asyncio

from kvstore.base.errors import Code
from kvstore.base.operations import Batch, Failure, Found, Put
from kvstore.base.stream import Refused, Results
from raft import Role
from tests.replica.splits import (
    CHILD,
    check_ranges,
    covers_all,
    leader_of,
    mutate_shard,
    replica_of,
    shards_of,
    split_at,
)
from tests.replica.world import SHARD, SimNode, World, simulated

SESSION = b"a session of 16 b"[:16]


async def both_led(world: World, child: int = CHILD) -> tuple[SimNode, SimNode]:
    await world.until(lambda: leader_of(world, SHARD) is not None and leader_of(world, child) is not None)
    parent, led = leader_of(world, SHARD), leader_of(world, child)
    assert parent is not None
    assert led is not None
    return parent, led


async def filled(world: World) -> SimNode:
    leader = await world.leader()
    for letter in b"adgkmpsvy":
        assert isinstance(await leader.put(bytes([letter]), b"old"), Results)
    return leader


@simulated
async def test_both_halves_go_on_with_what_was_there() -> None:
    async with World() as world:
        leader = await filled(world)
        answer = await split_at(leader, b"m", CHILD)
        assert isinstance(answer, Results)
        assert answer.results == [CHILD]
        check_ranges(world)
        parent, child = await both_led(world)
        assert child is parent
        await world.until(lambda: all(covers_all(node) for node in world.nodes.values()))
        for key, shard in ((b"a", SHARD), (b"k", SHARD), (b"m", CHILD), (b"y", CHILD)):
            found = await child.get(key, shard=shard, version=2)
            assert isinstance(found, Results)
            assert isinstance(found.results[0], Found)
        for node in world.nodes.values():
            left, right = (replica_of(node, one) for one in (SHARD, CHILD))
            assert left is not None and left.state is not None
            assert right is not None and right.state is not None
            assert [one.node for one in right.state.descriptor.replicas] == [
                one.node for one in left.state.descriptor.replicas
            ]
            assert right.state.revision == left.state.revision == 9
        written = await mutate_shard(child, Put(0, b"z", b"new"), shard=CHILD, version=2)
        assert isinstance(written, Results)
        assert written.results == [10]


@simulated
async def test_child_is_led_within_a_few_commits() -> None:
    """Long before an election timeout (300 ms here): the replica beside the parent's leader asks at once."""
    async with World() as world:
        leader = await filled(world)
        began = asyncio.get_running_loop().time()
        await split_at(leader, b"m", CHILD)
        await both_led(world)
        assert asyncio.get_running_loop().time() - began < 0.05
        assert leader_of(world, CHILD) is leader


@simulated
async def test_wrong_epoch_is_refused_with_both_routes() -> None:
    async with World() as world:
        leader = await filled(world)
        under_way = split_at(leader, b"m", CHILD)
        # In the same turn: the write is behind the split in the log, and is refused when it is applied.
        behind = mutate_shard(leader, Put(0, b"x", b"1"), shard=SHARD, version=1)
        assert isinstance(await under_way, Results)
        old_epoch = await mutate_shard(leader, Put(0, b"a", b"1"), shard=SHARD, version=1)
        for answer in (await behind, await leader.get(b"x"), old_epoch):
            assert isinstance(answer, Refused)
            assert answer.code == Code.STALE_ROUTE
            assert answer.definite
        refused = await behind
        assert isinstance(refused, Refused)
        assert {route.id for route in refused.routes} == {SHARD, CHILD}
        assert not isinstance(await leader.get(b"x", shard=CHILD, version=1), Results)


@simulated
async def test_answer_known_to_the_parent_is_known_to_the_child() -> None:
    async with World() as world:
        leader = await filled(world)
        stamp = leader.router.stamp_ms()
        puts = (Put(7, b"b", b"1"), Put(8, b"x", b"1"))
        first = await mutate_shard(leader, *puts, shard=SHARD, version=1, session=SESSION, issued_at=stamp)
        assert isinstance(first, Results)
        await split_at(leader, b"m", CHILD)
        _, child = await both_led(world)
        for shard, put, result in zip((SHARD, CHILD), puts, first.results, strict=True):
            again = await mutate_shard(child, put, shard=shard, version=2, session=SESSION, issued_at=stamp)
            assert isinstance(again, Results)
            assert again.results == [result]


@simulated
async def test_splits_that_are_refused() -> None:
    async with World() as world:
        leader = await filled(world)
        for key in (b"", b"{a}b", b"k" * 481):
            answer = await split_at(leader, key, CHILD)
            assert isinstance(answer, Refused)
            assert answer.code == Code.INVALID
        first, second = split_at(leader, b"m", CHILD), split_at(leader, b"p", CHILD + 1)
        assert isinstance(await first, Results)
        late = await second  # made for the same epoch
        assert isinstance(late, Refused)
        assert late.code == Code.STALE_ROUTE
        assert late.definite
        follower = next(node for node in world.nodes.values() if node is not leader)
        elsewhere = await split_at(follower, b"b", CHILD + 2)
        assert isinstance(elsewhere, Refused)
        assert elsewhere.code == Code.NOT_LEADER
        assert [group for group, _, _ in shards_of(leader)] == [SHARD, CHILD]


@simulated
async def test_split_of_a_split_before_any_flush_survives_a_crash_of_all() -> None:
    async with World() as world:
        leader = await filled(world)
        await split_at(leader, b"m", CHILD)
        _, child = await both_led(world)
        await split_at(child, b"s", CHILD + 1, shard=CHILD)
        await both_led(world, CHILD + 1)
        grandchild = leader_of(world, CHILD + 1)
        assert grandchild is not None
        assert isinstance(await mutate_shard(grandchild, Put(0, b"z", b"new"), shard=CHILD + 1, version=3), Results)
        for node in world.nodes.values():
            await node.crash()
        for node in world.nodes.values():
            await node.boot()
        await both_led(world, CHILD)
        await both_led(world, CHILD + 1)
        check_ranges(world)
        await world.until(lambda: all(covers_all(node) for node in world.nodes.values()))
        for node in world.nodes.values():
            for shard in (CHILD, CHILD + 1):
                replica = replica_of(node, shard)
                assert replica is not None
                assert not replica.healing.damaged
        again = leader_of(world, CHILD + 1)
        assert again is not None
        found = await again.get(b"z", shard=CHILD + 1, version=3)
        assert isinstance(found, Results)
        assert isinstance(found.results[0], Found)
        assert found.results[0].value == b"new"


@simulated
async def test_flush_writes_both_halves_at_one_cut() -> None:
    """After a flush the children load from their own images; the parent's log from before the split may go."""
    async with World() as world:
        leader = await filled(world)
        await split_at(leader, b"m", CHILD)
        await both_led(world)
        for node in world.nodes.values():
            await world.until(lambda node=node: CHILD in node.host.core.replicas)  # type: ignore[misc]
            assert node.host.flusher.begin()
        await world.until(lambda: not any(node.host.flusher.under_way for node in world.nodes.values()))
        for node in world.nodes.values():
            assert set(node.states.shards()) == {1, SHARD, CHILD}
            await node.crash()
            await node.boot()
            assert not node.host.lifecycle.births.unborn
            assert covers_all(node)
        _, child = await both_led(world)
        found = await child.get(b"v", shard=CHILD, version=2)
        assert isinstance(found, Results)
        assert isinstance(found.results[0], Found)


@simulated
async def test_follower_that_was_away_splits_when_it_is_back() -> None:
    """Meanwhile the child has a leader, which writes to a replica that is not there yet."""
    async with World() as world:
        leader = await filled(world)
        away = next(node for node in world.nodes.values() if node is not leader)
        await away.crash()
        await split_at(leader, b"m", CHILD)
        _, child = await both_led(world)
        for number in range(20):
            assert isinstance(await mutate_shard(child, Put(0, b"x%d" % number, b"1"), shard=CHILD, version=2), Results)
        await away.boot()

        def same() -> bool:
            states = [one.state for node in (away, child) if (one := replica_of(node, CHILD)) is not None]
            return len({None if state is None else state.applied_index for state in states}) == 1 < len(states)

        await world.until(same)
        assert replica_of(away, CHILD).replica_id <= 3  # type: ignore[union-attr]
        assert role_of(away) == Role.FOLLOWER


def role_of(node: SimNode) -> Role:
    replica = replica_of(node, CHILD)
    assert replica is not None
    return replica.raw.role


@simulated
async def test_failures_of_single_operations_stay_single() -> None:
    """A frame of which one mutation was done before the split: that one gets its answer, the other is refused."""
    async with World() as world:
        leader = await filled(world)
        stamp = leader.router.stamp_ms()
        done = await mutate_shard(leader, Put(7, b"b", b"1"), shard=SHARD, version=1, session=SESSION, issued_at=stamp)
        assert isinstance(done, Results)
        under_way = split_at(leader, b"m", CHILD)
        both = mutate_shard(
            leader, Put(7, b"b", b"1"), Put(8, b"c", b"2"), shard=SHARD, version=1, session=SESSION, issued_at=stamp
        )
        await under_way
        answer = await both
        assert isinstance(answer, Results)
        assert answer.results[0] == done.results[0]
        assert isinstance(answer.results[1], Failure)
        assert answer.results[1].code == Code.STALE_ROUTE


@simulated
async def test_batch_whose_keys_the_split_has_parted_keeps_its_answer() -> None:
    """Repeated behind the split it fits into neither half; who did it still knows, and gives the answer again."""
    async with World() as world:
        leader = await filled(world)
        stamp = leader.router.stamp_ms()
        batch = Batch(7, [Put(0, b"b", b"1"), Put(0, b"x", b"1")])
        done = await mutate_shard(leader, batch, shard=SHARD, version=1, session=SESSION, issued_at=stamp)
        assert isinstance(done, Results)
        await split_at(leader, b"m", CHILD)
        parent, child = await both_led(world)
        for node, shard in ((parent, SHARD), (child, CHILD)):
            again = await mutate_shard(node, batch, shard=shard, version=2, session=SESSION, issued_at=stamp)
            assert isinstance(again, Results)
            assert again.results == done.results
        other = Batch(8, batch.operations)
        refused = await mutate_shard(parent, other, shard=SHARD, version=2, session=SESSION, issued_at=stamp)
        assert isinstance(refused, Refused)
        assert refused.code == Code.STALE_ROUTE
