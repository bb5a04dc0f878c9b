"""Suspicion, death, refutation, leave, forgetting, names, and the bounds of memory.

Method: one core, tales by hand, times from the settings.
"""

from __future__ import annotations

import msgspec
import pytest

from kvstore.base.errors import Invalid
from kvstore.gossip.events import Forgotten, MemberChanged, NameConflict
from kvstore.gossip.member import INCARNATION_MAX, RECORD_BYTES_MAX, Member
from kvstore.gossip.packet import Gossip
from kvstore.gossip.settings import GossipSettings
from kvstore.gossip.swim import Swim
from tests.gossip.cores import (
    ALIVE,
    BUDGET,
    DEAD,
    LEFT,
    SUSPECT,
    Core,
    Crate,
    Sent,
    bodies,
    member,
    node_id,
    packet,
    raw_id,
)

OTHERS = [member(number) for number in range(1, 10)]


def dies_after(core: Core, number: int, seconds_max: float = 100.0) -> float:
    """Seconds until it is declared dead; the others answer all probes."""
    began = core.now
    while core.state(number) is SUSPECT and core.now < began + seconds_max:
        core.advance(max(0.0, core.swim.next_at() - core.now))
    assert core.state(number) is DEAD
    return core.now - began


@pytest.mark.parametrize(("accusers", "seconds"), [([2], 24.0), ([2, 2, 2], 24.0), ([2, 3], 11.4), ([2, 3, 4, 5], 4.0)])
def test_confirmations_shorten_the_time(accusers: list[int], seconds: float) -> None:
    core = Core(*OTHERS, probe_seconds=1.0)
    core.swim.leave(core.now)  # its own probes would confirm, too
    for accuser in accusers:
        core.hear(member(1, 5, SUSPECT), accuser=accuser, source=accuser)
    assert dies_after(core, 1) == pytest.approx(seconds, abs=0.1)
    assert core.swim.counters.deaths == 1


def test_a_confirmation_may_come_when_the_shorter_time_is_over() -> None:
    core = Core(*OTHERS)
    core.swim.leave(core.now)
    core.hear(member(1, 5, SUSPECT), accuser=2)
    core.advance(20.0)
    core.hear(member(1, 5, SUSPECT), accuser=3)
    assert core.swim.next_at() <= core.now
    core.advance(0.0)
    assert core.state(1) is DEAD
    assert core.swim.counters.late_ticks == 0, "that was nobody's sleep"


def test_a_new_accuser_is_told_on_and_an_old_one_is_not() -> None:
    core = Core(*OTHERS, answered=True)
    core.hear(member(1, 5, SUSPECT), accuser=2)
    core.advance(5.0)
    for accuser, told in ((2, False), (3, True), (3, False)):
        core.hear(member(1, 5, SUSPECT), accuser=accuser)
        news = [each for one in bodies(core.advance(1.5), Gossip) for each in one.news if each.node == raw_id(1)]
        assert bool(news) is told
        assert {each.accuser for each in news} == ({raw_id(accuser)} if told else set())


def test_own_failed_probe_confirms_what_others_suspect() -> None:
    core = Core(*OTHERS[:3])
    core.hear(member(1, 5, SUSPECT), accuser=2)
    accusers = set()
    for _ in range(8):
        for each in core.advance(0.5):
            accusers |= {news.accuser for news in each.news if news.node == raw_id(1) and news.accuser}
    assert raw_id(0) in accusers


def test_a_refutation_ends_the_suspicion() -> None:
    core = Core(*OTHERS)
    core.swim.leave(core.now)
    core.hear(member(1, 5, SUSPECT), accuser=2)
    core.advance(3.0)
    core.hear(member(1, 6))
    core.advance(60.0)
    assert core.state(1) is ALIVE
    core.hear(member(1, 6, SUSPECT), accuser=2)
    assert dies_after(core, 1) == pytest.approx(24.0, abs=0.1), "a new suspicion has its whole time"


def test_another_content_of_the_same_rank_gives_no_more_time() -> None:
    core = Core(*OTHERS)
    core.swim.leave(core.now)
    core.hear(member(1, 5, SUSPECT), accuser=2)
    core.advance(20.0)
    core.hear(member(1, 5, SUSPECT, labels={"zone": "b"}), accuser=2)
    assert dies_after(core, 1) == pytest.approx(4.0, abs=0.1)
    assert core.swim.counters.suspicions == 1


def test_who_is_suspected_again_and_again_costs_no_more_memory() -> None:
    core = Core(*OTHERS)
    for incarnation in range(6, 400):
        core.hear(member(1, incarnation, SUSPECT), accuser=2)
        core.hear(member(1, incarnation, SUSPECT), accuser=3)
    assert len(core.swim._rumours._ends) <= 66


