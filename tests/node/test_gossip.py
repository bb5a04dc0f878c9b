"""Goal: nodes know each other, and who leads, by gossip; who stops, dies or comes back is known as that; a secret is
changed, and addresses change, without anybody being lost.

Method: production nodes in this process, with gossip five times as fast as usual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kvstore.base.config import NodeConfig
from kvstore.base.errors import StartRefused
from kvstore.gossip.events import MemberChanged
from kvstore.gossip.member import INCARNATIONS_PER_BOOT, Member, MemberState
from kvstore.node import Node
from kvstore.replica.environment import NodeAddress
from kvstore.replica.host_driver import HostDriver
from kvstore.storage import records
from kvstore.storage.protocol import NodeIdentity
from kvstore.testing import TEST_MAP_BYTES, FreePort, LocalCluster
from kvstore.transport.peer_link import WebSocketTransport
from tests.gossip.rig import bind_both
from tests.node.test_http import FAST
from tests.node.test_restart import Load

QUICK: dict[str, Any] = {**FAST, "gossip_ms": 200}
OLD, NEW = b"the old secret, long enough", b"the new secret, long enough"
OLD_IDENTITY = (
    bytes.fromhex("9501d920" + "6162" * 16 + "a26e31d920" + "6364" * 16 + "9193a26e31d920" + "6162" * 16 + "ae")
    + b"127.0.0.1:7001"
)
ALIVE, SUSPECT, DEAD, LEFT = MemberState


def states(node: Node) -> dict[str, MemberState]:
    return {view.member.name: view.member.state for view in node.gossip.driver.members()}


async def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 (what is waited for happens in several nodes)
            await asyncio.sleep(0.01)


async def all_alive(cluster: LocalCluster) -> None:
    wanted = dict.fromkeys(cluster.nodes, ALIVE)
    await until(lambda: all(states(node) == wanted for node in cluster.nodes.values()))


def leaders(node: Node) -> dict[int, tuple[str, int]]:
    """Who leads each shard, and in which term, as the node has heard."""
    names = {view.member.node: view.member.name for view in node.gossip.driver.members()}
    return {hint.id: (names.get(hint.leader.hex(), "?"), hint.term) for hint in node.gossip.hints.table()}


async def test_every_node_hears_of_all_members_and_leaders() -> None:
    async with LocalCluster(nodes=3, labels={"zone": "a"}, **QUICK) as cluster:
        await all_alive(cluster)
        for node in cluster.nodes.values():
            for view in node.gossip.driver.members():
                member = view.member
                assert member.address == cluster.address(member.name)
                assert member.labels == {"zone": "a"}
                assert member.incarnation // INCARNATIONS_PER_BOOT == 1
        await _leaders_known(cluster)
        killed = await cluster.leader()
        term = leaders(cluster.nodes[killed])[2][1]
        await cluster.kill(killed)
        await _leaders_known(cluster)
        for node in cluster.nodes.values():
            name, later = leaders(node)[2]
            assert name != killed
            assert later > term


async def _leaders_known(cluster: LocalCluster) -> None:
    """Until every node has heard who leads now, of both shards."""

    async def known() -> bool:
        true = {shard: await cluster.leader(shard) for shard in (1, 2)}
        return all(
            {shard: name for shard, (name, _) in leaders(node).items()} == true for node in cluster.nodes.values()
        )

    await cluster.until(known)


async def test_a_node_that_joins_hears_of_leaders_without_a_replica() -> None:
    async with LocalCluster(nodes=3, **QUICK) as cluster:
        await cluster.add("n4")
        await all_alive(cluster)
        await _leaders_known(cluster)


async def test_a_stop_is_told_as_a_leave_and_a_restart_is_a_higher_incarnation() -> None:
    async with LocalCluster(nodes=3, **QUICK) as cluster:
        await all_alive(cluster)
        await cluster.stop("n3")
        # At once: it is told before the node has stopped.
        assert {states(cluster.nodes[name])["n3"] for name in ("n1", "n2")} == {LEFT}
        await cluster.start("n3")
        await all_alive(cluster)
        node = cluster.nodes["n3"].gossip.driver
        for name in ("n1", "n2", "n3"):
            view = next(one for one in cluster.nodes[name].gossip.driver.members() if one.member.name == "n3")
            assert view.member.incarnation // INCARNATIONS_PER_BOOT == 2
        assert node.alive(node._swim.me.node)


async def test_a_killed_node_is_dead_and_then_back() -> None:
    async with LocalCluster(nodes=3, **QUICK) as cluster:
        await all_alive(cluster)
        node_id = cluster.nodes["n2"].admin.status()["node_id"]
        await cluster.kill("n2")
        await until(lambda: all(states(node)["n2"] == DEAD for node in cluster.nodes.values()))
        assert not cluster.nodes["n1"].gossip.driver.alive(node_id)
        await cluster.start("n2")
        await all_alive(cluster)
        assert cluster.nodes["n1"].gossip.driver.alive(node_id)


async def test_a_new_address_is_learned() -> None:
    async with LocalCluster(nodes=3, **QUICK) as cluster:
        node = await cluster.add("n4")
        await all_alive(cluster)
        node_id = node.admin.status()["node_id"]
        old = node.address
        await cluster.stop("n4")
        node = await cluster._start("n4", FreePort.take(), join=(cluster.address("n1"),))
        assert node.address != old
        place = NodeAddress("n4", node.address)
        await until(lambda: all(one.host.environment.addresses.get(node_id) == place for one in cluster.nodes.values()))
        await all_alive(cluster)


async def test_all_addresses_may_change_at_once() -> None:
    """The records, and the founders' list on the disks, lead nowhere then, and there is no quorum to correct them."""
    async with LocalCluster(nodes=3, **QUICK) as cluster, cluster.client() as kv:
        await kv.put(b"k", b"v")
        await all_alive(cluster)
        names = list(cluster.nodes)
        for name in names:
            await cluster.kill(name)
        ports = {name: FreePort.take() for name in names}
        cluster._addresses = {name: port.address for name, port in ports.items()}
        await cluster._start_all(ports)
        await cluster.wait_ready()
        async with cluster.client() as later:
            assert await later.get(b"k") == b"v"


