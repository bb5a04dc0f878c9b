"""The placement driver on shards that are values: what it waits for, what it asks leaders for, when a step is done.

Method: `Leaders` is the cluster: it does what is asked, at once or not at all, and reports as nodes do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from kvstore.base.errors import Conflict, Invalid, NotFound, Unavailable
from kvstore.base.shards import Replica, ReplicaRole, ShardDescriptor
from kvstore.placement.driver import WARM_UP_SECONDS, PlacementDriver
from kvstore.placement.members import MemberRecord
from kvstore.placement.reports import NodeReport, ShardReport, pack, unpack_node
from kvstore.placement.thresholds import Thresholds
from kvstore.placement.wishes import Wishes


class Leaders:
    """Fulfils `driver.Actions`."""

    def __init__(self, *shards: str) -> None:
        self.shards = {number: _shard(number, nodes) for number, nodes in enumerate(shards, 2)}
        self.asked: list[str] = []
        self.refuse: Exception | None = None
        self.full: set[str] = set()  # nodes whose disk is
        self.silent = False  # does what is asked, but answers nothing of it

    def _do(self, what: str, shard: int, conf: int, change: Callable[[dict[str, ReplicaRole]], None]) -> Any:
        self.asked.append(what)
        if self.refuse is not None:
            raise self.refuse
        report = self.shards[shard]
        if conf != report.descriptor.conf:
            raise Conflict("changed since")
        roles = {place.node: place.role for place in report.descriptor.replicas}
        change(roles)
        replicas = tuple(Replica(node, 1 + ord(node), role) for node, role in roles.items())
        descriptor = msgspec.structs.replace(report.descriptor, conf=conf + 1, replicas=replicas)
        self.shards[shard] = msgspec.structs.replace(report, descriptor=descriptor)
        return None if self.silent else self.shards[shard]

    async def add_learner(self, shard: int, node: str, conf: int) -> ShardReport | None:
        return self._do(f"+{node}", shard, conf, lambda roles: roles.update({node: ReplicaRole.LEARNER}))

    async def promote(self, shard: int, node: str, conf: int, *, other: str) -> ShardReport | None:
        def change(roles: dict[str, ReplicaRole]) -> None:
            roles[node] = ReplicaRole.VOTER
            roles.pop(other, None)

        return self._do(f"^{node}-{other}", shard, conf, change)

    async def remove(self, shard: int, node: str, conf: int) -> ShardReport | None:
        return self._do(f"-{node}", shard, conf, lambda roles: roles.pop(node) and None)

    async def transfer(self, shard: int, node: str) -> ShardReport | None:
        self.asked.append(f">{node}")
        self.shards[shard] = msgspec.structs.replace(self.shards[shard], leader=node, term=self.shards[shard].term + 1)
        return None

    async def split(self, shard: int, version: int) -> ShardReport | None:
        self.asked.append(f"/{shard}")
        raise Invalid("there is no key to split at")

    def report(self, node: str, *, full: bool = True) -> NodeReport:
        led = tuple(one for one in self.shards.values() if one.leader == node)
        return unpack_node(pack(NodeReport(node, full, 1 << 40, 1 << 30, led, (), node in self.full)))


def _shard(number: int, nodes: str) -> ShardReport:
    replicas = tuple(Replica(node, 1 + ord(node)) for node in nodes)
    descriptor = ShardDescriptor(number, 1, b"%d" % number, b"%d~" % number, 1, 1, replicas)
    return ShardReport(descriptor, nodes[0], 1, False, 0, 0, 0)


class Office:
    """A driver with a clock in hand."""

    def __init__(self, leaders: Leaders, nodes: str) -> None:
        self.leaders = leaders
        self.nodes = nodes
        self.dead: set[str] = set()
        self.removed: list[str] = []
        self.silence = 0.0  # of those that are dead, when first looked at
        self.wishes = Wishes()
        self.now = 100.0
        self.driver = PlacementDriver(leaders, now=self.now)

    async def second(self, *, reports: bool = True) -> None:
        """A second: all that are alive report, the driver looks and acts."""
        self.now += 1.0
        if reports:
            for node in self.nodes:
                if node not in self.dead:
                    assert not self.driver.hear(self.leaders.report(node))
        members = [MemberRecord(node, node, f"{node}:1") for node in self.nodes if node not in self.removed]
        self.driver.round(
            self.now,
            members=members,
            removed=self.removed,
            wishes=self.wishes,
            down=lambda node: self.silence if node in self.dead else None,
        )
        for _ in range(5):
            await asyncio.sleep(0)

    async def seconds(self, number: int) -> None:
        for _ in range(number):
            await self.second()


@pytest.fixture
async def offices() -> AsyncIterator[list[Office]]:
    made: list[Office] = []
    yield made
    for office in made:
        await office.driver.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("operator-")]


def office_of(offices: list[Office], shards: list[str], nodes: str) -> Office:
    offices.append(Office(Leaders(*shards), nodes))
    return offices[-1]


async def test_it_decides_nothing_before_all_have_reported(offices: list[Office]) -> None:
    office = office_of(offices, ["abc"] * 4, "abcd")
    driver = office.driver
    assert driver.hear(office.leaders.report("a", full=False))  # who are you? tell all
    driver.hear(office.leaders.report("a"))
    for _ in range(3):
        await office.second(reports=False)
    assert office.leaders.asked == []
    for node in "bcd":
        driver.hear(office.leaders.report(node))
    await office.second(reports=False)
    assert office.leaders.asked != []


async def test_it_does_not_wait_for_ever_for_one_that_is_alive_and_silent(offices: list[Office]) -> None:
    office = office_of(offices, ["abc"] * 4, "abcd")
    for node in "abc":
        office.driver.hear(office.leaders.report(node))
    await office.second(reports=False)
    assert office.leaders.asked == []
    office.now += WARM_UP_SECONDS
    await office.second(reports=False)
    assert office.leaders.asked != []


@pytest.mark.parametrize("silent", [False, True])
async def test_a_lost_node_is_replaced(offices: list[Office], silent: bool) -> None:
    """Whether the leaders' answers arrive or only their reports do."""
    office = office_of(offices, ["abc", "bca"], "abcd")
    office.wishes = Wishes(thresholds=Thresholds(dead_after_seconds=20, rebalance=False))
    office.leaders.silent = silent
    await office.seconds(2)
    office.dead.add("c")
    await office.seconds(10)
    assert office.leaders.asked == []
    await office.seconds(20)
    for shard in office.leaders.shards.values():
        assert {place.node for place in shard.descriptor.replicas} == set("abd")
        assert all(place.role == ReplicaRole.VOTER for place in shard.descriptor.replicas)
    assert sorted(office.leaders.asked) == ["+d", "+d", "^d-c", "^d-c"]
    assert {row["state"] for row in office.driver.describe()} == {"done"}
    assert office.driver.describe()[0]["reason"] == "c is down for too long"