def test_the_dead_may_come_back_with_a_higher_incarnation_only() -> None:
    core = Core(*OTHERS)
    core.hear(member(1, 5, DEAD))
    core.hear(member(1, 5, ALIVE))
    assert core.state(1) is DEAD
    core.hear(member(1, 1_000_000, ALIVE))
    assert core.state(1) is ALIVE
    core.hear(member(1, 5, DEAD))
    assert core.state(1) is ALIVE


def test_a_restarted_node_is_the_same_member_at_its_new_address() -> None:
    core = Core(*OTHERS)
    moved = Member(node_id(1), "n1", "10.9.9.9:7001", 2_000_000, ALIVE, {}, "2")
    core.hear(moved)
    assert core.swim.member(node_id(1)) == moved
    assert len(core.swim.view()) == 10


def test_incarnations_end_somewhere() -> None:
    core = Core(member(1))
    core.hear(member(0, INCARNATION_MAX, SUSPECT))
    assert core.swim.me.incarnation == 5
    assert core.swim.counters.refused == {"incarnation used up": 1}


def test_a_leave_is_told_and_known_to_be_told() -> None:
    core = Core(*OTHERS)
    assert not core.swim.left_spread()
    core.swim.leave(core.now)
    core.swim.leave(core.now)
    assert not core.swim.left_spread()
    sent = core.advance(2.0)
    told = [news for each in sent for news in each.news if news.node == raw_id(0)]
    assert len(told) == core.settings.retransmits(10)
    assert {news.state for news in told} == {LEFT}
    assert core.swim.left_spread()
    assert core.swim.view()[0].member.state is LEFT


def test_a_leave_with_nobody_there_is_told_at_once() -> None:
    core = Core()
    core.swim.leave(core.now)
    assert core.swim.left_spread()


def test_an_operator_may_declare_a_node_gone() -> None:
    core = Core(*OTHERS)
    core.hear(member(1, 5, DEAD))
    core.events.clear()
    core.swim.declare_left(node_id(1), core.now)
    core.swim.declare_left(node_id(1), core.now)
    core.swim.declare_left(node_id(77), core.now)
    sent = core.advance(0.0)
    assert core.state(1) is LEFT
    assert [event.new.state for event in core.events if isinstance(event, MemberChanged)][-1] is LEFT
    assert any(news.node == raw_id(1) and news.state is LEFT for each in sent for news in each.news)


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_those_gone_are_forgotten_in_time(state: int) -> None:
    core = Core(*OTHERS, forget_seconds=600.0)
    core.hear(member(1, 5, DEAD if state == DEAD else LEFT))
    core.swim.leave(core.now)
    core.advance(599.0)
    assert core.state(1) is not None
    core.advance(61.0)
    assert core.state(1) is None
    assert core.events.count(Forgotten(node_id(1))) == 1
    core.hear(member(1, 5, ALIVE))
    assert core.state(1) is ALIVE


def test_nodes_do_not_remind_each_other_of_the_forgotten() -> None:
    """Who was gone when first heard of is kept as such, and told to nobody."""
    core = Core(*OTHERS)
    core.hear(member(20, 5, DEAD))
    core.swim.pull_state([member(21, 5, LEFT)], core.now)
    sent = core.advance(2.0)
    assert core.state(20) is DEAD
    assert core.state(21) is LEFT
    known = {each.node for each in core.swim.push_state()}
    told = {news.node for each in bodies(sent, Gossip) for news in each.news}
    assert known.isdisjoint({node_id(20), node_id(21)})
    assert told.isdisjoint({raw_id(20), raw_id(21)})
    core.hear(member(20, 5, ALIVE))
    assert core.state(20) is DEAD, "an old tale does not revive it"
    core.hear(member(20, 6, ALIVE))
    core.hear(member(20, 6, DEAD))
    assert node_id(20) in {each.node for each in core.swim.push_state()}, "this death was seen here"


def test_what_a_newcomer_is_told_of_everybody_is_no_news() -> None:
    core = Core()
    core.swim.pull_state(OTHERS, core.now)
    assert core.swim.waiting == 1, "only itself is news"
    core.swim.pull_state([member(10)], core.now)
    assert core.swim.waiting == 2


def test_one_name_for_two_nodes_is_told_once_a_pair() -> None:
    core = Core(member(1), member(2, name="twin"))
    core.hear(member(3, name="twin"))
    core.hear(member(3, 6, name="twin"))
    core.hear(member(4, name="n0"))
    core.sent()
    conflicts = [event for event in core.events if isinstance(event, NameConflict)]
    assert [(event.one.node, event.other.node) for event in conflicts] == [
        (node_id(2), node_id(3)),
        (node_id(0), node_id(4)),
    ]


def test_a_name_is_free_when_its_node_is_gone() -> None:
    core = Core(member(1, name="twin"))
    core.hear(member(1, 5, DEAD, name="twin"))
    core.hear(member(2, name="twin"))
    core.sent()
    assert not any(isinstance(event, NameConflict) for event in core.events)
    core.hear(member(1, 6, name="twin"))
    core.sent()
    assert sum(isinstance(event, NameConflict) for event in core.events) == 1