async def test_a_death_is_evidence_only_while_it_is_believed_and_nobody_is_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalCluster(nodes=2, **QUICK) as cluster:
        await all_alive(cluster)
        gone: list[str] = []
        monkeypatch.setattr(HostDriver, "on_peer_gone", lambda _, node: gone.append(node))
        node, other = cluster.nodes["n1"], cluster.nodes["n2"]
        member = node.gossip.driver.member(other.admin.status()["node_id"])
        assert member is not None
        dead = Member(member.node, member.name, member.address, member.incarnation, DEAD)
        told = MemberChanged(member, dead)
        node.gossip._on_event(told)  # it is not what is believed now: the news is late
        assert gone == []
        monkeypatch.setattr(node.gossip.driver, "member", lambda _: dead)
        node.gossip._on_event(told)  # a connection is open
        assert gone == []
        monkeypatch.setattr(WebSocketTransport, "connected", lambda *_: False)
        node.gossip._on_event(told)
        assert gone == [member.node]
        node.gossip._on_event(MemberChanged(member, Member(member.node, "n2", member.address, 1, LEFT)))
        assert gone == [member.node]


async def test_the_secret_is_changed_under_load_and_nobody_is_lost() -> None:
    """As docs/operations.md tells it; after each step a node is restarted, which has to be let in by the others."""
    async with LocalCluster(nodes=3, cluster_secrets=(OLD,), **QUICK) as cluster, cluster.client() as kv:
        await all_alive(cluster)
        load = Load(kv)
        for secrets in ((OLD, NEW), (NEW, OLD), (NEW,)):
            for name in ("n1", "n2", "n3"):
                cluster.nodes[name].set_secrets(secrets)
                await asyncio.sleep(0.3)  # nodes at different steps probe each other
            cluster._settings["cluster_secrets"] = secrets
            await cluster.stop("n3")
            await cluster.start("n3")
            await all_alive(cluster)
        await load.stop()
        await load.check()
        assert not load.errors
        for node in cluster.nodes.values():
            events = node.metrics.gauge("kvstore_gossip_events")
            assert events["deaths"] == 0, states(node)
            assert not set(node.metrics.gauge("kvstore_gossip_refused")) & {"forged", "unsigned", "signed"}


