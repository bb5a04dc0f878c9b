"""Whole hosts in simulation: what becomes of requests when leaders change, limits are met and replicas come and go."""

from __future__ import annotations

import asyncio
from typing import Any, Never

import pytest

from kvstore.base.errors import Code
from kvstore.base.operations import Found, Put
from kvstore.base.stream import Refused, Results
from kvstore.placement.replica_change import ReplicaChange
from kvstore.replica import environment as environment_module
from kvstore.replica import flush as flush_module
from kvstore.replica import proposals as proposals_module
from kvstore.replica import reads as reads_module
from kvstore.storage.protocol import LogWrite, ReplicaIdentity
from tests.replica.world import SHARD, Answer, SimNode, World, simulated


def refused(answer: Answer) -> Refused:
    assert isinstance(answer, Refused), answer
    return answer


def value(answer: Answer) -> bytes | None:
    assert isinstance(answer, Results), answer
    (found,) = answer.results
    assert found is None or isinstance(found, Found)
    return None if found is None else found.value


# -- leader changes


@simulated
async def test_replaced_proposal_is_refused_definitely() -> None:
    """Another term's entry at its index has been applied: only then is it certain."""
    async with World() as world:
        old = await world.leader()
        world.isolate(old)
        pending = old.put(b"k", b"lost", timeout_ms=60_000)
        new = await world.leader(among=world.others(old))
        assert isinstance(await new.put(b"k", b"kept"), Results)
        assert not pending.done()
        world.network.heal()
        answer = refused(await pending)
        assert (answer.code, answer.definite) == (Code.NOT_LEADER, True)
        assert value(await new.get(b"k")) == b"kept"


@simulated
async def test_proposal_that_the_next_leader_commits_is_acknowledged() -> None:
    """The followers have it, and only their answers were lost."""
    async with World() as world:
        old = await world.leader()
        world.network.cut([one.node for one in world.others(old)], [old.node])
        pending = old.put(b"k", b"kept", timeout_ms=60_000)
        new = await world.leader(among=world.others(old))
        assert value(await new.get(b"k")) == b"kept"
        assert not pending.done()
        world.network.heal()
        assert isinstance(await pending, Results)


@simulated
async def test_deadline_of_a_pending_proposal_says_unknown() -> None:
    async with World() as world:
        loop = asyncio.get_running_loop()
        old = await world.leader()
        world.isolate(old)
        began = loop.time()
        answer = refused(await old.put(b"k", b"v", timeout_ms=500))
        assert (answer.code, answer.definite) == (Code.TIMEOUT, False)
        assert 0.5 <= loop.time() - began <= 0.65


@simulated
async def test_deposed_leader_gives_up_writes_with_a_session_early() -> None:
    """Their callers ask again elsewhere, and it is done once. For all others only the applied entry tells."""
    async with World() as world:
        loop = asyncio.get_running_loop()
        old = await world.leader()
        world.isolate(old)
        began = loop.time()
        plain = old.put(b"k", b"1", timeout_ms=60_000)
        again = old.mutate(Put(1, b"k", b"2"), timeout_ms=60_000, session=b"s" * 16)
        answer = refused(await again)
        assert (answer.code, answer.definite) == (Code.TIMEOUT, False)
        assert loop.time() - began < 1.5  # two election timeouts and a little
        new = await world.leader(among=world.others(old))
        assert isinstance(await new.mutate(Put(1, b"k", b"2"), session=b"s" * 16), Results)
        assert not plain.done()
        world.network.heal()
        assert refused(await plain).definite
        assert value(await new.get(b"k")) == b"2"


@simulated
async def test_read_at_a_partitioned_leader_ends_definitely_in_time() -> None:
    async with World() as world:
        loop = asyncio.get_running_loop()
        old = await world.leader()
        world.isolate(old)
        began = loop.time()
        answer = refused(await old.get(b"k", timeout_ms=200))
        assert answer.definite
        assert answer.code in (Code.UNAVAILABLE, Code.NOT_LEADER)
        assert loop.time() - began <= 0.35


