"""A leader that is cut off: it says so, and no request hangs on it.

Method: production nodes whose transports are made to drop everything to and from one of them; connections stay open,
so there is no evidence but silence.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from kvstore.base.errors import Unavailable
from kvstore.gossip.leader_hints import LeaderHints
from kvstore.replica.host_driver import HostDriver
from kvstore.testing import LocalCluster
from kvstore.transport.protocol import GroupMessage
from tests.node.test_http import FAST, running, url


def isolate(cluster: LocalCluster, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing gets from or to it any more, until the patch is undone."""
    hosts = {node.host: one for one, node in cluster.nodes.items()}
    own = cluster.nodes[name].admin.status()["node_id"]
    take = HostDriver.on_messages

    def on_messages(host: HostDriver, node: str, messages: list[GroupMessage]) -> None:
        if hosts.get(host) != name and node != own:
            take(host, node, messages)

    monkeypatch.setattr(HostDriver, "on_messages", on_messages)
    monkeypatch.setattr(LeaderHints, "receive", lambda *_: None)  # else it would hear of the new leader by gossip


async def _problem(request: Any) -> tuple[str, str]:
    """(code, outcome) of an error's response."""
    async with request as response:
        assert response.status >= 400, await response.text()
        problem = await response.json()
        return problem["code"], problem["outcome"]


async def test_partitioned_leader_answers_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as (cluster, http):
        loop = asyncio.get_running_loop()
        leader = await cluster.leader()
        path = url(cluster, leader, "/v1/kv/default/k?timeout_ms=700")
        async with http.get(url(cluster, leader, "/readyz")) as response:
            assert response.status == 200
        isolate(cluster, leader, monkeypatch)
        began = loop.time()
        write, read = await asyncio.gather(_problem(http.put(path, data=b"v")), _problem(http.get(path)))
        assert loop.time() - began < 1.7
        assert write == ("TIMEOUT", "unknown")  # it was proposed: nobody here knows
        assert read == ("UNAVAILABLE", "failed")
        async with http.get(url(cluster, leader, "/readyz")) as response:
            assert response.status == 503
        async with http.get(url(cluster, leader, "/healthz")) as response:
            assert response.status == 200
        # By now it has stepped down: what is certainly not done is told so.
        began = loop.time()
        assert await _problem(http.put(path, data=b"w")) == ("UNAVAILABLE", "failed")
        assert loop.time() - began < 1.7
        others = [name for name in cluster.nodes if name != leader]
        async with http.put(url(cluster, others[0], "/v1/kv/default/k"), data=b"others") as response:
            assert response.status == 200, await response.text()
        monkeypatch.undo()
        await cluster.wait_ready()
        async with http.get(url(cluster, leader, "/v1/kv/default/k")) as response:
            assert await response.read() == b"others"


async def test_without_a_quorum_nobody_is_ready_and_nothing_hangs() -> None:
    async with running() as (cluster, http):
        leader = await cluster.leader()
        for name in [one for one in cluster.nodes if one != leader]:
            await cluster.kill(name)
        loop = asyncio.get_running_loop()
        began = loop.time()
        code, _ = await _problem(http.put(url(cluster, leader, "/v1/kv/default/k?timeout_ms=600"), data=b"v"))
        assert code in ("TIMEOUT", "UNAVAILABLE")
        async with http.get(url(cluster, leader, "/readyz")) as response:
            assert response.status == 503
        code, outcome = await _problem(http.get(url(cluster, leader, "/v1/kv/default/k?timeout_ms=300")))
        assert (code, outcome) == ("UNAVAILABLE", "failed")
        assert loop.time() - began < 5


async def test_stopped_replica_is_told_and_its_node_still_answers_for_the_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed assertion while applying: the node stays, its other shard too, and the others take over."""
    async with running() as (cluster, http):
        leader = await cluster.leader()
        node = cluster.nodes[leader]

        def broken(*_: Any) -> None:
            raise AssertionError("made up")

        monkeypatch.setattr(node.host.core.replicas[2], "_apply_writes", broken)
        code, outcome = await _problem(http.put(url(cluster, leader, "/v1/kv/default/k?timeout_ms=1000"), data=b"v"))
        assert (code, outcome) == ("TIMEOUT", "unknown")
        async with http.get(url(cluster, leader, "/v1/status")) as response:
            rows = {row["id"]: row for row in (await response.json())["shards"]}
        assert rows[2]["role"] == "failed"
        assert "made up" in rows[2]["problem"]
        assert not rows[1]["problem"]
        assert not node.fatal.done()
        assert await cluster.leader() != leader
        async with http.put(url(cluster, leader, "/v1/kv/default/k?timeout_ms=5000"), data=b"w") as response:
            assert response.status == 200, await response.text()  # forwarded


async def test_client_of_a_partitioned_leader_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with LocalCluster(nodes=3, **FAST) as cluster, cluster.client() as kv, aiohttp.ClientSession():
        await kv.put(b"k", b"1")
        isolate(cluster, await cluster.leader(), monkeypatch)
        async with asyncio.timeout(10):
            await kv.put(b"k", b"2")
            assert await kv.get(b"k") == b"2"


async def test_no_leadership_is_handed_to_who_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard would take no writes until the leader gives the transfer up, an election timeout later."""
    async with running() as (cluster, _):
        leader = await cluster.leader()
        silent = next(name for name in cluster.nodes if name != leader)
        node = cluster.nodes[leader]
        replica = node.host.core.replicas[2]
        place = next(
            one.replica_id
            for one in (replica.state.descriptor.replicas if replica.state else ())
            if one.node == cluster.nodes[silent].admin.status()["node_id"]
        )
        isolate(cluster, silent, monkeypatch)

        async def unheard() -> bool:
            return not replica.raw.status().progress[place].recent_active

        await cluster.until(unheard)
        with pytest.raises(Unavailable, match="has not answered"):
            await node.admin.perform("transfer", {"shard": 2, "node": silent})
        assert not replica.raw.status().transfer_target
        monkeypatch.undo()
        await cluster.wait_ready()
