"""REST's way to a shard: what is tried again, what never is, and what the caller is told at the end.

Method: a node without a replica of its own, and a forwarder that answers from a script, on virtual time.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jepsen.sim.loop import simulated
from kvstore.base.config import NodeConfig
from kvstore.base.errors import (
    Code,
    DiskFull,
    Invalid,
    KVError,
    NotFound,
    NotLeader,
    Overloaded,
    SessionExpired,
    StaleRoute,
    Timeout,
    Unavailable,
)
from kvstore.base.operations import Failure, Get, Put
from kvstore.base.shards import Route
from kvstore.base.stream import Mutate, Read, Refused, Results
from kvstore.replica.environment import Environment, NodeAddress, NodeAddresses
from kvstore.replica.host_core import HostCore
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.requests import refusal
from kvstore.router.forward import Forwarder
from kvstore.router.router import ShardRouter
from kvstore.router.shard_map import ShardMap

OK = Results(0, 0, [7])
MOVED = Results(0, 0, [Failure(int(Code.STALE_ROUTE), "moved")])
Outcome = Results | Refused | Exception


def route(leader: str | None = "n1", term: int = 1) -> Route:
    return Route(
        id=2,
        keyspace=1,
        start=b"",
        end=b"",
        version=1,
        conf=1,
        term=term if leader else 0,
        leader=leader,
        address=f"{leader}:1" if leader else None,
        replicas=(("n1", "n1:1", 1), ("n2", "n2:1", 1), ("n3", "n3:1", 1)),
    )


class Script:
    """A forwarder that gives the outcomes in their order, the last one for ever."""

    def __init__(self, *outcomes: Outcome, seconds: float = 0.001) -> None:
        self.outcomes = list(outcomes)
        self.seconds = seconds
        self.asked: list[tuple[str, Mutate | Read]] = []

    async def ask(self, address: str, frame: Mutate | Read) -> Results | Refused:
        self.asked.append((address, frame))
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        await asyncio.sleep(min(self.seconds, frame.timeout_ms / 1_000))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Place:
    """A node without a replica of its own, that knows the others by name."""

    def __init__(self) -> None:
        config = NodeConfig(name="n9", data=Path("/nowhere"))
        addresses = NodeAddresses()
        for name in ("n1", "n2", "n3"):
            addresses[name] = NodeAddress(name, f"{name}:1")
        self.environment = SimpleNamespace(
            config=config,
            node="n9",
            rng=random.Random(1),
            addresses=addresses,
            address_of=addresses.get,
            clock=SimpleNamespace(boot_ms=lambda: int(asyncio.get_running_loop().time() * 1_000)),
        )
        self.core = SimpleNamespace(replicas={}, routes_anew={}, environment=self.environment)
        self.host = SimpleNamespace(core=self.core, leads=lambda shard: False)

    def router(self, script: Script, *known: Route) -> ShardRouter:
        shard_map = ShardMap(cast(HostCore, self.core))
        shard_map.learn(known)
        return ShardRouter(
            cast(HostDriver, self.host), cast(Environment, self.environment), shard_map, cast(Forwarder, script)
        )


def router_with(script: Script, known: Route | None = None) -> ShardRouter:
    return Place().router(script, known or route())


async def put(router: ShardRouter, *, session: bytes = b"", timeout_ms: int = 1_000) -> list[Any]:
    return await router.execute("default", [Put(0, b"k", b"v")], timeout_ms=timeout_ms, session=session)


async def get(router: ShardRouter, *, timeout_ms: int = 1_000) -> Any:
    return await router.query("default", [Get(0, b"k")], timeout_ms=timeout_ms)


@pytest.mark.parametrize("first", [Unavailable("gone"), refusal(0, Code.NOT_LEADER), MOVED], ids=str)
def test_definite_and_elsewhere_is_tried_again(first: Outcome) -> None:
    @simulated
    async def body() -> None:
        script = Script(first, OK)
        assert await put(router_with(script)) == [7]
        assert len(script.asked) == 2

    body()


@simulated
async def test_leader_that_a_refusal_names_is_asked_next() -> None:
    script = Script(refusal(0, Code.NOT_LEADER, routes=(route("n2", term=2),)), OK)
    assert await put(router_with(script)) == [7]
    assert [address for address, _ in script.asked] == ["n1:1", "n2:1"]


@simulated
async def test_dead_leader_is_not_asked_for_ever() -> None:
    """A node without a replica of its own hears of a new leader only by asking another one."""
    script = Script(Unavailable("can't be reached"), OK)
    assert await put(router_with(script)) == [7]
    assert script.asked[0][0] == "n1:1"
    assert len(script.asked) == 2


@simulated
async def test_unknown_outcome_without_a_session_is_never_sent_again() -> None:
    for unknown in (Timeout("broke"), refusal(0, Code.TIMEOUT, definite=False)):
        script = Script(unknown, OK)
        with pytest.raises(Timeout) as caught:
            await put(router_with(script))
        assert not caught.value.definite
        assert len(script.asked) == 1


@simulated
async def test_unknown_outcome_with_a_session_or_of_a_read_is_sent_again() -> None:
    script = Script(Timeout("broke"), OK)
    assert await put(router_with(script), session=b"s" * 16) == [7]
    first, second = (frame for _, frame in script.asked)
    assert isinstance(first, Mutate)
    assert isinstance(second, Mutate)
    assert (first.session, first.low, first.issued_at, bytes(first.operations)) == (
        second.session,
        second.low,
        second.issued_at,
        bytes(second.operations),
    )
    script = Script(Timeout("broke"), OK)
    assert (await get(router_with(script)))[0] == [7]


@simulated
async def test_after_an_unknown_attempt_no_refusal_is_definite() -> None:
    script = Script(Timeout("broke"), Unavailable("gone"))
    with pytest.raises(Timeout) as caught:
        await put(router_with(script), session=b"s" * 16)
    assert not caught.value.definite
    assert len(script.asked) > 2


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (refusal(0, Code.OVERLOADED), Overloaded),
        (refusal(0, Code.DISK_FULL), DiskFull),
        (refusal(0, Code.INVALID), Invalid),
        (refusal(0, Code.SESSION_EXPIRED), SessionExpired),
    ],
    ids=str,
)
def test_what_another_try_would_not_change_is_told_at_once(outcome: Refused, kind: type[KVError]) -> None:
    @simulated
    async def body() -> None:
        script = Script(outcome, OK)
        with pytest.raises(kind):
            await put(router_with(script))
        assert len(script.asked) == 1

    body()


@pytest.mark.parametrize(
    "outcome", [NotLeader(), StaleRoute(), Unavailable(), MOVED, refusal(0, Code.NOT_LEADER)], ids=str
)
def test_elsewhere_until_the_deadline_is_unavailable(outcome: Outcome) -> None:
    @simulated
    async def body() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(Unavailable) as caught:
            await put(router_with(Script(outcome)), timeout_ms=700)
        assert caught.value.definite
        assert 0.5 <= loop.time() - began <= 0.71

    body()


@simulated
async def test_each_attempt_gets_what_is_left_of_the_time() -> None:
    script = Script(Unavailable(), seconds=0.1)
    with pytest.raises(Unavailable):
        await put(router_with(script), timeout_ms=500)
    left = [frame.timeout_ms for _, frame in script.asked]
    assert left[0] >= 499
    assert left == sorted(left, reverse=True)
    assert left[-1] < 400


@simulated
async def test_without_a_known_shard_or_keyspace() -> None:
    router = router_with(Script(OK))
    with pytest.raises(NotFound, match="no keyspace"):
        await router.execute("nope", [Put(0, b"k", b"v")], timeout_ms=100)
    router = Place().router(Script(OK))
    with pytest.raises(Unavailable, match="does not know the shard"):
        await put(router, timeout_ms=50)
