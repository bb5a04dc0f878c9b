"""Goal: groups without work cost nothing, and whatever should wake one does, within the times of an awake group.

Method: whole hosts on virtual time, looked at from outside: who sleeps, who leads, what is sent. An election timeout of
this world is 300 to 600 ms; a group is put to sleep after 900 ms without work.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from kvstore.base.errors import Code
from kvstore.base.operations import Found
from kvstore.base.stream import Refused, Results
from kvstore.replica import haste, turns
from kvstore.replica.replica import Replica
from kvstore.transport.protocol import GroupMessage
from raft import Message, MessageType, Role
from tests.replica.world import FIRST_MORE, SHARD, Answer, SimNode, World, simulated

TIMEOUT_SECONDS = 0.3
IDLE_SECONDS = 2.0
"""Enough for everything to fall asleep."""


def running(world: World) -> list[SimNode]:
    return [node for node in world.nodes.values() if node.running]


def replica(node: SimNode, group: int) -> Replica:
    return node.host.core.replicas[group]


def awake(node: SimNode) -> set[int]:
    return set(node.host.core.hibernation.awake)


def all_asleep(world: World) -> bool:
    return not any(awake(node) for node in running(world))


def leader_of(world: World, group: int) -> SimNode | None:
    """The one of the highest term."""
    leading = [node for node in running(world) if node.host.leads(group)]
    return max(leading, key=lambda node: replica(node, group).raw.term, default=None)


def groups_of(world: World) -> list[int]:
    return sorted(world.founders[0].host.core.replicas)


def terms(world: World) -> dict[int, int]:
    return {group: max(replica(node, group).raw.term for node in running(world)) for group in groups_of(world)}


def led_from(world: World, node: SimNode) -> set[int]:
    return {group for group in groups_of(world) if leader_of(world, group) is node}


async def asleep(world: World) -> None:
    await world.until(lambda: all_asleep(world))


async def spread(world: World) -> None:
    """Every node leads about as many groups as the others; all sleep."""
    await asleep(world)
    for group in groups_of(world):
        wanted = world.founders[group % len(world.founders)]
        leader = leader_of(world, group)
        assert leader is not None
        if leader is not wanted:
            replica(leader, group).raw.transfer_leader(_id_on(leader, group, wanted))
            leader.host.mark(replica(leader, group))
    await world.until(lambda: all(leader_of(world, one) is world.founders[one % 3] for one in groups_of(world)))
    await asleep(world)


def _id_on(at: SimNode, group: int, node: SimNode) -> int:
    return next(one for one, place in replica(at, group).node_of.items() if place == node.node)


def value(answer: Answer) -> bytes | None:
    assert isinstance(answer, Results), answer
    (found,) = answer.results
    assert found is None or isinstance(found, Found)
    return None if found is None else found.value


# -- falling asleep and waking up


@simulated
async def test_idle_groups_sleep_and_nothing_is_sent() -> None:
    async with World(more=20) as world:
        await asleep(world)
        assert all(leader_of(world, group) for group in groups_of(world))
        sent = [node.environment.metrics.raft_messages_sent for node in running(world)]
        before = terms(world)
        await asyncio.sleep(600)
        assert [node.environment.metrics.raft_messages_sent for node in running(world)] == sent
        assert all_asleep(world)
        assert terms(world) == before
        for node in running(world):
            assert node.host.core.role_counts()["hibernating"] == 22


@simulated
async def test_work_keeps_a_group_awake_and_no_other() -> None:
    async with World(more=5) as world:
        await asleep(world)
        leader = leader_of(world, SHARD)
        assert leader is not None
        for number in range(20):
            assert isinstance(await leader.put(b"k", b"%d" % number), Results)
            await asyncio.sleep(0.3)
            for node in running(world):
                assert awake(node) == {SHARD}
        await asleep(world)
        for node in running(world):
            state = node.replica.state
            assert state is not None
            assert state.applied_index == leader.replica.raw.last_index


@pytest.mark.parametrize("read_mode", ["index", "lease"])
@simulated
async def test_a_group_that_is_read_is_not_idle(read_mode: str) -> None:
    """In lease mode no round tells of the reads; put to sleep, every few seconds one of them would have to wait."""
    async with World(read_mode=read_mode) as world:
        leader = await world.leader()
        for _ in range(20):
            await asyncio.sleep(0.3)
            assert isinstance(await leader.get(b"k"), Results)
            assert SHARD in awake(leader)
        await asleep(world)


@simulated
async def test_a_founded_group_needs_no_election_timeout() -> None:
    async with World(more=3) as world:
        await world.until(lambda: all(leader_of(world, group) for group in groups_of(world)), seconds=0.1)


@simulated
async def test_a_linearizable_read_wakes_the_group() -> None:
    """It needs a round anyway; and were it to find a leader that is cut off, that one must learn of it."""
    async with World() as world:
        leader = await world.leader()
        assert isinstance(await leader.put(b"k", b"v"), Results)
        await asleep(world)
        read = leader.get(b"k")
        await asyncio.sleep(0.01)
        assert value(read.result()) == b"v"
        assert awake(leader) == {SHARD}
        await asleep(world)


@simulated
async def test_a_stale_read_tells_its_true_age_and_wakes_only_when_too_old() -> None:
    async with World() as world:
        leader = await world.leader()
        assert isinstance(await leader.put(b"k", b"v"), Results)
        (follower, _) = world.others(leader)
        assert isinstance(await follower.get(b"k", max_staleness_ms=0), Results)
        await asleep(world)
        await asyncio.sleep(10)
        answer = await follower.get(b"k", max_staleness_ms=60_000)
        assert isinstance(answer, Results)
        assert answer.age_ms >= 10_000
        assert all_asleep(world)
        answer = await follower.get(b"k", max_staleness_ms=5_000)
        assert isinstance(answer, Results)
        assert answer.age_ms < 100
        assert value(answer) == b"v"
        assert awake(follower) == awake(leader) == {SHARD}


@simulated
async def test_a_transfer_wakes_and_the_next_leader_puts_to_sleep() -> None:
    async with World() as world:
        await asleep(world)
        old = leader_of(world, SHARD)
        assert old is not None
        assert old.replica.transfer_away(), "members that sleep can take the leadership"
        old.host.mark(old.replica)
        await world.until(lambda: leader_of(world, SHARD) not in (None, old), seconds=0.1)
        await asleep(world)


@simulated
async def test_a_sleeping_leader_hands_over_at_a_stop() -> None:
    async with World(more=10) as world:
        await spread(world)
        node = world.founders[0]
        began = asyncio.get_running_loop().time()
        await node.host.hand_over()
        assert asyncio.get_running_loop().time() - began < 0.2
        assert not led_from(world, node)


@simulated
async def test_a_lone_node_sleeps_and_writes() -> None:
    async with World(nodes=1) as world:
        await asleep(world)
        (node,) = world.nodes.values()
        assert isinstance(await node.put(b"k", b"v"), Results)
        await asleep(world)
        assert value(await node.get(b"k")) == b"v"


@simulated
async def test_groups_fall_asleep_where_messages_get_lost() -> None:
    async with World(more=10) as world:
        world.network.weather.loss = 0.05
        await asleep(world)
        leader = leader_of(world, SHARD)
        assert leader is not None
        assert isinstance(await leader.put(b"k", b"v"), Results)
        await asleep(world)


# -- nodes come and go


@simulated
async def test_a_killed_node_wakes_exactly_the_groups_that_it_led() -> None:
    async with World(more=30) as world:
        await spread(world)
        victim = world.founders[0]
        orphans = led_from(world, victim)
        before = terms(world)
        await victim.crash()
        await world.until(lambda: all(leader_of(world, group) for group in groups_of_running(world)), seconds=0.35)
        changed = {group for group, term in terms_of_running(world).items() if term != before[group]}
        assert changed == orphans
        leads = Counter(leader.name for group in orphans if (leader := leader_of(world, group)))
        assert min(leads["b"], leads["c"]) >= 4, "who goes first is another one in each group"
        for node in running(world):
            assert awake(node) <= orphans
        await asleep(world)


def groups_of_running(world: World) -> list[int]:
    return sorted(running(world)[0].host.core.replicas)


def terms_of_running(world: World) -> dict[int, int]:
    return {group: max(replica(node, group).raw.term for node in running(world)) for group in groups_of_running(world)}


@simulated
async def test_a_dead_node_keeps_nobody_awake_and_is_brought_up_to_date_when_it_is_back() -> None:
    async with World(more=10) as world:
        await spread(world)
        victim = world.founders[0]
        await victim.crash()
        await asyncio.sleep(IDLE_SECONDS)
        assert all_asleep(world)
        leader = leader_of(world, SHARD)
        assert leader is not None
        assert isinstance(await leader.put(b"k", b"v"), Results)
        await asleep(world)
        await asyncio.sleep(60)
        assert all_asleep(world)
        before = terms_of_running(world)
        await victim.boot()
        await world.until(lambda: all(replica(victim, group).raw.leader_id for group in groups_of(world)), seconds=0.1)
        await world.until(lambda: victim.replica.raw.applied == leader.replica.raw.applied, seconds=0.1)
        await asleep(world)
        assert terms(world) == before, "it has learned who leads before it asked for votes"


@simulated
async def test_another_process_at_a_leaders_place_is_noticed_by_its_boot_id() -> None:
    """It restarts between two looks at its port: nobody ever sees it gone."""
    async with World(more=10) as world:
        await spread(world)
        victim = world.founders[1]
        orphans = led_from(world, victim)
        before = terms(world)
        await victim.crash()
        await victim.boot()
        await world.until(
            lambda: all(leader_of(world, one) and terms(world)[one] > before[one] for one in orphans), seconds=0.35
        )
        await asleep(world)
        assert {group for group, term in terms(world).items() if term != before[group]} == orphans


@simulated
async def test_a_leader_that_is_not_heard_of_is_replaced_in_the_time_of_an_awake_one() -> None:
    async with World(more=30) as world:
        await spread(world)
        victim = world.founders[0]
        orphans = led_from(world, victim)
        before = terms(world)
        others = world.others(victim)
        loop = asyncio.get_running_loop()
        began = loop.time()
        world.isolate(victim)
        await world.until(lambda: all(any(one.host.leads(group) for one in others) for group in orphans))
        assert loop.time() - began < 2 * TIMEOUT_SECONDS + 0.3
        await world.until(lambda: not any(victim.host.leads(group) for group in orphans), seconds=2 * TIMEOUT_SECONDS)
        for group in set(groups_of(world)) - orphans:
            assert max(replica(one, group).raw.term for one in others) == before[group]
        await world.until(lambda: not any(map(awake, others)))
        world.network.heal()
        await asleep(world)
        after = {group: leader_of(world, group) for group in groups_of(world)}
        for group, leader in after.items():
            assert leader is not None
            assert len({replica(node, group).raw.term for node in running(world)}) == 1
            assert len({replica(node, group).raw.leader_id for node in running(world)}) == 1


@pytest.mark.parametrize("one_way", [False, True])
@simulated
async def test_a_short_silence_changes_no_leader(one_way: bool) -> None:
    """What it has woken calls the leaders, which sleep on and would be campaigned against."""
    async with World(more=30) as world:
        await spread(world)
        before = terms(world)
        if one_way:
            world.network.cut([world.founders[0].node], [one.node for one in world.founders[1:]])
        else:
            world.isolate(world.founders[0])
        await world.until(lambda: bool(awake(world.founders[1])))
        world.network.heal()
        await asyncio.sleep(0.05)
        changed = [group for group, term in terms(world).items() if term != before[group]]
        assert len(changed) <= 5, "campaigns that began before"
        for group in set(groups_of(world)) - set(changed):
            leader = leader_of(world, group)
            assert leader is not None
            assert group in awake(leader) or not any(group in awake(node) for node in running(world))
        await asyncio.sleep(5 * TIMEOUT_SECONDS)
        assert [group for group, term in terms(world).items() if term != before[group]] == changed
        await asleep(world)


@simulated
async def test_a_cut_between_a_leader_and_one_member_moves_no_leadership() -> None:
    """The member campaigns; the third one stands by the leader and calls it."""
    async with World() as world:
        await spread(world)
        leader = leader_of(world, SHARD)
        assert leader is not None
        (third, cut_off) = world.others(leader)
        before = terms(world)
        world.network.partition([leader.node], [cut_off.node])
        await asyncio.sleep(20 * TIMEOUT_SECONDS)
        assert terms(world)[SHARD] == before[SHARD]
        assert isinstance(await _commit(world), Results)
        world.network.heal()
        await asleep(world)
        assert third.replica.raw.applied == cut_off.replica.raw.applied == leader.replica.raw.applied


async def _commit(world: World) -> Answer:
    leader = await world.leader()
    return await leader.put(b"k", b"v")


@simulated
async def test_a_sleeping_leader_that_loses_its_quorum_steps_down() -> None:
    async with World() as world:
        await asleep(world)
        leader = leader_of(world, SHARD)
        assert leader is not None
        for other in world.others(leader):
            await other.crash()
        await world.until(lambda: not leader.host.leads(SHARD), seconds=3 * TIMEOUT_SECONDS)
        answer = await leader.put(b"k", b"v", timeout_ms=200)
        assert isinstance(answer, Refused)
        assert answer.code == Code.NOT_LEADER
        for other in world.others(leader):
            await other.boot()
        await asleep(world)
        assert isinstance(await _commit(world), Results)


@simulated
async def test_a_write_at_a_sleeping_leader_that_was_replaced_is_not_acknowledged() -> None:
    async with World() as world:
        await asleep(world)
        old = leader_of(world, SHARD)
        assert old is not None
        others = world.others(old)
        world.isolate(old)
        pending = old.put(b"k", b"lost", timeout_ms=60_000)
        new = await world.leader(among=others)
        assert isinstance(await new.put(b"k", b"kept"), Results)
        world.network.heal()
        answer = await pending
        assert isinstance(answer, Refused)
        await asleep(world)
        assert value(await new.get(b"k")) == b"kept"


@simulated
async def test_who_falls_asleep_when_its_leader_was_just_lost_is_woken() -> None:
    """The leader's last message comes after what tells of its end."""
    async with World() as world:
        await asleep(world)
        leader = leader_of(world, SHARD)
        assert leader is not None
        (follower, _) = world.others(leader)
        assert isinstance(await leader.put(b"k", b"v"), Results)
        await asyncio.sleep(0.1)
        core = follower.host.core
        core.liveness.on_gone(leader.node)
        raw = follower.replica.raw
        sleep = Message(
            MessageType.SLEEP,
            to_id=follower.replica.replica_id,
            from_id=raw.leader_id,
            term=raw.term,
            index=raw.last_index,
            log_term=raw.term,
            commit=raw.last_index,
        )
        core.on_messages(leader.node, [GroupMessage(SHARD, sleep)])
        assert raw.asleep
        core.apply(core.pump())
        assert not raw.asleep
        assert SHARD in awake(follower)
        assert SHARD in core.dirty


