"""The client hears of changes: one request waits on one node while the client is in use, and nothing when it is not.

Method: the fake cluster on virtual time; what each node was asked is counted. Whole real clusters: test_real_cluster.
"""

from __future__ import annotations

import asyncio

from jepsen.sim.loop import simulated
from kvstore.client.client import Client
from kvstore.client.route_keeper import (
    LISTEN_AFTER_SECONDS,
    LISTEN_FAILED_SECONDS,
    LISTEN_PAUSE_SECONDS,
    LISTEN_SECONDS,
)
from tests.client.fake_client import client_of
from tests.client.fake_cluster import Cluster

MOMENT = 0.2


async def use(kv: Client, seconds: float, *, every: float = 0.5) -> None:
    """Write now and then."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await kv.put("a", "1")
        await asyncio.sleep(every)


def asked(cluster: Cluster) -> int:
    return sum(len(node.asked) for node in cluster.nodes.values())


@simulated
async def test_one_request_waits_on_one_node_while_in_use() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 60.0)
    waits = [(name, frame) for name, node in cluster.nodes.items() for frame in node.asked if frame.wait_ms]
    assert len({name for name, _ in waits}) == 1
    assert 60 / LISTEN_SECONDS - 1 <= len(waits) <= 60 / LISTEN_SECONDS
    assert all(frame.version and frame.wait_ms == LISTEN_SECONDS * 1_000 for _, frame in waits), "nothing comes twice"
    assert asked(cluster) == len(waits) + 1


@simulated
async def test_who_asks_once_leaves_nothing_waiting() -> None:
    """A command of kvctl."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        await asyncio.sleep(LISTEN_AFTER_SECONDS * 0.9)
    assert asked(cluster) == 1


@simulated
async def test_a_client_that_is_not_used_asks_for_nothing() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 20.0)
        await asyncio.sleep(2 * LISTEN_SECONDS)
        before = asked(cluster)
        await asyncio.sleep(600.0)
        assert asked(cluster) == before
        await use(kv, 5.0)
        assert asked(cluster) == before + 1, "and goes on when it is used again"


@simulated
async def test_an_election_is_heard_of_without_a_refusal() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        cluster.lead(2, "n3")
        await asyncio.sleep(MOMENT)
        before = len(cluster.nodes["n1"].frames)
        await kv.put("a", "2")
        assert len(cluster.nodes["n1"].frames) == before
        assert len(cluster.nodes["n3"].frames) == 1


@simulated
async def test_a_split_is_heard_of_without_a_refusal() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        cluster.split(2, b"m", child=7, leader="n2")
        await asyncio.sleep(MOMENT)
        await kv.put("z", "2")
        assert [frame.shard for frame in cluster.nodes["n2"].frames] == [7]


@simulated
async def test_goes_on_when_all_it_was_started_with_are_gone() -> None:
    """Nodes are replaced one after the other; those of the end had no replicas when the first ones went."""
    cluster = Cluster(1)
    async with client_of(cluster, endpoints=("n1",)) as kv:
        await use(kv, 3.0)
        for number in range(2, 9):
            cluster.add_node(f"n{number}", f"10.0.0.{number}:7001", bare=True)
        await asyncio.sleep(MOMENT)
        cluster.nodes["n1"].kill()
        for number in range(2, 9):
            cluster.bare.discard(f"n{number}")
            cluster.bare.add(f"n{number - 1}")
            cluster.conf += 1
            cluster.lead(2, f"n{number}")
            await kv.put("a", str(number))
            cluster.nodes[f"n{number - 1}"].kill()
            await asyncio.sleep(2.0)
        assert await kv.get("a") == b"8"


@simulated
async def test_the_next_node_is_listened_to_when_one_is_lost_or_stops() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        (first,) = [name for name, node in cluster.nodes.items() if any(frame.wait_ms for frame in node.asked)]
        cluster.lead(2, next(name for name in cluster.nodes if name != first))
        cluster.nodes[first].kill()
        await use(kv, 3.0)
        (second,) = [
            name for name, node in cluster.nodes.items() if name != first and any(frame.wait_ms for frame in node.asked)
        ]
        cluster.nodes[second].lets_wait = False
        before = len(cluster.nodes[second].asked)
        await use(kv, 30.0, every=0.05)
        assert len(cluster.nodes[second].asked) - before <= 30 / LISTEN_FAILED_SECONDS, "no other one is connected"
        cluster.lead(2, next(name for name in cluster.nodes if name not in (first, second)))
        await use(kv, 3.0)
        before = len(cluster.nodes[second].asked)
        await use(kv, 30.0)
        assert len(cluster.nodes[second].asked) == before, "the third one lets the client wait"


@simulated
async def test_a_node_that_says_nothing_is_left() -> None:
    """Paused: its connection stays open. Operations go to another one, which leads meanwhile."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        (first,) = [name for name, node in cluster.nodes.items() if any(frame.wait_ms for frame in node.asked)]
        other = next(name for name in cluster.nodes if name != first)
        cluster.nodes[first].mute = True
        cluster.lead(2, other)
        await use(kv, LISTEN_SECONDS + 5.0)
        third = next(name for name in cluster.nodes if name not in (first, other))
        listened = [name for name in (other, third) if any(frame.wait_ms for frame in cluster.nodes[name].asked)]
        assert listened
        cluster.nodes[first].mute = False


@simulated
async def test_many_changes_do_not_make_many_requests() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        before = asked(cluster)
        using = asyncio.ensure_future(use(kv, 10.0, every=0.01))
        for _ in range(500):
            cluster.lead(2, "n1")
            await asyncio.sleep(0.02)
        await using
        assert 20 < asked(cluster) - before <= 10 / LISTEN_PAUSE_SECONDS + 1


@simulated
async def test_a_request_that_waits_is_not_pinged_for() -> None:
    """Nothing is expected of the node meanwhile, so its silence says nothing."""
    cluster = Cluster(1)
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        before = len(cluster.messages)
        await asyncio.sleep(LISTEN_SECONDS)
        assert len(cluster.messages) - before <= 1


@simulated
async def test_a_member_without_replicas_that_failed_once_is_not_forgotten() -> None:
    cluster = Cluster()
    cluster.add_node("n4", "10.0.0.4:7001", bare=True)
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        dispatcher = kv._dispatcher
        assert dispatcher is not None
        (link,) = [link for link in dispatcher.nodes if link.address == "10.0.0.4:7001"]
        link.failures = 1
        cluster.lead(2, "n2")
        await use(kv, 3.0)
        assert link in list(dispatcher.nodes)


@simulated
async def test_closing_does_not_wait_for_who_waits() -> None:
    loop = asyncio.get_running_loop()
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await use(kv, 3.0)
        began = loop.time()
    assert loop.time() - began < 0.1
    assert asyncio.all_tasks() == {asyncio.current_task()}