@simulated
async def test_every_request_is_answered_at_a_stop_and_later_ones_at_once() -> None:
    async with World() as world:
        old = await world.leader()
        world.isolate(old)
        proposed = old.put(b"k", b"v")
        await asyncio.sleep(0.1)
        staged, waiting = old.put(b"k", b"w"), old.get(b"k")
        await old.host.close()
        assert not refused(await proposed).definite
        assert refused(await staged).definite
        assert refused(await waiting).definite
        late = old.put(b"k", b"x")
        assert late.done()
        assert refused(late.result()).code == Code.UNAVAILABLE
        assert old.get(b"k").done()


@simulated
async def test_random_leader_changes_answer_every_write_truly() -> None:
    """Writers at whoever leads, cuts at random: what was acknowledged is there once, what was refused is not."""
    async with World(seed=3) as world:
        acknowledged: list[bytes] = []
        unrefused: list[bytes] = []
        pending: dict[bytes, asyncio.Future[Answer]] = {}
        for number in range(400):
            for node in world.leaders():
                key = b"%s-%d" % (node.name.encode(), number)
                pending[key] = node.put(key, b"v", timeout_ms=world.rng.choice((100, 1_000, 5_000)))
            await asyncio.sleep(world.rng.uniform(0.0, 0.08))
            if number % 40 == 20:
                world.isolate(world.rng.choice(list(world.nodes.values())))
            elif number % 40 == 39:
                world.network.heal()
        world.network.heal()
        leader = await world.leader()
        outcomes = {key: await future for key, future in pending.items()}
        for key, answer in outcomes.items():
            present = value(await leader.get(key)) is not None
            if isinstance(answer, Results):
                acknowledged.append(key)
                assert present, key
            elif answer.definite:
                unrefused.append(key)
                assert not present, key
        assert len(acknowledged) > 100
        assert unrefused


# -- limits


@simulated
async def test_overloaded_at_each_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        leader = await world.leader()

        async def code_of(future: asyncio.Future[Answer]) -> int:
            answer = refused(await future)
            assert answer.definite
            assert answer.retry_after_ms > 0
            return answer.code

        with monkeypatch.context() as patch:
            patch.setattr(proposals_module, "STAGED_BYTES_MAX", 100)
            assert await code_of(leader.put(b"k", b"v" * 200)) == Code.OVERLOADED
        with monkeypatch.context() as patch:
            patch.setattr(reads_module, "PENDING_READS_MAX", 0)
            assert await code_of(leader.get(b"k")) == Code.OVERLOADED
        assert isinstance(await leader.put(b"k", b"v"), Results)
        for limit in ("MEMTABLE_BYTES_MAX", "MEMTABLE_COMMANDS_MAX"):
            with monkeypatch.context() as patch:
                patch.setattr(environment_module, limit, 0)
                assert await code_of(leader.put(b"k", b"v")) == Code.OVERLOADED
        assert isinstance(await leader.put(b"k", b"v"), Results)


@simulated
async def test_overloaded_when_too_much_is_uncommitted() -> None:
    async with World() as world:
        leader = await world.leader()
        world.isolate(leader)
        futures = []
        for _ in range(90):
            futures.append(leader.put(b"k", b"v" * 1_000_000, timeout_ms=2_000))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        codes = [refused(await future).code for future in futures]
        assert codes[0] == Code.TIMEOUT
        assert codes[-1] == Code.OVERLOADED


@simulated
async def test_full_disk_takes_deletes_only() -> None:
    async with World() as world:
        leader = await world.leader()
        assert isinstance(await leader.put(b"k", b"v"), Results)
        leader.environment.disk_full = True
        assert refused(await leader.put(b"k", b"w")).code == Code.DISK_FULL
        assert isinstance(await leader.delete(b"k"), Results)
        leader.environment.disk_full = False
        assert isinstance(await leader.put(b"k", b"w"), Results)


# -- reads


@simulated
async def test_stale_read_tells_an_age_that_is_never_too_young() -> None:
    async with World() as world:
        loop = asyncio.get_running_loop()
        leader = await world.leader()
        assert isinstance(await leader.put(b"k", b"1"), Results)
        follower = world.others(leader)[0]
        assert value(await follower.get(b"k", max_staleness_ms=1_000)) == b"1"
        world.isolate(follower)
        await asyncio.sleep(0.3)  # what was on its way has arrived, or is held
        before = loop.time()
        assert isinstance(await leader.put(b"k", b"2"), Results)
        await asyncio.sleep(1.0)
        answer = await follower.get(b"k", max_staleness_ms=60_000)
        assert value(answer) == b"1"
        assert isinstance(answer, Results)
        assert answer.age_ms >= (loop.time() - before) * 1_000
        assert refused(await follower.get(b"k", max_staleness_ms=500, timeout_ms=300)).definite
        world.network.heal()
        await asyncio.sleep(2.0)
        assert value(await follower.get(b"k", max_staleness_ms=500)) == b"2"


