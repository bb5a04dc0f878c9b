"""Retries by class, exactly once, and what is told when it is not known."""

from __future__ import annotations

import asyncio

import pytest

from jepsen.sim.loop import simulated
from kvstore.base.errors import Code
from kvstore.base.operations import Failure
from kvstore.base.stream import Mutate
from kvstore.client import (
    Conflict,
    DiskFull,
    Forbidden,
    Invalid,
    KVError,
    Overloaded,
    Timeout,
    TooLarge,
    Unavailable,
)
from tests.client.fake_client import client_of
from tests.client.fake_cluster import Act, Cluster, Delay, FailEach, Fault, Refuse


def now() -> float:
    return asyncio.get_running_loop().time()


def mutations(cluster: Cluster) -> list[Mutate]:
    return [frame for frame in cluster.frames() if isinstance(frame, Mutate)]


# -- lost answers


@pytest.mark.parametrize(
    "faults",
    [
        [Act.DROP_BEFORE],
        [Act.DROP_AFTER],
        [Act.GARBAGE],
        [Act.SHORT],
        [Act.DROP_AFTER, Act.DROP_BEFORE, Act.DROP_AFTER, Act.SHORT],
        [Refuse(Code.TIMEOUT)],
        [Refuse(Code.TIMEOUT, execute=True)],
        [Refuse(Code.NOT_LEADER, definite=False, execute=True)],
        [Refuse(Code.NOT_LEADER, definite=False)],
        [FailEach(Failure(Code.OVERLOADED, "held back", definite=False))],
        [Refuse(Code.OVERLOADED), Act.DROP_AFTER, Refuse(Code.UNAVAILABLE)],
    ],
)
def test_a_mutation_whose_answer_was_lost_takes_effect_once(faults: list[Fault]) -> None:
    @simulated
    async def test() -> None:
        cluster = Cluster()
        async with client_of(cluster) as kv:
            await kv.put("warm", "up")
            cluster.then(*faults)
            revision = await kv.put("a", "1")
            assert revision == 2
            assert await kv.cas("a", "2", revision=revision) == 3
        assert [seq for _, seq, _ in cluster.log()] == [1, 2, 3]
        sent = [frame for frame in mutations(cluster) if frame.low == 2]
        assert len(sent) >= len(faults) + 1  # after a lost connection other nodes are asked too
        assert len({(frame.session, frame.issued_at, bytes(frame.operations)) for frame in sent}) == 1

    test()


@simulated
async def test_a_lost_conflict_is_told_as_it_was() -> None:
    """A retry of a failed compare-and-set gets the answer of the first attempt, though the key has changed since."""
    cluster = Cluster()
    async with client_of(cluster) as kv, client_of(cluster, seed=2) as other:
        first = await other.put("a", "theirs")
        cluster.then(Act.HANG_AFTER)
        call = asyncio.ensure_future(kv.cas("a", "ours", absent=True))
        await asyncio.sleep(0.1)
        await other.delete("a")
        for peer in list(cluster.nodes["n1"].connections):
            peer.close()
        with pytest.raises(Conflict) as caught:
            await call
        assert caught.value.detail is not None
        assert caught.value.detail.mod_revision == first
        assert await other.get("a") is None


@simulated
async def test_reads_are_repeated_freely_and_fail_definitely() -> None:
    cluster = Cluster()
    async with client_of(cluster, timeout=1.0) as kv:
        await kv.put("a", "1")
        cluster.then(Act.DROP_BEFORE, Act.GARBAGE, Refuse(Code.TIMEOUT), Act.DROP_AFTER)
        assert await kv.get("a") == b"1"
        cluster.script = lambda node, frame: Act.HANG
        with pytest.raises(KVError) as caught:
            await kv.get("a")
        assert caught.value.outcome == "failed"


# -- deadlines


@simulated
async def test_a_mutation_that_got_no_answer_is_unknown() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        for act, applied in ((Act.HANG, 0), (Act.HANG_AFTER, 1)):
            cluster.then(act)
            before = now()
            with pytest.raises(Timeout, match="the outcome is unknown") as caught:
                await kv.put("a", "1", timeout=0.7)
            assert caught.value.outcome == "unknown"
            assert now() - before == pytest.approx(0.7, abs=0.01)
            assert len(cluster.log()) == applied


