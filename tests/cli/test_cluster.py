"""Goal: the commands on the cluster show and change what they say. Method: kvctl against a real cluster."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvstore.testing import LocalCluster
from tests.cli.conftest import ClusterThread, Kvctl, all_know


def test_status(ctl: Kvctl) -> None:
    shown = ctl("status")
    assert [line.split()[:2] for line in shown.stdout.splitlines()[2:]] == [["n1", "up"], ["n2", "up"], ["n3", "up"]]
    assert shown.stderr == "3 nodes, 2 shards, all well\n"
    told = ctl.json("status")
    assert told["healthy"] is True
    assert len(told["cluster"]) == 32
    assert [node["name"] for node in told["nodes"]] == ["n1", "n2", "n3"]
    assert all(node["up"] and node["status"]["name"] == node["name"] for node in told["nodes"])
    assert [shard["id"] for shard in told["shards"]] == [1, 2]
    assert all(shard["leader"] in ("n1", "n2", "n3") and shard["term"] > 0 for shard in told["shards"])


def test_members(ctl: Kvctl) -> None:
    told = ctl.json("members")
    assert [(row["name"], row["state"]) for row in told] == [("n1", "alive"), ("n2", "alive"), ("n3", "alive")]
    assert {"address", "labels", "node_id", "version"} <= told[0].keys()
    assert ctl("members").stdout.splitlines()[0].split()[:3] == ["NODE", "STATE", "ADDRESS"]


def test_shards_have_the_fields_that_others_rely_on(ctl: Kvctl) -> None:
    for told in (ctl.json("shards"), ctl.json("-o", "json", "shards")):
        assert [row["id"] for row in told] == [1, 2]
        default = told[1]
        assert {"id", "keyspace", "start", "end", "epoch", "leader", "replicas"} <= default.keys()
        assert (default["keyspace"], default["start"], default["end"]) == ("default", "", "")
        assert sorted(replica["node"] for replica in default["replicas"]) == ["n1", "n2", "n3"]
        assert all(replica["role"] == "voter" for replica in default["replicas"])
    assert ctl("shards").stdout.splitlines()[2].startswith("1 (meta)")


def test_routes_have_the_fields_that_others_rely_on(ctl: Kvctl) -> None:
    told = ctl.json("routes")
    assert isinstance(told["version"], int)
    (default,) = told["shards"]
    assert {"id", "start", "end", "epoch", "leader", "address"} <= default.keys()
    assert default["leader"] in ctl("routes").stdout


def test_operators(ctl: Kvctl) -> None:
    assert isinstance(ctl.json("operators"), list)
    ctl("operators")


def test_transfer_moves_the_leadership_and_nothing_is_lost(cluster: ClusterThread, ctl: Kvctl) -> None:
    ctl("put", "before", "1")
    leader = cluster.ask(lambda running: running.leader(2))
    other = next(name for name in ("n1", "n2", "n3") if name != leader)
    assert ctl("shards", "transfer", "2", other).stdout == f"{other} leads shard 2\n"
    assert cluster.ask(lambda running: running.leader(2)) == other
    assert ctl("get", "before").stdout == "1\n"
    assert ctl.json("shards", "transfer", "2", leader)["leader"] == leader


def test_what_is_not_there(ctl: Kvctl) -> None:
    for arguments in (
        ("shards", "transfer", "2", "n9"),
        ("replicas", "add", "2", "n9"),
        ("replicas", "remove", "2", "n9"),
        ("node", "remove", "n9"),
    ):
        assert ctl.error(*arguments, exit_code=3).startswith("kvctl: NOT_FOUND: ")


def test_a_node_comes_gets_a_replica_loses_it_and_goes(cluster: ClusterThread, ctl: Kvctl) -> None:
    """A replica more by hand; the last replica is taken off before the node is removed for good."""

    def places() -> list[str]:
        return sorted(replica["node"] for replica in ctl.json("shards")[1]["replicas"])

    ctl("put", "a", "1")
    cluster.ask(lambda running: running.add("n4"))
    cluster.ask(lambda running: running.until(lambda: all_know(running, 4)))
    assert "n4" in ctl("members").stdout
    assert ctl("replicas", "add", "2", "n4").stdout == "shard 2 has a replica on n4\n"
    cluster.ask(lambda running: running.until(lambda: _has(running, "n4", 2)))
    assert places() == ["n1", "n2", "n3", "n4"]
    assert ctl("replicas", "remove", "2", "n4").stdout == "shard 2 has no replica on n4 any more\n"
    assert places() == ["n1", "n2", "n3"]
    assert ctl("node", "remove", "n4", "--yes").stdout == "removed n4\n"
    cluster.ask(lambda running: running.kill("n4"))
    cluster.ask(lambda running: running.until(lambda: all_know(running, 3)))
    assert [row["name"] for row in ctl.json("members")] == ["n1", "n2", "n3"]
    assert ctl("get", "a").stdout == "1\n"


async def _has(running: LocalCluster, name: str, shard: int) -> bool:
    replica = running.nodes[name].host.core.replicas.get(shard)
    return replica is not None and replica.state is not None


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts one connection, reads, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()[0]))
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            thread.join(10)
            for connection in accepted:
                connection.close()


def test_a_change_that_is_not_answered_is_unknown_and_not_sent_to_another_node(ctl: Kvctl) -> None:
    with silent_server() as silent:
        both = Kvctl(f"{silent},{ctl.endpoints}")
        line = both.error("--timeout", "0.3", "node", "remove", "n9", "--yes", exit_code=5)
    assert line.startswith(f"kvctl: TIMEOUT: no answer from {silent}")


def test_a_dead_endpoint_is_passed_over(ctl: Kvctl) -> None:
    both = Kvctl(f"http://127.0.0.1:1,{ctl.endpoints}")
    assert [row["name"] for row in both.json("members")] == ["n1", "n2", "n3"]
    assert both.error("node", "remove", "n9", "--yes", exit_code=3).startswith("kvctl: NOT_FOUND")


def test_something_else_answers_there() -> None:
    """An HTTP server that is no kvstore: said, not crashed over."""

    class Other(threading.Thread):
        def __init__(self) -> None:
            super().__init__()
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.start()

        def run(self) -> None:
            connection, _ = self.listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 502 Bad\r\nContent-Length: 5\r\nConnection: close\r\n\r\n<html")

    other = Other()
    address: Any = other.listener.getsockname()
    with other.listener:
        line = Kvctl(f"http://127.0.0.1:{address[1]}").error("members", exit_code=1)
        other.join(10)
    assert line.startswith("kvctl: HTTP_502: ")