@pytest.mark.parametrize("seed", range(3))
def test_lease_reads_are_never_old(seed: int) -> None:
    """The old leader is cut off, and asked all the time while the others elect one and write."""

    @simulated
    async def body() -> None:
        async with World(seed=seed, read_mode="lease") as world:
            old = await world.leader()
            assert isinstance(await old.put(b"k", b"1"), Results)
            await asyncio.sleep(0.2)
            rounds = old.environment.metrics.reads_linearizable
            local = old.get(b"k")
            assert local.done()  # no round: by the lease
            assert old.environment.metrics.reads_linearizable == rounds + 1
            world.isolate(old)
            written = False
            others = world.others(old)
            for _ in range(2_000):
                answer = old.get(b"k", timeout_ms=5)
                if answer.done() and isinstance(answer.result(), Results):
                    assert not written, "the lease outlived the election of another leader"
                for node in world.leaders(among=others):
                    if not written and isinstance(await node.put(b"k", b"2", timeout_ms=100), Results):
                        written = True
                await asyncio.sleep(0.002)
                if written and not old.host.leads(SHARD):
                    break
            assert written

    body()


# -- replicas that come, go and fail


async def _remove(world: World, name: str) -> None:
    await ReplicaChange((await world.leader()).host, SHARD, timeout_seconds=10).remove(world.nodes[name].node)


async def _add(world: World, node: SimNode) -> None:
    await ReplicaChange((await world.leader()).host, SHARD, timeout_seconds=10).add(node.node)


def _voters(node: SimNode) -> tuple[int, ...]:
    return node.replica.raw.conf_state.voters


@simulated
async def test_removed_replica_is_destroyed_and_never_rises_again() -> None:
    async with World() as world:
        leader = await world.leader()
        assert isinstance(await leader.put(b"k", b"v"), Results)
        gone = world.others(leader)[0]
        replica_id = gone.replica.replica_id
        await _remove(world, gone.name)
        await world.until(lambda: gone.replica.removed)
        await asyncio.sleep(2.0)  # its vote may still be needed by a member that crashes now
        assert SHARD in gone.host.core.replicas
        gone.replica.removed_at_ms = -(10**9)  # as if it were long ago (flushes are an hour apart here)
        await world.until(lambda: SHARD not in gone.host.core.replicas)
        assert gone.host.core.tombstones == {SHARD: replica_id}
        await asyncio.sleep(0.1)
        assert SHARD not in gone.states.shards()
        await gone.crash()
        await gone.boot()
        gone.host.lifecycle.admit(SHARD, replica_id)
        await asyncio.sleep(1.0)
        assert SHARD not in gone.host.core.replicas
        await _add(world, gone)  # as a new replica it may
        assert gone.replica.replica_id > replica_id
        assert gone.replica.replica_id in _voters(leader)


@simulated
async def test_new_replica_survives_a_snapshot_of_before_its_addition() -> None:
    """The changes between that snapshot and its addition are of a time when it was no member yet."""
    async with World(nodes=3, spare=1) as world:
        leader = await world.leader()
        leader.host.flusher.begin()
        await world.until(lambda: not leader.host.flusher.under_way)
        flushed = leader.states.shards()[SHARD].applied_index
        gone = world.others(leader)[0]
        await _remove(world, gone.name)
        for number in range(12):  # so much that the removal and the addition come in different messages
            assert isinstance(await leader.put(b"%d" % number, b"v" * 900_000), Results)
        new = world.nodes["d"]
        await _add(world, new)
        assert leader.states.shards()[SHARD].applied_index == flushed
        assert not new.host.core.tombstones
        assert new.replica.replica_id in _voters(leader)
        await world.until(lambda: new.replica.state is not None and new.replica.state.get(b"11") is not None)