@simulated
async def test_a_stopped_leader_wakes_its_members_at_once() -> None:
    async with World() as world:
        await asleep(world)
        old = leader_of(world, SHARD)
        assert old is not None
        await world.until(lambda: old.host.core.hibernation._ticks % 15 == 3)  # the next repeated call is not soon
        old.replica.fail("a test")
        await asyncio.sleep(0.03)
        for other in world.others(old):
            assert awake(other) == {SHARD}


@simulated
async def test_a_stopped_leader_on_a_living_node_is_replaced() -> None:
    """Nothing happens to its node, so only it can tell. That its first call is lost does not matter."""
    async with World() as world:
        await asleep(world)
        old = leader_of(world, SHARD)
        assert old is not None
        world.network.weather.loss = 1.0
        old.replica.fail("a test")
        await asyncio.sleep(0.05)
        world.network.weather.loss = 0.0
        others = world.others(old)
        await world.until(lambda: any(one.host.leads(SHARD) for one in others), seconds=4 * TIMEOUT_SECONDS)
        assert role_of(old) == "failed"


def role_of(node: SimNode) -> str:
    return node.replica.role_name


@simulated
async def test_lease_reads_end_with_the_lease_however_long_it_sleeps() -> None:
    async with World(read_mode="lease") as world:
        leader = await world.leader()
        assert isinstance(await leader.put(b"k", b"v"), Results)
        await asleep(world)
        await asyncio.sleep(1)
        others = world.others(leader)
        world.isolate(leader)
        pending = leader.get(b"k", timeout_ms=60_000)
        assert not pending.done()
        new = await world.leader(among=others)
        assert isinstance(await new.put(b"k", b"w"), Results)
        world.network.heal()
        answer = await pending
        assert isinstance(answer, Refused) or value(answer) == b"w"
        await asleep(world)


