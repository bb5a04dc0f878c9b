"""Where and when the placement driver's office is open: simulated nodes, of which one leads the meta group.

Method: the gossip, the records and the way of reports are values; the hosts and their groups are real.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvstore.base.errors import NotLeader, Unavailable
from kvstore.base.ids import META_SHARD
from kvstore.gossip.events import MemberView
from kvstore.gossip.member import Member as GossipMember
from kvstore.gossip.member import MemberState
from kvstore.placement.members import Member, MemberRecord, Records
from kvstore.placement.office import IDS_A_TERM, PlacementOffice
from kvstore.placement.reports import NodeReport, unpack_node
from kvstore.placement.view import Health
from tests.placement.test_driver import Leaders
from tests.replica.world import SimNode, World, simulated


class Beliefs:
    """Fulfils `census.Gossip`: what a test wants to be believed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead: dict[str, float] = {}  # node -> since

    def now(self) -> float:
        return 100.0

    def members(self) -> list[MemberView]:
        found = []
        for node in self.world.nodes.values():
            state = MemberState.DEAD if node.node in self.dead else MemberState.ALIVE
            member = GossipMember(node.node, node.name, node.address, 1, state)
            found.append(MemberView(member, self.dead.get(node.node, 0.0), None, None))
        return found

    def member(self, node: str) -> GossipMember | None:
        return next((view.member for view in self.members() if view.member.node == node), None)

    def alive(self, node: str) -> bool:
        return node not in self.dead

    def declare_left(self, node: str) -> None: ...


class Post:
    """The way of reports: to the office that is open, if it is reached."""

    def __init__(self) -> None:
        self.sent: list[NodeReport] = []
        self.broken = False
        self.full_wanted = False

    async def send(self, report: str) -> bool:
        self.sent.append(unpack_node(report))
        if self.broken:
            raise Unavailable("not reached")
        wanted, self.full_wanted = self.full_wanted, False
        return wanted


def office_of(world: World, node: SimNode, post: Post, **fields: Any) -> PlacementOffice:
    return PlacementOffice(
        node.host,
        node.environment,
        Leaders("abc"),
        gossip=fields.get("gossip") or Beliefs(world),
        space=lambda: (50 << 30, 100 << 30),
        send=post.send,
    )


def records_of(world: World) -> Records:
    return Records([Member(MemberRecord(one.name, one.node, one.address), 1) for one in world.nodes.values()], {})


async def leader_of(world: World) -> SimNode:
    def found() -> list[SimNode]:
        nodes = [node for node in world.nodes.values() if node.running and META_SHARD in node.host.core.replicas]
        return [node for node in nodes if node.host.core.replicas[META_SHARD].leads is not None]

    await world.until(lambda: bool(found()))
    return found()[0]


@simulated
async def test_it_is_open_where_the_meta_group_is_led_and_closes_with_the_term() -> None:
    async with World() as world:
        leader = await leader_of(world)
        office = office_of(world, leader, Post())
        with pytest.raises(NotLeader):
            _ = office.driver
        await office.round(None)
        driver = office.driver
        replica = leader.host.core.replicas[META_SHARD]
        assert driver.board._next_id == replica.raw.term * IDS_A_TERM + 1
        replica.transfer_away()
        leader.host.mark(replica)
        await world.until(lambda: not replica.is_leader)
        with pytest.raises(NotLeader):
            office.on_report(NodeReport(leader.node, True, 1, 1, ()))
        with pytest.raises(NotLeader):
            office.wishes()
        await office.round(records_of(world))
        assert office.counts() == {}
        await office.close()


@simulated
async def test_what_it_sees_of_nodes() -> None:
    async with World() as world:
        leader = await leader_of(world)
        gossip = Beliefs(world)
        office = office_of(world, leader, Post(), gossip=gossip)
        gossip.dead["b" * 16] = 70.0
        await office.round(records_of(world))
        nodes = office.driver.view.nodes
        assert {node.name: node.health for node in nodes.values()} == {
            "a": Health.UP,
            "b": Health.DOWN,
            "c": Health.UP,
        }
        assert office.driver.view.now - nodes["b" * 16].down_since == pytest.approx(30.0)
        await office.close()


@simulated
async def test_reports_leave_each_second_at_once_when_leaders_change_and_in_full_after_a_loss() -> None:
    async with World() as world:
        leader = await leader_of(world)
        follower = world.others(leader)[0]
        post = Post()
        office = office_of(world, follower, post)
        task = asyncio.get_running_loop().create_task(office.report())
        await asyncio.sleep(5.0)
        assert 4 <= len(post.sent) <= 6
        assert [report.full for report in post.sent[:2]] == [True, False]
        count = len(post.sent)
        office.wake()
        await asyncio.sleep(0.2)
        assert len(post.sent) == count + 1
        post.broken = True
        await asyncio.sleep(2.5)
        post.broken = False
        post.sent.clear()
        await asyncio.sleep(2.5)
        assert [report.full for report in post.sent[:2]] == [True, False]
        post.full_wanted = True
        post.sent.clear()
        await asyncio.sleep(1.5)
        assert [report.full for report in post.sent[:2]] == [False, True]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