@simulated
async def test_failed_assertion_while_applying_stops_only_that_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        leader = await world.leader()

        def broken(*_: Any) -> Never:
            raise AssertionError("made up")

        monkeypatch.setattr(leader.replica, "_apply_writes", broken)
        answer = refused(await leader.put(b"k", b"v"))
        assert (answer.code, answer.definite) == (Code.TIMEOUT, False)
        assert "made up" in leader.replica.failed
        assert not leader.host.leads(SHARD)
        assert not leader.fatal
        route = leader.replica.route()
        assert route is not None
        assert route.leader is None
        for late in (leader.put(b"k", b"v"), leader.get(b"k")):
            assert refused(await late).code == Code.UNAVAILABLE
        new = await world.leader(among=world.others(leader))
        assert value(await new.get(b"k")) == b"v"  # committed all the same
        assert not leader.host.core.replicas[1].failed
        assert leader.host.core.role_counts()["failed"] == 1


@simulated
async def test_failed_assertion_in_a_tick_ends_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop would log it and never tick again: a node that looks alive."""
    async with World() as world:
        node = await world.leader()
        error = AssertionError("made up")

        def broken(_: int, *, waits_for_turn: bool) -> Never:
            raise error

        monkeypatch.setattr(node.replica, "tick", broken)
        await world.until(lambda: node.fatal == [error])
        complaints = asyncio.get_running_loop().complaints  # type: ignore[attr-defined]
        assert [one["exception"] for one in complaints] == [error]
        complaints.clear()
        await world.leader(among=world.others(node))


@simulated
async def test_damaged_replica_does_not_vote_until_it_is_healed() -> None:
    async with World() as world:
        leader = await world.leader()
        for number in range(10):
            assert isinstance(await leader.put(b"%d" % number, b"v"), Results)
        damaged, other = world.others(leader)
        replica_id = damaged.replica.replica_id
        await damaged.crash()
        damaged.open()
        identity = ReplicaIdentity(replica_id=replica_id, damaged_at=5)
        written = asyncio.get_running_loop().create_future()
        damaged.log.open_group(SHARD, verify_from=0)
        damaged.log.submit([LogWrite(group=SHARD, identity=identity)], lambda: written.set_result(None))
        await written
        damaged.log.close()
        damaged.states.close()
        world.isolate(leader)
        await damaged.boot()
        assert damaged.replica.raw.barred
        await asyncio.sleep(5.0)
        assert not world.leaders(among=[damaged, other])  # the only vote that `other` could get is barred
        world.network.heal()
        await world.until(lambda: not damaged.replica.raw.barred)
        await world.until(lambda: damaged.log.groups()[SHARD].damaged_at == 0)
        assert not damaged.replica.healing.damaged
        await asyncio.sleep(0.1)  # until that is durable
        await damaged.crash()
        await damaged.boot()
        assert not damaged.replica.raw.barred


@simulated
async def test_crash_of_all_keeps_what_was_acknowledged() -> None:
    async with World(flush_interval_ms=200) as world:
        leader = await world.leader()
        answers = await asyncio.gather(*(leader.put(b"%d" % number, b"v") for number in range(50)))
        assert all(isinstance(answer, Results) for answer in answers)
        for node in world.nodes.values():
            await node.crash()
        for node in world.nodes.values():
            await node.boot()
        leader = await world.leader()
        for number in range(50):
            assert value(await leader.get(b"%d" % number)) == b"v"


@simulated
async def test_follower_that_was_away_for_long_gets_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_module, "LOG_KEEP_BYTES", 1_000)
    async with World(flush_interval_ms=100) as world:
        leader = await world.leader()
        away = world.others(leader)[0]
        await away.crash()
        for number in range(60):
            assert isinstance(await leader.put(b"%d" % number, b"v" * 200), Results)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert leader.replica.log.first_index() > 20
        await away.boot()
        await world.until(lambda: away.environment.metrics.snapshots_installed == 1)
        await world.until(lambda: away.replica.raw.applied == leader.replica.raw.commit)
        assert value(await away.get(b"59", max_staleness_ms=5_000)) == b"v" * 200
        assert not away.replica.failed
        assert isinstance(await leader.put(b"more", b"v"), Results)
