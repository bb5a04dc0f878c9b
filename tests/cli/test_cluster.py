"""Goal: the commands on the cluster show and change what they say. Method: kvctl against a real cluster."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

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
    assert {"address", "labels", "node_id", "version", "round_trip_ms", "heard_age_ms"} <= told[0].keys()
    assert all(row["incarnation"] // 1_000_000 == 1 and row["state_age_ms"] >= 0 for row in told)
    lines = ctl("members").stdout.splitlines()
    assert lines[0].split()[:6] == ["NODE", "STATE", "FOR", "ADDRESS", "RTT", "INCARNATION"]
    assert all(row["node_id"][:8] in line for row, line in zip(told, lines[2:], strict=True))


def test_the_table_of_members() -> None:
    """What is not known is a dash; a member that gossip has not heard of has nothing but its record."""
    known = {
        "name": "n1", "node_id": "abcd" * 8, "address": "h:1", "state": "suspect", "incarnation": 2_000_001,
        "labels": {"zone": "a", "host": "x"}, "version": "0.1.0",
        "round_trip_ms": 0.254, "state_age_ms": 93_784_000, "heard_age_ms": 61_900,
    }  # fmt: skip
    times = dict.fromkeys(("incarnation", "round_trip_ms", "state_age_ms", "heard_age_ms"))
    unheard = {**known, "name": "n2", "state": "dead", "labels": {}, **times}
    with recording_server([known, unheard]) as (url, _):
        lines = [" ".join(line.split()) for line in Kvctl(url)("members").stdout.splitlines()]
    assert lines[2] == "n1 suspect 1d 2h h:1 0.25 ms 2000001 0.1.0 1m 1s ago abcdabcd host=x, zone=a"
    assert lines[3] == "n2 dead - h:1 - - 0.1.0 - abcdabcd -"


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


def test_nodes_come_and_go_and_three_replicas_are_kept() -> None:
    """A node that is removed loses its replicas to others; one taken off by hand is put back."""
    with ClusterThread() as thread:
        thread.ask(lambda running: running.add("n4"))
        thread.ask(lambda running: running.until(lambda: all_know(running, 4)))
        ctl = Kvctl(thread.endpoints)

        def settled(*, without: str = "") -> list[str]:
            thread.ask(lambda running: running.until(lambda: has_three(running, without)))
            return sorted(replica["node"] for replica in ctl.json("shards")[1]["replicas"])

        def follower() -> str:
            """A founder that leads nothing."""
            leaders = {thread.ask(lambda running: running.leader(1)), thread.ask(lambda running: running.leader(2))}
            return next(name for name in ("n1", "n2", "n3") if name not in leaders)

        ctl("put", "a", "1")
        assert settled() == ["n1", "n2", "n3"]
        gone = follower()
        assert ctl("node", "remove", gone, "--yes").stdout == f"removed {gone}\n"
        left = [name for name in ("n1", "n2", "n3", "n4") if name != gone]
        assert settled(without=gone) == left
        thread.ask(lambda running: running.kill(gone))
        assert [row["name"] for row in ctl.json("members")] == left
        assert ctl("get", "a").stdout == "1\n"
        assert ctl("replicas", "remove", "2", "n4").stdout == "shard 2 has no replica on n4 any more\n"
        assert settled(without=gone) == left
        assert ctl("replicas", "add", "2", "n4").stdout == "shard 2 has a replica on n4\n"  # it has: nothing to do
        assert {row["state"] for row in ctl.json("operators")} >= {"done"}
        assert ctl("operators").stdout.splitlines()[0].split() == [
            "ID",
            "KIND",
            "SHARD",
            "STATE",
            "AGE",
            "TOOK",
            "STEPS",
            "REASON",
        ]


async def has_three(running: LocalCluster, without: str) -> bool:
    """Shard 2 has three voters, none on `without`, as its leader has it; and no operator is at work."""
    leading = [node for name, node in running.nodes.items() if name != without and node.host.leads(2)]
    if not leading:
        return False
    (shard,) = [row for row in leading[0].admin.shards() if row["id"] == 2]
    working = [row for row in await leading[0].admin.operators() if row["state"] == "running"]
    voters = [place["node"] for place in shard["replicas"] if place["role"] == "voter"]
    return len(voters) == len(shard["replicas"]) == 3 and without not in voters and not working


@contextmanager
def recording_server(content: Any = None) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """Answers everything with `content`, or {}, and keeps what it was asked: method, path, body."""
    asked: list[tuple[str, str, bytes]] = []
    body = json.dumps(content or {}).encode()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append((self.command, self.path, self.rfile.read(int(self.headers.get("Content-Length", 0)))))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("arguments", "request_made"),
    [
        (("shards", "transfer", "7", "n2"), ("POST", "/v1/shards/7/transfer", b'{"node":"n2"}')),
        (("replicas", "add", "7", "n2"), ("POST", "/v1/shards/7/replicas", b'{"node":"n2"}')),
        (("replicas", "remove", "7", "a/b"), ("DELETE", "/v1/shards/7/replicas/a%2Fb", b"")),
        (("node", "remove", "n 2"), ("DELETE", "/v1/members/n%202", b"")),
    ],
)
def test_a_change_is_one_request(arguments: tuple[str, ...], request_made: tuple[str, str, bytes]) -> None:
    with recording_server() as (url, asked):
        assert Kvctl(f"{url},http://127.0.0.1:1").json(*arguments) == {}
        assert asked == [request_made]


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


def test_split_at_a_key_and_in_the_middle() -> None:
    with ClusterThread() as thread:
        ctl = Kvctl(thread.endpoints)
        for number in range(8):
            ctl("put", f"split-{number}", "v" * 50)
        answer = ctl.json("shards", "split", "--at", "split-4")
        assert (answer["shard"], answer["at"]) == (2, "split-4")
        child = answer["child"]
        assert ctl("shards", "split", "--at", "split-4").stdout == "shard 2 ends at split-4 already\n"
        told = ctl("shards", "split", str(child)).stdout
        found = re.fullmatch(rf"shard {child} ends at split-6 now; shard ([0-9]+) begins there\n", told)
        assert found, told
        last = int(found[1])  # an id may have been given for an attempt that a change of leaders cut short
        bounds = {row["id"]: (row["start"], row["end"]) for row in ctl.json("shards") if row["keyspace"] == "default"}
        assert bounds == {2: ("", "split-4"), child: ("split-4", "split-6"), last: ("split-6", "")}
        assert len(ctl.json("scan", "--prefix", "split-")["items"]) == 8
        assert "key group '{a}'" in ctl("shards", "split", "--at", "{a}b", exit_code=1).stderr
        assert "name a SHARD" in ctl("shards", "split", exit_code=None).stderr