async def test_nodes_of_two_clusters_say_so_on_both_sides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A node whose directory belongs to another cluster is started with --join."""
    async with LocalCluster(nodes=1, **QUICK) as one, LocalCluster(nodes=1, data=tmp_path, **QUICK) as two:
        await two.stop("n1")
        two._founders.clear()
        node = await two._start("n1", join=(one.address("n1"),))
        await until(lambda: caplog.text.count("CLUSTER_MISMATCH") >= 2)
        lines = [record.getMessage() for record in caplog.records if "CLUSTER_MISMATCH" in record.getMessage()]
        assert any(f"{one.address('n1')} refused this node (n1 at {node.address})" in line for line in lines)
        assert any(f"this node (n1 at {one.address('n1')}) refused a connection" in line for line in lines)
        assert all("check --join and --initial-cluster" in line for line in lines)


async def test_ipv6(tmp_path: Path) -> None:
    try:
        ports = [bind_both("::1"), bind_both("::1")]
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    first, second = (f"[::1]:{tcp.getsockname()[1]}" for tcp, _ in ports)
    common: dict[str, Any] = {"map_bytes": TEST_MAP_BYTES, "reserve_bytes": 0, **QUICK}
    configs = (
        NodeConfig(name="n1", data=tmp_path / "n1", listen=first, **common),
        NodeConfig(name="n2", data=tmp_path / "n2", listen=second, join=(first,), **common),
    )
    async with AsyncExitStack() as stack:
        nodes = []
        for config, (tcp, udp) in zip(configs, ports, strict=True):
            nodes.append(Node(config, listener=tcp, datagrams=udp))
            stack.push_async_callback(nodes[-1].kill)
            await nodes[-1].start()
        await until(lambda: all(states(node) == {"n1": ALIVE, "n2": ALIVE} for node in nodes))
        await until(lambda: all(view.heard is not None for view in nodes[0].gossip.driver.members()[1:]))
        assert not nodes[0].metrics.gauge("kvstore_gossip_send_errors")


async def test_a_taken_udp_port_refuses_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    port = FreePort.take()
    address = port.address
    port.listener.close()
    try:
        node = Node(NodeConfig(name="n1", data=tmp_path, listen=address, map_bytes=TEST_MAP_BYTES, reserve_bytes=0))
        with pytest.raises(StartRefused, match=r"can't use UDP port .*: Address already in use; gossip needs the same"):
            await node.start()
    finally:
        port.close()
    node = Node(NodeConfig(name="n1", data=tmp_path, listen=address, map_bytes=TEST_MAP_BYTES, reserve_bytes=0))
    await node.start()
    await node.stop()


async def test_labels_that_cannot_be_told_refuse_the_start(tmp_path: Path) -> None:
    port = FreePort.take()
    labels = {f"label-{number}": "x" * 64 for number in range(16)}
    config = NodeConfig(name="n1", data=tmp_path, listen=port.address, map_bytes=TEST_MAP_BYTES, labels=labels)
    with pytest.raises(StartRefused, match=r"gossip can't tell of this node: .*--labels"):
        await Node(config, listener=port.listener, datagrams=port.datagrams).start()


def test_the_identity_of_an_older_directory_has_not_been_started() -> None:
    """The record of a directory that was written before starts were counted."""
    key = b"node"
    found = records.decode_struct(key, records.seal(key, OLD_IDENTITY), NodeIdentity)
    assert found == NodeIdentity(1, "ab" * 16, "n1", "cd" * 16, (("n1", "ab" * 16, "127.0.0.1:7001"),))
    assert found.boots == 0