@simulated
async def test_a_mutation_that_was_only_refused_has_failed() -> None:
    for code, kind in ((Code.OVERLOADED, Overloaded), (Code.UNAVAILABLE, Unavailable), (Code.NOT_LEADER, Unavailable)):
        cluster = Cluster()
        async with client_of(cluster, timeout=0.7) as kv:
            cluster.script = lambda node, frame, code=code: Refuse(code)
            with pytest.raises(kind) as caught:
                await kv.put("a", "1")
            assert caught.value.outcome == "failed"
        assert len(cluster.frames()) > 1
        assert cluster.log() == []


@simulated
async def test_one_doubtful_attempt_makes_the_whole_unknown() -> None:
    """Whatever definite refusals come before or after it."""
    for doubt in (Act.DROP_BEFORE, Act.DROP_AFTER, Refuse(Code.TIMEOUT), Refuse(Code.UNAVAILABLE, definite=False)):
        for last in (Code.OVERLOADED, Code.FORBIDDEN, Code.INVALID, Code.NOT_LEADER, Code.SESSION_EXPIRED):
            cluster = Cluster()
            async with client_of(cluster, timeout=0.7) as kv:
                cluster.then(Refuse(Code.OVERLOADED, retry_after_ms=1), doubt)
                cluster.script = lambda node, frame, last=last: Refuse(last)
                with pytest.raises(Timeout) as caught:
                    await kv.put("a", "1")
                assert caught.value.outcome == "unknown"


@simulated
async def test_operations_of_one_frame_end_at_their_own_deadlines() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        cluster.then(Delay(1.0))
        before = now()

        async def call(timeout: float) -> tuple[float, str]:
            try:
                await kv.put("a", "1", timeout=timeout)
            except KVError as error:
                return now() - before, error.outcome
            return now() - before, "ok"

        results = await asyncio.gather(*(call(timeout) for timeout in (0.3, 0.6, 2.0, 0.3)))
        assert [outcome for _, outcome in results] == ["unknown", "unknown", "ok", "unknown"]
        assert [when for when, _ in results] == pytest.approx([0.3, 0.6, 1.0, 0.3], abs=0.01)
        assert mutations(cluster)[-1].timeout_ms == 2_000


@simulated
async def test_late_answers_are_dropped() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        cluster.then(Delay(1.0))
        with pytest.raises(Timeout):
            await kv.put("a", "1", timeout=0.5)
        await asyncio.sleep(1)
        assert await kv.get("a") == b"1"
        assert cluster.nodes["n1"].dialled == 1


# -- refusals that are final


@simulated
async def test_final_refusals_are_told_at_once() -> None:
    for code, kind in ((Code.FORBIDDEN, Forbidden), (Code.INVALID, Invalid), (Code.TOO_LARGE, TooLarge)):
        cluster = Cluster()
        async with client_of(cluster) as kv:
            cluster.script = lambda node, frame, code=code: Refuse(code)
            before = now()
            for call in (kv.put("a", "1"), kv.get("a")):
                with pytest.raises(kind) as caught:
                    await call
                assert caught.value.outcome == "failed"
            assert now() - before < 0.1
        assert len(cluster.frames()) == 2


@simulated
async def test_one_bad_operation_does_not_spoil_the_others() -> None:
    """The node refuses a frame as malformed: the frame is taken apart until the bad one is alone."""
    cluster = Cluster()

    def refuse_bad(node: object, frame: object) -> Fault | None:
        assert isinstance(frame, Mutate)
        return Refuse(Code.INVALID) if b"bad" in bytes(frame.operations) else None

    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        cluster.script = refuse_bad
        values = ["good"] * 3_000
        values[1_234] = "bad"
        results = await asyncio.gather(
            *(kv.put(f"k{i}", value) for i, value in enumerate(values)), return_exceptions=True
        )
        assert [i for i, result in enumerate(results) if not isinstance(result, int)] == [1_234]
        assert isinstance(results[1_234], Invalid)
    assert len(cluster.log()) == 3_000
    assert len(cluster.frames()) < 50


@simulated
async def test_the_servers_pause_is_kept_and_an_impossible_one_is_told_at_once() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        before = now()
        cluster.then(Refuse(Code.OVERLOADED, retry_after_ms=400), Refuse(Code.OVERLOADED, retry_after_ms=400))
        await kv.put("a", "1")
        assert 0.8 <= now() - before <= 2.0
        before = now()
        cluster.then(Refuse(Code.DISK_FULL, retry_after_ms=60_000))
        with pytest.raises(DiskFull) as caught:
            await kv.put("a", "1")
        assert caught.value.outcome == "failed"
        assert caught.value.retry_after_ms == 60_000
        assert now() - before < 0.01
        # When it may have happened, that is worth one more question before the deadline.
        cluster.then(Act.DROP_AFTER, Refuse(Code.DISK_FULL, retry_after_ms=60_000))
        assert await kv.put("a", "1") > 0