async def test_a_drain_shows_how_far_it_is(offices: list[Office]) -> None:
    office = office_of(offices, ["abc"] * 4, "abcd")
    office.wishes = Wishes(draining={"a": "a"}, thresholds=Thresholds(rebalance=False))
    await office.second()
    progress = office.driver.drain_progress("a")
    assert (progress["replicas"], progress["done"], progress["draining"]) == (4, False, True)
    await office.seconds(12)
    progress = office.driver.drain_progress("a")
    assert (progress["replicas"], progress["leaders"], progress["done"]) == (0, 0, True)
    assert all(shard.leader != "a" for shard in office.leaders.shards.values())


async def test_a_drain_that_nobody_can_take_over_says_why(offices: list[Office]) -> None:
    office = office_of(offices, ["abc"], "abc")
    office.wishes = Wishes(draining={"c": "c"})
    await office.seconds(3)
    progress = office.driver.drain_progress("c")
    assert progress["blocked"] == [
        {"shard": 2, "reason": "no node can take its replica: every node has a replica already"}
    ]
    assert progress["seconds_left"] is None


async def test_refusals_are_tried_again_and_shown(offices: list[Office]) -> None:
    office = office_of(offices, ["ab"], "abc")
    office.leaders.refuse = Unavailable("no quorum")
    await office.seconds(3)
    (row,) = office.driver.describe()
    assert (row["state"], row["error"], row["steps"][0]["done"]) == ("running", "no quorum", False)
    office.leaders.refuse = None
    await asyncio.sleep(0.6)  # the pause between attempts
    await office.seconds(3)
    (row,) = office.driver.describe()
    assert (row["state"], row["error"]) == ("done", "")


