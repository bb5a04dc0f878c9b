"""The promise as a property: whatever the connections do, an acknowledged mutation took effect once, a failed one
never, an unknown one at most once; and what was read back agrees.

Method: random programs of callers run against a cluster that drops, hangs, delays, garbles, refuses, moves leaders,
splits, merges, pauses and kills its nodes at random, on virtual time; the cluster's log counts executions.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from jepsen.sim.loop import simulate
from kvstore.base.errors import Code
from kvstore.base.operations import Cas, Failure, Put
from kvstore.client import Client, Conflict, KVError, dispatcher
from kvstore.client.dispatcher import Dispatcher
from kvstore.client.link import Flight
from kvstore.client.pending import UNSTAMPED, Pending
from kvstore.client.retry import final_error
from tests.client.fake_client import client_of
from tests.client.fake_cluster import Act, Cluster, Delay, FailEach, Fault, Refuse

CALLERS = 12
CALLS = 25
SPLITS = (b"h", b"p")


@dataclass
class Book:
    """What the callers were told. Every value is written by one call only, so it names the call."""

    ok: list[bytes] = field(default_factory=list)
    failed: list[bytes] = field(default_factory=list)
    unknown: list[bytes] = field(default_factory=list)
    increments: Counter[str] = field(default_factory=Counter)  # acknowledged ones, by counter
    doubtful: Counter[str] = field(default_factory=Counter)

    def note(self, value: bytes, error: KVError | None) -> None:
        (self.ok if error is None else self.unknown if error.outcome == "unknown" else self.failed).append(value)


def random_fault(rng: random.Random, rate: float) -> Fault | None:
    if rng.random() > rate:
        return None
    doubtful = rng.random() < 0.5
    faults: list[Fault] = [
        Act.DROP_BEFORE,
        Act.DROP_AFTER,
        Act.HANG,
        Act.HANG_AFTER,
        Act.GARBAGE,
        Act.SHORT,
        Delay(rng.uniform(0, 3)),
        Refuse(Code.OVERLOADED, retry_after_ms=rng.randrange(1, 300)),
        Refuse(Code.UNAVAILABLE),
        Refuse(Code.TIMEOUT, execute=doubtful),
        Refuse(Code.NOT_LEADER, definite=not doubtful, execute=doubtful),
        Refuse(Code.FORBIDDEN),
        FailEach(Failure(Code.STALE_ROUTE, "moved")),
        FailEach(Failure(Code.SESSION_EXPIRED, "old")),
        FailEach(Failure(Code.OVERLOADED, "held back", definite=False)),
    ]
    return rng.choice(faults)


async def disturb(cluster: Cluster, rng: random.Random) -> None:
    """Leaders move, processes die and pause, shards split and merge."""
    while True:
        await asyncio.sleep(rng.uniform(0.05, 0.8))
        node = rng.choice(list(cluster.nodes.values()))
        shard = rng.choice(list(cluster.shards.values()))
        match rng.randrange(6):
            case 0:
                cluster.lead(shard.id, rng.choice([*cluster.nodes, None]))
            case 1:
                cluster.lead(shard.id, node.name)
            case 2:
                node.kill()
                await asyncio.sleep(rng.uniform(0, 0.5))
                node.up = True
            case 3:
                node.mute = True
                await asyncio.sleep(rng.uniform(0, 2))
                node.mute = False
                for peer in list(node.connections):
                    peer.close()
            case 4 if len(cluster.shards) < 6:
                cut = bytes((rng.randrange(ord("a"), ord("z")), rng.randrange(256)))
                if shard.start < cut and (not shard.end or cut < shard.end):
                    cluster.split(shard.id, cut, child=max(cluster.shards) + 10, leader=node.name)
            case 5:
                right = next((one for one in cluster.shards.values() if one.start and one.start == shard.end), None)
                if right is not None:
                    cluster.merge(shard.id, right.id)


async def call(kv: Client, name: str, rng: random.Random, book: Book) -> None:
    """One call of a caller, written down."""
    value = name.encode()
    key = rng.choice("aefhkoqsxz") + str(rng.randrange(5))
    timeout = rng.choice([0.05, 0.5, 5.0])
    error: KVError | None = None
    try:
        if rng.random() < 0.3:
            await increment(kv, "n" + key[0], book, timeout)
            return
        if rng.random() < 0.3:
            await kv.get(key, timeout=timeout)
            return
        if rng.random() < 0.1:
            async with asyncio.timeout(rng.uniform(0, 0.3)):
                await kv.put("cancelled" + key, value)
            return
        await kv.put(key, value, timeout=timeout)
    except TimeoutError:
        return
    except KVError as caught:
        error = caught
    book.note(value, error)


async def increment(kv: Client, counter: str, book: Book, timeout: float) -> None:
    try:
        record = await kv.get_record(counter, timeout=timeout)
    except KVError:
        return
    number = int(record.value) if record is not None else 0
    try:
        await kv.cas(
            counter, str(number + 1), revision=record.mod_revision if record is not None else 0, timeout=timeout
        )
        book.increments[counter] += 1
    except Conflict:
        return
    except KVError as error:
        if error.outcome == "unknown":
            book.doubtful[counter] += 1


async def run(seed: int) -> Book:
    rng = random.Random(seed)
    cluster = Cluster(splits=SPLITS)
    book = Book()
    rate = rng.choice([0.02, 0.1, 0.3])
    cluster.script = lambda node, frame: random_fault(rng, rate)

    async def caller(kv: Client, number: int) -> None:
        for count in range(CALLS):
            await call(kv, f"{number}.{count}", rng, book)
            await asyncio.sleep(rng.uniform(0, 0.1))

    async with client_of(cluster, seed=seed) as kv:
        trouble = asyncio.ensure_future(disturb(cluster, rng))
        await asyncio.gather(*(caller(kv, number) for number in range(CALLERS)))
        trouble.cancel()
        await asyncio.wait([trouble])
        cluster.script = None
        for node in cluster.nodes.values():
            node.up, node.mute = True, False
            for peer in list(node.connections):
                peer.close()
        for shard in cluster.shards.values():
            shard.leader = shard.leader or "n1"
        final = {
            counter: int(await kv.get(counter, timeout=20) or 0) for counter in ("n" + one for one in "aefhkoqsxz")
        }
    check(cluster, book, final)
    return book


def check(cluster: Cluster, book: Book, final: dict[str, int]) -> None:
    log = cluster.log()
    assert len({(session, seq) for session, seq, _ in log}) == len(log)  # no number executed twice
    executed = Counter(operation.value for _, _, operation in log if isinstance(operation, Put))
    assert all(executed[value] == 1 for value in book.ok)
    assert all(executed[value] == 0 for value in book.failed)
    assert all(executed[value] <= 1 for value in book.unknown)
    for counter, value in final.items():
        done = sum(
            isinstance(operation, Cas) and operation.key == counter.encode() and cluster_did(cluster, session, seq)
            for session, seq, operation in log
        )
        assert value == done
        assert book.increments[counter] <= value <= book.increments[counter] + book.doubtful[counter]


def cluster_did(cluster: Cluster, session: bytes, seq: int) -> bool:
    """Whether that compare-and-set changed anything."""
    return any(isinstance(shard.answers.get((session, seq)), int) for shard in cluster.shards.values())


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_acknowledged_once_failed_never_unknown_at_most_once(first: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + 10):

        async def body(seed: int = seed) -> None:
            try:
                book = await run(seed)
            except BaseException:
                print(f"SEED={seed}")
                raise
            outcomes.update(ok=len(book.ok), failed=len(book.failed), unknown=len(book.unknown))

        simulate(body())
    assert outcomes["ok"] > 300
    assert outcomes["failed"] > 0
    assert outcomes["unknown"] > 0


def break_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost frame is taken for one that did nothing."""

    def trusting(self: Dispatcher, flight: Flight) -> list[Pending]:
        for pending in flight.pendings:
            pending.attempts += 1
        return flight.pendings

    monkeypatch.setattr(Dispatcher, "_doubt", trusting)


def break_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry gets a new number."""
    again = Dispatcher._again

    def renumbering(self: Dispatcher, pendings: list[Pending]) -> None:
        for pending in pendings:
            if pending.block is not None:
                pending.block.remaining -= 1
                pending.block, pending.issued_at = None, UNSTAMPED
        again(self, pendings)

    monkeypatch.setattr(Dispatcher, "_again", renumbering)


def break_definite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last refusal alone decides what is told."""
    monkeypatch.setattr(dispatcher, "final_error", lambda error, *, uncertain: final_error(error, uncertain=False))


@pytest.mark.parametrize("break_it", [break_doubt, break_numbers, break_definite])
def test_the_property_finds_broken_clients(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    for seed in range(10):
        try:
            simulate(checked(seed))
        except AssertionError:
            return
    pytest.fail("ten runs found nothing")


async def checked(seed: int) -> None:
    await run(seed)
