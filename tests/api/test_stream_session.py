"""The client stream without I/O. Method: bytes in, bytes out, against the fake router; `turn` is a turn of a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import pytest

from kvstore.api import stream as stream_module
from kvstore.api.stream import CloseCode, StreamSession, array_header, frame_count
from kvstore.base import operations as ops
from kvstore.base.errors import Code
from kvstore.base.limits import CLIENT_FRAMES_MAX, CLIENT_OUT_BYTES_MAX, STREAM_REPLY_BYTES_MAX, Limits
from kvstore.base.metrics import Metrics
from kvstore.base.operations import Found, Mismatch
from kvstore.base.shards import Route
from kvstore.base.stream import (
    LINEARIZABLE,
    GetRoutes,
    Hello,
    Mutate,
    Ping,
    Pong,
    Read,
    Refused,
    Reply,
    Request,
    Results,
    Routes,
    Welcome,
    decode_replies,
    decode_requests,
    encode,
)
from tests.api.fake_backend import STAMP_MS, FakeRouter, refusal

T = TypeVar("T", bound=Reply)


def put(frame: int, key: bytes = b"k", value: bytes = b"v", *, seq: int = 0, session: bytes = b"") -> Mutate:
    return Mutate(frame, 2, 1, 1_000, session, 0, 0, msgspec.Raw(ops.encode([ops.Put(seq, key, value)])))


def get(frame: int, *keys: bytes) -> Read:
    operations = [ops.Get(0, key) for key in keys or (b"k",)]
    return Read(frame, 2, 1, 1_000, LINEARIZABLE, msgspec.Raw(ops.encode(operations)))


class Wire:
    """A session and both ends of its connection."""

    def __init__(self, *, greet: bool = True) -> None:
        self.router = FakeRouter()
        self.metrics = Metrics(node="n1", process=False)
        self.wakes = 0
        self.session = StreamSession(
            self.router, limits=Limits(), metrics=self.metrics, node="n1", cluster="c", wake=self._wake
        )
        if greet:
            self.send(Hello(1, "test"))
            self.one(Welcome)

    def _wake(self) -> None:
        self.wakes += 1

    def send(self, *frames: Request) -> None:
        self.session.receive(encode(list(frames)))

    def messages(self) -> list[list[Reply]]:
        messages: list[list[Reply]] = []
        while (message := self.session.take()) is not None:
            assert len(message) <= STREAM_REPLY_BYTES_MAX
            messages.append(decode_replies(message))
        return messages

    def replies(self) -> Sequence[Reply]:
        return [reply for message in self.messages() for reply in message]

    def one(self, kind: type[T]) -> T:
        (reply,) = self.replies()
        assert isinstance(reply, kind), reply
        return reply


async def turn() -> None:
    await asyncio.sleep(0)


def test_hello_is_answered_by_welcome_with_stamp_and_limits() -> None:
    wire = Wire(greet=False)
    wire.send(Hello(1, "test/1"))
    welcome = wire.one(Welcome)
    assert (welcome.protocol, welcome.node, welcome.cluster, welcome.stamp) == (1, "n1", "c", STAMP_MS)
    assert welcome.limits["value_bytes_max"] == Limits().value_bytes_max
    assert wire.session.client == "test/1"


async def test_answers_of_one_turn_are_one_message() -> None:
    wire = Wire()
    wire.wakes = 0
    wire.send(put(1), get(2), Ping(3), GetRoutes(4), put(5, b"x"))
    await turn()
    (message,) = wire.messages()
    assert [type(reply) for reply in message] == [Pong, Routes, Results, Results, Results]
    assert {reply.id for reply in message if isinstance(reply, Results)} == {1, 2, 5}
    assert message[3] == Results(2, STAMP_MS, [Found(b"v", 1, 1, 1)])
    assert wire.wakes == 1


async def test_hello_and_requests_may_share_a_message() -> None:
    wire = Wire(greet=False)
    wire.send(Hello(1), put(1), Ping(2))
    await turn()
    assert [type(reply) for reply in wire.replies()] == [Welcome, Pong, Results]


def test_a_refusal_keeps_its_code_and_routes() -> None:
    wire = Wire()
    route = Route(2, 1, b"", b"", 1, 1, 3, "n2", "h:2")
    wire.router.refuse = refusal(Code.NOT_LEADER, routes=(route,))
    wire.send(put(9))
    refused = wire.one(Refused)
    assert (refused.id, refused.code, refused.routes) == (9, Code.NOT_LEADER, (route,))
    assert wire.metrics.stream_requests == {("mutate", "NOT_LEADER"): 1}


def test_malformed_operations_are_refused_and_the_stream_goes_on() -> None:
    wire = Wire()
    wire.send(Mutate(1, 2, 1, 1_000, b"", 0, 0, msgspec.Raw(b"\xc0")))
    assert wire.one(Refused).code == Code.INVALID
    wire.send(Ping(2))
    assert wire.one(Pong).id == 2
    assert wire.session.closing is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x91\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff",
        b"\x91" * 100_000,
        b"\x91\x91\x63",
        b"\x92" + encode([Ping(1)])[1:],
        encode([Ping(1)] * (CLIENT_FRAMES_MAX + 1)),
        encode([Mutate(1, 2, 1, 1, b"short", 0, 0, msgspec.Raw(b"\x90"))]),
        encode([Hello(1)]),
    ],
)
def test_what_is_no_message_ends_the_stream_with_a_reason(message: bytes) -> None:
    wire = Wire()
    wire.session.receive(message)
    refused = wire.one(Refused)
    assert (refused.id, refused.code, refused.definite) == (0, Code.INVALID, True)
    assert wire.session.closing is not None
    code, reason = wire.session.closing
    assert (code, reason) == (CloseCode.PROTOCOL_ERROR, refused.message[:120])
    assert wire.metrics.stream_malformed == 1
    wire.send(put(1))
    assert not wire.router.frames
    assert wire.session.take() is None


@pytest.mark.parametrize("first", [Ping(1), put(1), GetRoutes(1), Hello(2), Hello(0)])
def test_the_first_frame_must_be_a_hello_of_this_protocol(first: Request) -> None:
    wire = Wire(greet=False)
    wire.send(first, put(2))
    assert wire.one(Refused).id == 0
    assert wire.session.closing is not None
    assert not wire.router.frames


def test_reading_stops_at_the_limit_of_requests_and_goes_on_after_answers() -> None:
    wire = Wire()
    wire.router.hold = True
    wire.send(*[put(i) for i in range(CLIENT_FRAMES_MAX - 1)])
    assert not wire.session.paused
    wire.send(put(CLIENT_FRAMES_MAX))
    assert wire.session.paused
    wire.wakes = 0
    wire.router.release()
    assert not wire.session.paused
    assert wire.wakes >= 1
    assert len(wire.replies()) == CLIENT_FRAMES_MAX
    assert wire.session.unanswered == 0


def test_answers_that_are_not_taken_stop_reading_then_refuse_reads() -> None:
    wire = Wire()
    value = bytes(1 << 20)
    wire.router.state.data[b"k"] = Found(value, 1, 1, 1)
    wire.router.hold = True
    wire.send(*[get(i, *[b"k"] * 8) for i in range(100)])
    wire.router.release()
    assert wire.session.paused
    assert wire.session.out_bytes < CLIENT_OUT_BYTES_MAX + 10 * len(value)
    replies = wire.replies()
    assert len(replies) == 100
    refused = [reply for reply in replies if isinstance(reply, Refused)]
    assert len(refused) > 90
    assert all((reply.code, reply.definite) == (Code.OVERLOADED, True) for reply in refused)
    assert not wire.session.paused


def test_a_client_that_takes_nothing_is_cut_off_in_the_end() -> None:
    wire = Wire()
    wire.router.state.data[b"k"] = Found(bytes(1 << 20), 1, 1, 1)
    cas = msgspec.Raw(ops.encode([ops.Cas(0, b"k", b"", 9)] * 8))  # each failure carries the value
    wire.router.hold = True
    wire.send(*[Mutate(i, 2, 1, 1_000, b"", 0, 0, cas) for i in range(100)])
    wire.router.release()
    assert wire.session.closing is not None
    assert wire.session.closing[0] is CloseCode.TOO_SLOW
    assert wire.session.out_bytes <= 2 * CLIENT_OUT_BYTES_MAX


def test_messages_are_cut_at_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_REPLY_BYTES_MAX", 100)
    wire = Wire()
    wire.router.hold = True
    wire.send(*[get(i) for i in range(50)])
    wire.router.release()
    sizes = []
    seen = []
    while (message := wire.session.take()) is not None:
        sizes.append(len(message))
        seen += [reply.id for reply in decode_replies(message) if isinstance(reply, Results)]
    assert seen == list(range(50))
    assert max(sizes) <= 105
    assert len(sizes) > 5


def test_an_answer_too_large_for_a_message_is_refused() -> None:
    wire = Wire()
    wire.router.state.data[b"k"] = Found(bytes(1 << 20), 1, 1, 1)
    wire.router.hold = True
    cas = msgspec.Raw(ops.encode([ops.Cas(0, b"k", b"", 9)] * 20))
    wire.send(get(1, *[b"k"] * 20), Mutate(2, 2, 1, 1_000, b"", 0, 0, cas))
    wire.router.release()
    read, write = wire.replies()
    assert isinstance(read, Refused)
    assert isinstance(write, Refused)
    assert (read.code, read.definite) == (Code.TOO_LARGE, True)
    assert (write.code, write.definite) == (Code.TOO_LARGE, False)


def test_pages_count_against_the_limit_of_a_message() -> None:
    wire = Wire()
    for i in range(2):
        wire.router.state.data[b"%d" % i] = Found(bytes(1 << 20), 1, 1, 1)
    wire.router.hold = True
    scans = msgspec.Raw(ops.encode([ops.Scan(0, b"", b"")] * 20))
    wire.send(Read(1, 2, 1, 1_000, LINEARIZABLE, scans))
    wire.router.release()
    assert wire.one(Refused).code == Code.TOO_LARGE


def test_mismatches_and_sessions_pass_through() -> None:
    wire = Wire()
    wire.router.hold = True
    session = bytes(range(16))
    wire.send(put(1, seq=1, session=session), put(2, seq=1, session=session))
    cas = msgspec.Raw(ops.encode([ops.Cas(0, b"k", b"x", 9)]))
    wire.send(Mutate(3, 2, 1, 1_000, b"", 0, 0, cas))
    wire.router.release()
    first, again, failed = wire.replies()
    assert isinstance(first, Results)
    assert isinstance(again, Results)
    assert isinstance(failed, Results)
    assert first.results == again.results == [1]
    assert failed.results == [Mismatch(0, Found(b"v", 1, 1, 1))]
    assert wire.metrics.stream_operations == 3


def test_a_stopping_node_refuses_what_comes_and_answers_what_is_under_way() -> None:
    wire = Wire()
    wire.router.hold = True
    wire.send(put(1))
    wire.session.drain()
    assert wire.session.closing is None
    wire.send(put(2), Ping(3))
    refused, pong = wire.replies()
    assert isinstance(refused, Refused)
    assert (refused.id, refused.code, refused.definite) == (2, Code.UNAVAILABLE, True)
    assert isinstance(pong, Pong)
    wire.router.release()
    assert wire.one(Results).id == 1
    assert wire.session.closing == (CloseCode.GOING_AWAY, "the node is stopping")


def test_answers_after_the_connection_is_lost_are_dropped() -> None:
    wire = Wire()
    wire.router.hold = True
    wire.send(put(1), get(2))
    wire.session.lost()
    wire.router.release()
    assert wire.session.take() is None
    assert wire.session.unanswered == 0
    assert wire.session.out_bytes == 0


def test_an_answer_given_twice_is_a_bug() -> None:
    wire = Wire()
    wire.router.hold = True
    wire.send(put(1))
    (answer,) = wire.router.held
    answer()
    with pytest.raises(AssertionError, match="twice"):
        answer()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_array_headers(count: int) -> None:
    assert msgspec.msgpack.decode(array_header(count) + b"\xc0" * count) == [None] * count
    assert frame_count(array_header(count)) == count


# -- waiting for a change of the routes


def routes_of(wire: Wire) -> list[tuple[int, int, int, bool]]:
    """(id, version, number of routes, whole) of each answer."""
    replies = [reply for reply in wire.replies() if isinstance(reply, Routes)]
    return [(reply.id, reply.version, len(reply.routes), reply.whole) for reply in replies]


def test_routes_are_told_with_the_nodes_that_are_alive() -> None:
    wire = Wire()
    wire.send(GetRoutes(4))
    routes = wire.one(Routes)
    assert routes.nodes == (("n1", "127.0.0.1:7001"), ("n2", "127.0.0.1:7002"))
    assert (routes.id, routes.version, routes.keyspaces, routes.whole) == (4, 3, {"default": 1}, True)


def test_routes_of_another_version_are_told_at_once_and_without_wait_nothing_waits() -> None:
    wire = Wire()
    wire.send(GetRoutes(1, 2, 30_000), GetRoutes(2, 0, 30_000), GetRoutes(3, 3))
    assert routes_of(wire) == [(1, 3, 1, True), (2, 3, 1, True), (3, 3, 0, False)]


def test_who_waits_is_answered_with_the_change_and_holds_nothing_up() -> None:
    wire = Wire()
    wire.send(GetRoutes(1, 3, 90_000), Ping(2))
    assert [type(reply) for reply in wire.replies()] == [Pong]
    assert wire.session.unanswered == 0
    assert wire.router.waited == [(3, 30.0)]
    wire.wakes = 0
    wire.router.change_routes()
    assert wire.wakes == 1
    assert routes_of(wire) == [(1, 4, 1, True)]
    assert wire.router.watches == []


def test_after_the_time_the_same_version_is_told() -> None:
    wire = Wire()
    wire.send(GetRoutes(1, 3, 50))
    assert wire.router.waited == [(3, 0.05)]
    wire.router.end_watches()
    assert routes_of(wire) == [(1, 3, 0, False)]


def test_a_connection_waits_once() -> None:
    wire = Wire()
    wire.send(GetRoutes(1, 3, 50), GetRoutes(2, 3, 50))
    assert routes_of(wire) == [(1, 3, 0, False)]
    assert len(wire.router.watches) == 1
    wire.router.end_watches()
    assert routes_of(wire) == [(2, 3, 0, False)]


def test_a_stopping_node_answers_who_waits_and_leaves() -> None:
    wire = Wire()
    wire.send(GetRoutes(1, 3, 50))
    wire.session.drain()
    assert routes_of(wire) == [(1, 3, 0, False)]
    assert wire.session.closing is not None
    assert wire.router.watches == []


def test_a_lost_connection_waits_no_more() -> None:
    wire = Wire()
    wire.send(GetRoutes(1, 3, 50))
    wire.session.lost()
    assert wire.router.watches == []


def test_too_many_that_wait_are_refused_one_by_one() -> None:
    wire = Wire()
    wire.router.watches_refused = True
    wire.send(GetRoutes(7, 3, 50), Ping(8))
    refused, pong = wire.replies()
    assert isinstance(refused, Refused)
    assert (refused.id, refused.code, refused.definite) == (7, Code.OVERLOADED, True)
    assert isinstance(pong, Pong)


def test_answers_with_routes_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message may ask four thousand times for what is megabytes long."""
    wire = Wire()
    monkeypatch.setattr(stream_module, "CLIENT_OUT_BYTES_MAX", 1_000)
    wire.send(*[GetRoutes(number) for number in range(1, 1_001)])
    told = wire.replies()
    assert [reply.id for reply in told if isinstance(reply, Routes | Refused)] == list(range(1, 1_001))
    assert 1 <= sum(isinstance(reply, Routes) for reply in told) < 20
    assert {reply.code for reply in told if isinstance(reply, Refused)} == {Code.OVERLOADED}


def test_the_shorter_frames_of_older_clients_and_nodes_are_understood() -> None:
    assert decode_requests(msgspec.msgpack.encode([[4, 9]])) == [GetRoutes(9, 0, 0)]
    assert decode_replies(msgspec.msgpack.encode([[4, 9, 1, {"default": 1}, []]])) == [
        Routes(9, 1, {"default": 1}, [], (), whole=True)
    ]
    longer = msgspec.msgpack.encode([[4, 9, 1, 2, "later"]])
    assert decode_requests(longer) == [GetRoutes(9, 1, 2)]