def test_members_are_bounded_and_the_longest_gone_makes_room() -> None:
    core = Core(*(member(number) for number in range(1, 9)), members_max=10)
    core.hear(member(9), member(10), member(11))
    assert len(core.swim.view()) == 10
    assert core.swim.counters.refused == {"too many members": 2}
    core.hear(member(3, 5, DEAD))
    core.now += 1
    core.hear(member(4, 5, DEAD))
    core.hear(member(12, 5, DEAD))
    core.hear(member(10))
    core.sent()
    assert core.state(3) is None
    assert core.state(10) is ALIVE
    assert Forgotten(node_id(3)) in core.events
    assert core.swim.counters.refused == {"too many members": 3}
    told = {news.node for each in bodies(core.advance(0.0), Gossip) for news in each.news}
    assert raw_id(10) in told
    assert raw_id(3) not in told, "what is not known here is not told"


def test_events_and_packets_are_bounded() -> None:
    core = Core(*OTHERS, members_max=20, events_max=20, outbox_max=5)
    for incarnation in range(6, 40):
        core.hear(member(1, incarnation))
        core.hear(body=core.ping(1))
    output = core.swim.take()
    assert len(output.events) == 20
    assert len(output.datagrams) == 5
    assert core.swim.counters.refused == {"too many events": 14, "outbox full": 29}


def test_a_record_that_would_not_fit_is_refused_where_it_is_made() -> None:
    labels = {f"label-{number}": "v" * 50 for number in range(10)}
    large = msgspec.structs.replace(member(0), labels=labels)
    with pytest.raises(Invalid, match=f"over {RECORD_BYTES_MAX} bytes"):
        Swim(
            large, settings=GossipSettings(), rng=__import__("random").Random(1), now=0.0, cargo=Crate(), budget=BUDGET
        )


def test_a_record_that_would_not_fit_is_counted_where_it_comes() -> None:
    core = Core(member(1))
    labels = {f"label-{number}": "v" * 50 for number in range(10)}
    large = member(2, labels=labels)
    core.hear(large, member(3))
    core.swim.pull_state([large], core.now)
    assert core.swim.member(node_id(2)) is None
    assert core.swim.member(node_id(3)) is not None
    assert core.swim.counters.refused == {"bad record": 2}


def test_long_queues_go_out_in_several_full_packets() -> None:
    core = Core(*(member(number) for number in range(1, 10)))
    for number in range(10, 210):
        core.hear(member(number))
    sent = bodies(core.advance(0.0), Gossip)
    by_target: dict[str, list[Sent]] = {}
    for each in sent:
        by_target.setdefault(each.address, []).append(each)
    assert [len(each) for each in by_target.values()] == [core.settings.gossip_packets_max] * 3
    told = [news.node for each in sent for news in each.news]
    assert len(set(told)) == 201, "all of it and this node, before anything is repeated too often"


def test_cargo_fills_what_is_left_of_a_packet() -> None:
    crate = Crate(waiting=[msgspec.Raw(b"\xc4\x0a" + bytes(10)) for _ in range(5)])
    core = Core(member(1), cargo=crate)
    sent = core.advance(0.0)
    assert sum(len(each.packet.cargo) for each in sent) == 5
    core.swim.receive(packet(cargo=[msgspec.Raw(b"\x01")]), "10.0.0.1:7001", core.now)
    assert crate.received == [b"\x01"]


def test_the_dead_get_gossip_for_a_while() -> None:
    core = Core(member(1), member(2))
    core.hear(member(1, 5, DEAD))
    early = core.advance(0.0)
    assert "10.0.0.1:7001" in {each.address for each in bodies(early, Gossip)}
    core.advance(200.0)
    core.hear(member(3))
    late = core.advance(1.0)
    assert "10.0.0.1:7001" not in {each.address for each in bodies(late, Gossip)}


def test_those_gone_take_no_place_in_draws_for_long() -> None:
    core = Core(*OTHERS, answered=True)
    core.hear(member(1, 5, DEAD), member(2, 5, LEFT))
    core.advance(200.0)
    assert {entry.member.node for entry in core.swim._roster._ring} == {node_id(number) for number in range(3, 10)}
    core.hear(member(1, 6))
    assert len(core.swim._roster._ring) == 8


def test_push_pull_goes_to_the_living_and_now_and_then_to_the_dead() -> None:
    core = Core(*OTHERS)
    for number in (1, 2, 3):
        core.hear(member(number, 5, DEAD))
    core.hear(member(4, 5, LEFT))
    peers = [core.swim.push_pull_peer() for _ in range(200)]
    states = [peer.state for peer in peers if peer is not None]
    assert 20 < states.count(DEAD) < 120
    assert states.count(LEFT) == 0
    assert Core().swim.push_pull_peer() is None