# -- stamps


@simulated
async def test_a_first_attempt_that_is_too_old_is_stamped_anew() -> None:
    """The store's floor has passed what the client thinks the time is (its process was suspended)."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.skew_ms = 3_600_000
        cluster.shards[2].floor = cluster.stamp() - 1_000
        assert await kv.put("a", "2") == 2
        assert await kv.put("a", "3") == 3
    assert [seq for _, seq, _ in cluster.log()] == [1, 2, 3]
    stamps = [frame.issued_at for frame in mutations(cluster)]
    assert stamps[2] - stamps[1] > 3_500_000
    assert len(stamps) == 4


@simulated
async def test_a_retry_that_is_too_old_is_unknown() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.then(Act.HANG_AFTER)
        call = asyncio.ensure_future(kv.put("a", "2"))
        await asyncio.sleep(0.1)
        shard = cluster.shards[2]
        shard.answers.clear()
        shard.floor = cluster.stamp()
        for peer in list(cluster.nodes["n1"].connections):
            peer.close()
        with pytest.raises(Timeout, match="unknown"):
            await call
    assert len(cluster.log()) == 2


@simulated
async def test_a_refused_first_attempt_may_still_be_stamped_anew() -> None:
    """Definite refusals before it do not make it a retry of something that may have happened."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.then(Refuse(Code.OVERLOADED), Refuse(Code.NOT_LEADER), FailEach(Failure(Code.SESSION_EXPIRED, "old")))
        assert await kv.put("a", "2") == 2


@simulated
async def test_the_stamp_is_fixed_at_the_first_sending() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.then(Act.DROP_AFTER, Refuse(Code.OVERLOADED, retry_after_ms=900))
        await kv.put("a", "2")
        stamps = {frame.issued_at for frame in mutations(cluster)[1:]}
        assert len(stamps) == 1
        assert cluster.stamp() - stamps.pop() >= 900


@simulated
async def test_mutations_of_different_age_are_not_mixed_in_a_frame() -> None:
    """Two frames are lost together; their operations are sent again under their own stamps."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.then(Act.HANG, Act.HANG)
        early = asyncio.ensure_future(kv.put("b", "1"))
        await asyncio.sleep(0.25)
        late = asyncio.ensure_future(kv.put("c", "1"))
        await asyncio.sleep(0.05)
        for peer in list(cluster.nodes["n1"].connections):
            peer.close()
        await asyncio.gather(early, late)
        sent = mutations(cluster)
        assert len({frame.issued_at for frame in sent[1:3]}) == 2
        assert {(frame.issued_at, bytes(frame.operations)) for frame in sent[1:3]} == {
            (frame.issued_at, bytes(frame.operations)) for frame in sent[3:]
        }


@simulated
async def test_a_shard_whose_clock_is_behind() -> None:
    """Shard 2's clock is an hour ahead of shard 3's (a jump is being absorbed): each is stamped by its own clock."""
    cluster = Cluster(1, splits=(b"m",))
    cluster.shards[2].skew_ms = 3_600_000
    cluster.skew_ms = 0
    async with client_of(cluster) as kv:
        for _ in range(3):
            await asyncio.gather(kv.put("a", "1"), kv.put("z", "1"))
    assert len(cluster.log()) == 6


@simulated
async def test_a_stamp_ahead_of_the_shard_is_corrected_before_the_caller_hears_of_it() -> None:
    cluster = Cluster(1)
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.shards[2].skew_ms = -60_000
        assert await kv.put("a", "2") == 2
        # A retry must keep its stamp; the shard's clock catches up with it.
        cluster.shards[2].skew_ms = -60_000 - 6_000
        cluster.then(Act.DROP_BEFORE)
        assert await kv.put("a", "3") == 3
    assert len(cluster.log()) == 3


@simulated
async def test_low_tells_the_shards_what_nobody_waits_for() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        for _ in range(3):
            await kv.put("a", "1")
        assert [frame.low for frame in mutations(cluster)] == [1, 2, 3]
        cluster.then(Act.HANG)
        slow = asyncio.ensure_future(kv.put("slow", "1", timeout=0.5))
        await asyncio.sleep(0.1)
        await kv.put("a", "1")
        await kv.put("a", "1")
        assert [frame.low for frame in mutations(cluster)][4:] == [4, 4]
        with pytest.raises(Timeout):
            await slow
        await kv.put("a", "1")
        assert mutations(cluster)[-1].low == 7
