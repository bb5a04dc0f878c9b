"""What whole hosts tell the map of their replicas, without gossip: leaders that change, replicas that stop.

Method: simulated hosts; each node's map against who leads.
"""

from __future__ import annotations

import asyncio

from kvstore.base.shards import Route
from tests.replica.world import SHARD, SimNode, World, simulated


def shown(node: SimNode) -> Route:
    (route,) = [route for route in node.router.routing().routes if route.id == SHARD]
    return route


def named(node: SimNode) -> str | None:
    return shown(node).leader


@simulated
async def test_every_replica_names_the_leader_and_its_successor() -> None:
    async with World() as world:
        first = await world.leader()
        await world.until(lambda: all(named(node) == first.name for node in world.nodes.values()))
        others = world.others(first)
        versions = [node.router.routing().version for node in others]
        await first.crash()
        second = await world.leader(among=others)
        await world.until(lambda: all(named(node) == second.name for node in others))
        for node, version in zip(others, versions, strict=True):
            news = node.router.routing(version)
            assert not news.whole
            assert [route.term for route in news.routes] == [second.replica.raw.term]


@simulated
async def test_who_waits_on_a_follower_hears_of_the_next_leader() -> None:
    async with World() as world:
        first = await world.leader()
        await asyncio.sleep(1.0)
        other = world.others(first)[0]
        other.host.on_routes_anew = other.shard_map.touch

        async def follow() -> None:
            version = other.shard_map.version
            while named(other) in (first.name, None):
                await other.router.wait_routes(version, 30.0)
                version = other.shard_map.version

        began = asyncio.get_running_loop().time()
        following = asyncio.ensure_future(follow())
        await first.crash()
        await following
        assert asyncio.get_running_loop().time() - began < 3.0
        assert named(other) in {node.name for node in world.others(first)}


@simulated
async def test_a_replica_that_was_stopped_is_named_by_nobody() -> None:
    async with World() as world:
        first = await world.leader()
        await world.until(lambda: all(named(node) == first.name for node in world.nodes.values()))
        first.replica.fail("a test")
        await asyncio.sleep(0.1)
        assert named(first) is None
        second = await world.leader(among=world.others(first))
        await world.until(lambda: all(named(node) == second.name for node in world.others(first)))


@simulated
async def test_writes_alone_change_nothing_that_is_shown() -> None:
    async with World() as world:
        leader = await world.leader()
        await asyncio.sleep(1.0)
        before = [node.router.routing().version for node in world.nodes.values()]
        for number in range(50):
            await leader.put(b"k", b"%d" % number)
        assert all(not node.host.core.routes_anew for node in world.nodes.values())
        assert [node.router.routing().version for node in world.nodes.values()] == before
