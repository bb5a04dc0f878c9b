"""docs/protocol.md against the code, and a client written from it alone.

The tables of the document are read and compared with the structs and tables of kvstore.base. The little client below
uses the `msgpack` package and nothing of kvstore; what it knows is what the document says.
"""

from __future__ import annotations

import random
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiohttp
import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest

import kvstore.base.operations as ops
import kvstore.base.stream as frames
from kvstore.api.stream import CloseCode
from kvstore.base.errors import CODES
from kvstore.base.limits import STREAM_PROTOCOL, Limits
from kvstore.base.shards import ReplicaRole, Route
from kvstore.testing import LocalCluster
from tests.client.fake_cluster import Act, Cluster
from tests.client.fake_transport import serve

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def section(title: str) -> str:
    """The text below that heading, to the next one."""
    found = re.search(rf"^##+ (?:\d\. )?{re.escape(title)}$(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of the section's first table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# -- the document against the code

KINDS = {"int": int, "bytes": bytes, "str": str, "bool": bool, "nil": type(None), "map": dict}
DEFAULTS: dict[str, Any] = {'""': "", "0": 0, "[]": (), "nil": None, "true": True, "false": False}


def check_fields(text: str, struct: type[msgspec.Struct]) -> None:
    """`name: type = default, ...` names the fields of the struct, in their order, with their defaults and types."""
    told = [re.fullmatch(r"(\w+): (.+?)(?: = (.+))?", part) for part in text.split(", ")]
    infos = msgspec.structs.fields(struct)
    assert [one[1] for one in told if one is not None] == [info.name for info in infos]
    for one, info in zip(told, infos, strict=True):
        assert one is not None
        if one[3] is None:
            assert info.required, f"{struct.__name__}.{info.name} has a default"
        else:
            default = DEFAULTS[one[3]] if one[3] in DEFAULTS else int(one[3])
            assert info.default == default, f"{struct.__name__}.{info.name}"
        check_kind(one[2], info.type, f"{struct.__name__}.{info.name}")


def check_kind(told: str, real: Any, where: str) -> None:
    names = {getattr(kind, "__name__", str(kind)) for kind in getattr(real, "__args__", (real,))}
    for one in told.split(" or "):
        if one in KINDS and one != "map":
            assert KINDS[one].__name__ in names, where
        elif one.startswith("["):
            assert real is msgspec.Raw or real.__origin__ in (list, tuple), where


@pytest.mark.parametrize(
    ("title", "union"),
    [("Requests", frames.Request), ("Replies", frames.Reply), ("3. Operations", None), ("4. Results", ops.Result)],
)
def test_tags_and_fields(title: str, union: Any) -> None:
    structs = ops.Mutation.__args__ + ops.ReadOperation.__args__ if union is None else union.__args__
    real = {kind.__struct_config__.tag: kind for kind in structs if hasattr(kind, "__struct_config__")}
    table = rows(title.removeprefix("3. ").removeprefix("4. "))
    assert [int(row[0]) for row in table] == sorted(real)
    for tag, name, told, *_ in table:
        assert real[int(tag)].__name__ == name
        check_fields(told, real[int(tag)])


def test_items_and_routes() -> None:
    item = re.search(r"An \*\*item\*\* is `\[(.*?)\]`", DOCUMENT)
    assert item is not None
    check_fields(item[1], ops.Item)
    route = re.search(r"^`\[(id: int, keyspace.*?)\]`$", section("Routes"), re.MULTILINE | re.DOTALL)
    assert route is not None
    flat = route[1].replace("\n", " ").replace("[[node: str, address: str, role: int]]", "[replica]")
    check_fields(flat, Route)
    assert "`role` 1 is a voter, 2 a learner" in DOCUMENT
    assert [role.value for role in ReplicaRole] == [1, 2]


def test_codes() -> None:
    table = {
        int(code): (name, definite == "yes", retry, int(after), int(http))
        for code, name, definite, retry, after, http in rows("Codes")
    }
    assert table == {
        int(code): (code.name, row.definite, row.retry.value, row.retry_after_ms, row.http_status)
        for code, row in CODES.items()
    }


def test_limits_close_codes_and_the_protocol_number() -> None:
    limits = Limits()
    assert {name: int(number) for name, number in rows("Limits")} == {
        one.name: getattr(limits, one.name) for one in fields(limits)
    }
    assert {int(code) for code, _ in rows("Connection")} == {int(code) for code in CloseCode}
    assert f"Protocol number: **{STREAM_PROTOCOL}**" in DOCUMENT
    assert frames.LINEARIZABLE == -1


def test_the_example() -> None:
    block = re.search(r"```\n(.*?)```", section("An example, byte by byte"), re.DOTALL)
    assert block is not None
    messages: list[tuple[str, bytes]] = []
    for line in block[1].splitlines():
        if re.match(r"(client|node) ", line):
            messages.append((line.split()[0], bytes.fromhex(line.split(maxsplit=1)[1])))
        elif re.fullmatch(r" +([0-9a-f]{2} ?)+", line):
            messages[-1] = (messages[-1][0], messages[-1][1] + bytes.fromhex(line))
    session = bytes(range(16))
    put = msgspec.Raw(ops.encode([ops.Put(1, b"a", b"1")]))
    get = msgspec.Raw(ops.encode([ops.Get(0, b"a")]))
    hello, requests, replies = (data for _, data in messages)
    assert frames.encode([frames.Hello(1, "demo")]) == hello
    assert (
        frames.encode([frames.Mutate(1, 2, 1, 5_000, session, 1, 1_001, put), frames.Read(2, 2, 1, 5_000, -1, get)])
        == requests
    )
    assert (
        frames.encode([frames.Results(1, 1_002, [7]), frames.Results(2, 1_002, [ops.Found(b"1", 7, 7, 1)])]) == replies
    )
    assert [type(one) for one in frames.decode_requests(requests)] == [frames.Mutate, frames.Read]
    assert [type(one) for one in frames.decode_replies(replies)] == [frames.Results, frames.Results]


def test_elements_may_be_added_at_the_end() -> None:
    later = msgpack.packb([[2, 7, 1_000, [None], 0, 0, "new"], [5, 8, 1_000, "new"]])
    assert [type(one) for one in frames.decode_replies(later)] == [frames.Results, frames.Pong]
    assert frames.decode_replies(msgpack.packb([[2, 7, 1_000, [None]]])) == [frames.Results(7, 1_000, [None])]


# -- a client from the document alone

MUTATE, READ, GET_ROUTES, PING = 2, 3, 4, 5
RESULTS, REFUSED, ROUTES, PONG = 2, 3, 4, 5
PUT, DELETE, CAS, GET, BATCH, DELETE_RANGE, SCAN = range(1, 8)


class TinyClient:
    """One request at a time. Knows the leader of the shard, follows it, and repeats what got lost."""

    def __init__(self, http: aiohttp.ClientSession, address: str) -> None:
        self.http = http
        self.address = address
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self.session = random.Random(1).randbytes(16)
        self.last_id = 0
        self.seq = 0
        self.stamp = 0
        self.route: list[Any] | None = None
        self.retries = 0

    async def exchange(self, frame: list[Any]) -> list[Any]:
        """Send a frame, get its answer. Raises ConnectionError."""
        if self.socket is None or self.socket.closed:
            self.socket = await self.http.ws_connect(f"ws://{self.address}/v1/stream")
            await self.socket.send_bytes(msgpack.packb([[1, 1, "tiny"]]))
            ((tag, protocol, _, _, stamp, *_),) = await self.receive()
            assert (tag, protocol) == (1, 1)
            self.stamp = self.stamp or stamp
        self.last_id += 1
        frame[1] = self.last_id
        await self.socket.send_bytes(msgpack.packb([frame]))
        while True:
            for reply in await self.receive():
                if reply[1] == self.last_id:
                    return reply

    async def receive(self) -> list[list[Any]]:
        assert self.socket is not None
        message = await self.socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            self.socket = None
            raise ConnectionError
        decoded: list[list[Any]] = msgpack.unpackb(message.data)
        return decoded

    async def ask(self, tag: int, operations: list[Any]) -> list[Any]:
        """Results; follows NOT_LEADER and STALE_ROUTE, repeats after a lost connection."""
        issued_at: int | None = None
        while True:
            try:
                if self.route is None:
                    routes = await self.exchange([GET_ROUTES, 0])
                    assert (routes[0], routes[3]) == (ROUTES, {"default": 1})
                    await self.go(routes[4][0])
                    assert self.route is not None
                if issued_at is None:
                    issued_at = self.stamp
                head = [tag, 0, self.route[0], self.route[4], 5_000]
                rest = [self.session, self.seq, issued_at] if tag == MUTATE else [-1]
                reply = await self.exchange([*head, *rest, operations])
            except ConnectionError:
                self.retries += 1
                continue
            if reply[0] == RESULTS:
                self.stamp = reply[2]
                results: list[Any] = reply[3]
                return results
            assert reply[0] == REFUSED
            assert reply[3] in (5, 6)
            await self.go(reply[7][0])

    async def go(self, route: list[Any]) -> None:
        """To the leader that the route names."""
        self.route = route
        if route[8] != self.address:
            self.address = route[8]
            if self.socket is not None:
                await self.socket.close()

    async def mutate(self, operation: list[Any]) -> Any:
        self.seq += 1
        operation.insert(1, self.seq)
        return (await self.ask(MUTATE, [operation]))[0]

    async def read(self, operation: list[Any]) -> Any:
        operation.insert(1, 0)
        return (await self.ask(READ, [operation]))[0]


async def test_a_client_from_the_document_alone() -> None:
    """On the fake, which loses answers on command."""
    cluster = Cluster(2)
    async with serve(cluster) as addresses, aiohttp.ClientSession() as http:
        kv = TinyClient(http, addresses[1])
        assert await kv.read([GET, b"a"]) is None
        assert await kv.mutate([PUT, b"a", b"1"]) == 1
        assert await kv.read([GET, b"a"]) == [1, b"1", 1, 1, 1]
        assert await kv.mutate([CAS, b"a", b"2", 1, None]) == 2
        assert await kv.mutate([CAS, b"a", b"3", None, b"1"]) == [3, 0, [1, b"2", 2, 1, 2]]
        assert await kv.mutate([CAS, b"b", b"3", 0]) == 3
        inner = [[PUT, 0, b"c", b"4"], [GET, 0, b"a"], [DELETE, 0, b"zz"]]
        assert await kv.mutate([BATCH, inner]) == [4, 4, [4, [1, b"2", 2, 1, 2], 0]]
        page = await kv.read([SCAN, b"", b"", 2])
        assert page == [2, [[b"a", b"2", 2, 1, 2], [b"b", b"3", 3, 3, 1]], b"c", 4]
        page = await kv.read([SCAN, b"", b"c", 9, 1_000, True])
        assert [item[0] for item in page[1]] == [b"b", b"a"]
        assert page[2] is None
        assert await kv.mutate([DELETE, b"a"]) == 5
        assert await kv.mutate([DELETE_RANGE, b"", b"", 1]) == [5, 1, 6, b"c"]
        cluster.lead(2, "n2")
        assert await kv.mutate([PUT, b"a", b"5"]) == 7
        cluster.then(Act.DROP_AFTER, Act.DROP_BEFORE)
        assert await kv.mutate([PUT, b"a", b"6"]) == 8
        assert kv.retries == 2
        assert (await kv.exchange([PING, 0]))[0] == PONG
        assert len(cluster.log()) == len({(session, seq) for session, seq, _ in cluster.log()}) == 9


async def test_the_same_client_on_real_nodes() -> None:
    async with LocalCluster(nodes=2) as cluster, aiohttp.ClientSession() as http:
        leader = await cluster.leader()
        follower = "n1" if leader == "n2" else "n2"
        kv = TinyClient(http, cluster.address(follower))
        first = await kv.mutate([PUT, b"a", b"1"])
        assert await kv.read([GET, b"a"]) == [1, b"1", first, first, 1]
        assert kv.address == cluster.address(leader)
        assert await kv.mutate([CAS, b"a", b"2", 77, None]) == [3, 0, [1, b"1", first, first, 1]]
        inner = [[PUT, 0, b"b", b"2"], [GET, 0, b"a"], [DELETE, 0, b"zz"]]
        assert await kv.mutate([BATCH, inner]) == [4, first + 1, [first + 1, [1, b"1", first, first, 1], 0]]
        page = await kv.read([SCAN, b"", b"", 1])
        assert [item[0] for item in page[1]] == [b"a"]
        assert [item[0] for item in (await kv.read([SCAN, page[2], b""]))[1]] == [b"b"]
        assert (await kv.mutate([DELETE_RANGE, b"", b""]))[1] == 2
        # A repeated number gets the answer of its first execution, whatever is asked now.
        kv.seq -= 1
        assert (await kv.mutate([PUT, b"a", b"9"]))[0] == 5
        assert await kv.read([GET, b"a"]) is None