async def test_what_cannot_be_done_ends_at_once(offices: list[Office]) -> None:
    office = office_of(offices, ["abc"], "abc")
    large = msgspec.structs.replace(office.leaders.shards[2], data_bytes=99 << 20)
    office.leaders.shards[2] = large
    await office.seconds(5)
    (row,) = office.driver.describe()
    assert (row["kind"], row["state"], row["error"]) == ("split", "failed", "there is no key to split at")
    assert office.leaders.asked == ["/2"]  # and it rests


async def test_a_broken_invariant_is_told_and_not_only_logged(offices: list[Office]) -> None:
    office = office_of(offices, ["ab"], "abc")
    office.leaders.refuse = AssertionError("impossible")  # type: ignore[assignment]
    await office.second()
    with pytest.raises(AssertionError, match="impossible"):
        await office.second()


async def test_a_node_whose_disk_is_full_gets_nothing(offices: list[Office]) -> None:
    office = office_of(offices, ["ab"], "abc")
    office.leaders.full.add("c")
    await office.seconds(5)
    assert office.leaders.asked == []
    office.leaders.full.clear()
    await office.seconds(3)
    assert office.leaders.asked[0] == "+c"


async def test_cancelling(offices: list[Office]) -> None:
    office = office_of(offices, ["ab"], "abc")
    office.leaders.refuse = Unavailable("not yet")
    await office.seconds(2)
    (row,) = office.driver.describe()
    assert office.driver.cancel(row["id"])["state"] == "cancelled"
    with pytest.raises(NotFound):
        office.driver.cancel(row["id"])
    assert not office.driver.view.running


async def test_old_reports_change_nothing(offices: list[Office]) -> None:
    office = office_of(offices, ["abc"], "abc")
    old = office.leaders.report("a")
    office.leaders.shards[2] = msgspec.structs.replace(office.leaders.shards[2], leader="b", term=5)
    await office.seconds(2)
    driver = office.driver
    driver.hear(old)
    assert driver.view.shards[2].leader == "b"
    driver.hear(NodeReport("a", False, 1, 1, (), ((2, 1),)))  # a gave up what b leads
    assert driver.view.shards[2].leader == "b"
    driver.hear(NodeReport("b", False, 1, 1, (), ((2, 4),)))  # b leads again, in a later term
    assert driver.view.shards[2].leader == "b"
    driver.hear(NodeReport("b", False, 1, 1, (), ((2, 5),)))
    assert driver.view.shards[2].leader is None


async def test_a_new_driver_takes_over_for_how_long_a_node_is_down(offices: list[Office]) -> None:
    """By what gossip believes, and not from when it itself has looked first."""
    office = office_of(offices, ["abc"], "abcd")
    office.wishes = Wishes(thresholds=Thresholds(dead_after_seconds=60, rebalance=False))
    office.dead.add("c")
    office.silence = 50.0
    await office.seconds(8)
    assert office.leaders.asked == []
    await office.seconds(6)
    assert office.leaders.asked[0] == "+d"


async def test_the_next_driver_finishes_what_the_last_one_began(offices: list[Office]) -> None:
    leaders = Leaders("abc")
    first = Office(leaders, "abcd")
    first.wishes = Wishes(draining={"c": "c"}, thresholds=Thresholds(rebalance=False))
    await first.second()
    assert leaders.asked == ["+d"]
    await first.driver.close()  # its node dies; the learner is there
    second = Office(leaders, "abcd")
    offices.append(second)
    second.wishes = first.wishes
    await second.seconds(8)
    assert {place.node for place in leaders.shards[2].descriptor.replicas} == set("abd")
