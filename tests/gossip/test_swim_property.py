"""Whatever comes in, in whatever order: nothing raises, nothing grows, packets fit; the same tales end in one belief.

Method: hypothesis, on single cores without a network.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.packet import Ack, Body, Gossip, Nack, Ping, PingRequest, Sync
from kvstore.gossip.settings import PACKET_BYTES_MIN
from tests.gossip.cores import ALIVE, BUDGET, SUSPECT, Core, Crate, member, node_id, packet, raw_id

NODES = 5
numbers = st.integers(0, NODES)
tales = st.builds(
    member,
    numbers,
    st.integers(4, 7),
    st.sampled_from(MemberState),
    labels=st.dictionaries(st.sampled_from("abcd"), st.text("xyz", max_size=60), max_size=4),
)
tickets = st.integers(0, 3)
ids = numbers.map(raw_id)
body_strategy: st.SearchStrategy[Body] = st.one_of(
    st.builds(Ping, tickets, ids, ids, st.integers(0, 2), st.integers(0, 2)),
    st.builds(PingRequest, tickets, ids, ids),
    st.builds(Ack, tickets, ids, st.one_of(st.none(), st.integers(0, 2)), st.integers(0, 2)),
    st.builds(Nack, tickets, ids),
    st.just(Gossip()),
    st.builds(Sync, ids, st.binary(max_size=20)),
)


@settings(deadline=None)
@given(st.lists(st.tuples(tales, numbers), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_any_order_of_tales_ends_in_one_belief(told: list[tuple[Member, int]], rng: random.Random) -> None:
    others = [(each, accuser) for each, accuser in told if each.node != node_id(0)]
    again = others + others[:4]
    rng.shuffle(again)
    one, two = Core(), Core(seed=2)
    for core, order in ((one, others), (two, again)):
        for each, accuser in order:
            core.hear(each, accuser=accuser if each.state is SUSPECT else None)
    believed = [{view.member.node: view.member for view in core.swim.view()} for core in (one, two)]
    assert believed[0] == believed[1]


@settings(deadline=None)
@given(st.lists(tales, max_size=8), st.lists(tales, max_size=8))
def test_who_compares_everything_agrees(left: list[Member], right: list[Member]) -> None:
    """Push-pull in both directions, twice: a refutation that the first brings about travels by the second."""
    cores = [Core(seed=number) for number in (1, 2)]
    cores[1].swim.declare_left(node_id(0), cores[1].now)
    for core, heard in zip(cores, (left, right), strict=True):
        core.hear(*(each for each in heard if each.node != node_id(0)))
    for _ in range(2):
        states = [core.swim.push_state() for core in cores]
        for core, state in zip(cores, reversed(states), strict=True):
            core.swim.pull_state(state, core.now)
    believed = [
        {view.member.node: view.member for view in core.swim.view() if not view.member.is_gone} for core in cores
    ]
    for node in believed[0].keys() & believed[1].keys() - {node_id(0)}:
        assert believed[0][node] == believed[1][node]


@settings(deadline=None)
@given(st.binary(max_size=150), st.data())
def test_no_bytes_do_anything(noise: bytes, data: st.DataObject) -> None:
    core = Core(member(1))
    view = core.swim.view()
    whole = packet(member(1, 9), member(2), body=Ping(1, raw_id(1), raw_id(0), 0, 0))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for payload in (noise, b"\x94\x02" + noise, cut, whole + b"\x00", b"\x94\x01\x91\x05" + noise + b"\xc1"):
        core.swim.receive(payload, "10.0.0.1:7001", core.now)
    assert core.sent() == []
    assert core.swim.view() == view
    assert sum(core.swim.counters.refused.values()) == 5
    assert set(core.swim.counters.refused) <= {"malformed", "version"}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("packet"), st.lists(tales, max_size=4), body_strategy, numbers),
        st.tuples(st.just("pull"), st.lists(tales, max_size=4)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.1, 0.6, 3.0, 40.0])),
        st.tuples(st.just("sleep"), st.sampled_from([0.3, 30.0])),
        st.tuples(st.just("remove"), numbers),
        st.tuples(st.just("leave")),
        st.tuples(st.just("cargo"), st.integers(1, 300)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_any_history_keeps_the_invariants(history: list[tuple[Any, ...]]) -> None:
    core = Core(member(1), cargo=Crate(parts=[[Raw(b"\x01")]]), members_max=NODES, forget_seconds=60.0)
    incarnation = core.swim.me.incarnation
    for what, *rest in history:
        if what == "packet":
            core.hear(*rest[0], body=rest[1], accuser=rest[2])
        elif what == "pull":
            core.swim.pull_state(rest[0], core.now)
        elif what == "wait":
            core.advance(rest[0])
        elif what == "sleep":
            core.now += rest[0]
            core.swim.tick(core.now)
        elif what == "remove":
            core.swim.declare_left(node_id(rest[0]), core.now)
        elif what == "leave":
            core.swim.leave(core.now)
        else:
            core.cargo.waiting.append(Raw(b"\xd9" + bytes([rest[0] % 200]) + b"x" * (rest[0] % 200)))
        for _, payload in core.swim.take().datagrams:
            assert len(payload) <= BUDGET
        view = core.swim.view()
        assert len(view) <= NODES
        assert core.swim.me.incarnation >= incarnation
        incarnation = core.swim.me.incarnation
        assert core.swim.me.state in (ALIVE, MemberState.LEFT)
        suspects = [each for each in core.swim._roster if each.suspicion is not None]
        assert [each.member.node for each in suspects] == [
            each.member.node for each in view if each.member.state is SUSPECT
        ]
        assert core.swim._roster.living == sum(not each.member.is_gone for each in view[1:])
        assert len(core.swim._rumours._ends) <= 64 + 2 * max(1, len(suspects))
        if suspects:
            assert core.swim.next_at() <= min(each.suspicion.ends_at for each in suspects if each.suspicion)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.builds(member, st.integers(1, 60), st.integers(5, 9), labels=st.fixed_dictionaries(
    {"zone": st.text("xyz", max_size=60), "host": st.text("xyz", max_size=60)})), max_size=60),
    st.integers(PACKET_BYTES_MIN, 1_500))  # fmt: skip
def test_packets_fit_any_budget(told: list[Member], budget: int) -> None:
    from kvstore.gossip.settings import GossipSettings
    from kvstore.gossip.swim import Swim

    crate = Crate(waiting=[Raw(b"\xd9\x50" + b"x" * 80)] * 50)
    swim = Swim(member(0), settings=GossipSettings(), rng=random.Random(1), now=0.0, cargo=crate, budget=budget)
    for each in told:
        swim.receive(packet(each), "10.0.0.1:7001", 0.0)
    sizes = []
    for _ in range(20):
        now = swim.next_at()
        swim.tick(now)
        sizes += [len(payload) for _, payload in swim.take().datagrams]
    assert max(sizes, default=0) <= budget
    if len({each.node for each in told}) > 30:
        assert max(sizes) > budget - 200, "and are filled"