# -- bounds


def test_campaigns_are_bounded_and_every_group_has_a_leader_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred groups lose their leader at once, where eight campaigns may begin each 10 ms."""
    monkeypatch.setattr(haste, "CAMPAIGNS_PER_STEP", 4)
    monkeypatch.setattr("kvstore.replica.host_driver.CAMPAIGNS_PER_STEP", 4)

    @simulated
    async def body() -> None:
        async with World(more=100) as world:
            await spread(world)
            victim = world.founders[0]
            for group in groups_of(world):
                leader = leader_of(world, group)
                assert leader is not None
                if leader is not victim:
                    replica(leader, group).raw.transfer_leader(_id_on(leader, group, victim))
                    leader.host.mark(replica(leader, group))
            await world.until(lambda: len(led_from(world, victim)) == 102)
            await asleep(world)
            before = terms(world)
            await victim.crash()
            began = asyncio.get_running_loop().time()
            most = 0
            while not all(leader_of(world, group) for group in groups_of_running(world)):
                for node in running(world):
                    roles = node.host.core.role_counts()
                    most = max(most, int(roles["candidate"] + roles["pre_candidate"]))
                await asyncio.sleep(0.002)
            assert asyncio.get_running_loop().time() - began < 0.6
            assert most <= 12
            assert all(term == before[group] + 1 for group, term in terms_of_running(world).items()), "no split votes"
            await asleep(world)

    body()


@simulated
async def test_nobody_campaigns_where_no_quorum_could_answer() -> None:
    """And all do, in turn, as soon as one could."""
    async with World(more=80) as world:
        await asleep(world)
        node = world.founders[0]
        for other in world.others(node):
            await other.crash()
        await world.until(lambda: not any(node.host.leads(group) for group in groups_of(world)))
        await asyncio.sleep(5 * TIMEOUT_SECONDS)
        sent = node.environment.metrics.raft_messages_sent + node.environment.metrics.raft_messages_dropped
        await asyncio.sleep(60)
        assert node.environment.metrics.raft_messages_sent + node.environment.metrics.raft_messages_dropped == sent
        await world.founders[1].boot()
        await world.until(lambda: all(leader_of(world, one) for one in groups_of(world)), seconds=2 * TIMEOUT_SECONDS)
        await world.founders[2].boot()
        await asleep(world)


@pytest.mark.parametrize("patch", [1, 3])
def test_few_campaigns_at_a_time_are_enough(patch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with groups among them that can't come to a decision: they wait for a peer that does not answer."""
    monkeypatch.setattr(turns, "UNDER_WAY_MAX", patch)

    @simulated
    async def body() -> None:
        async with World(more=20) as world:
            await asleep(world)
            for node in world.founders:
                await node.crash()
            for node in world.founders[:2]:
                await node.boot()
            world.founders[1].host.core.replicas[FIRST_MORE].fail("a test")
            most = 0
            wanted = set(groups_of(world)) - {FIRST_MORE}
            began = asyncio.get_running_loop().time()
            while not all(leader_of(world, group) for group in wanted):
                for node in running(world):
                    roles = node.host.core.role_counts()
                    most = max(most, int(roles["candidate"] + roles["pre_candidate"]))
                await asyncio.sleep(0.002)
            assert most <= patch + 3, "with those that have had no outcome for a while, and count no more"
            assert asyncio.get_running_loop().time() - began < 3

    body()


@simulated
async def test_a_cluster_of_many_groups_starts_and_sleeps() -> None:
    async with World(more=150) as world:
        await asleep(world)
        for node in world.founders:
            await node.crash()
        for node in world.founders:
            await node.boot()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await world.until(lambda: all(leader_of(world, group) for group in groups_of(world)))
        assert loop.time() - began < 3 * TIMEOUT_SECONDS
        await world.until(lambda: all(len(awake(node)) <= 100 for node in running(world)), seconds=2 * TIMEOUT_SECONDS)
        assert any(map(awake, running(world))), "a hundred need not hurry"
        await asleep(world)
        assert all(
            replica(node, group).raw.role in (Role.FOLLOWER, Role.LEADER)
            for node in running(world)
            for group in groups_of(world)
        )
        assert groups_of(world)[-1] == FIRST_MORE + 149
