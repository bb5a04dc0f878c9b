"""Every tale against every belief, and every kind of packet from a sender in every state.

Method: tables made of the full product, each row on a core of its own; what is expected is written as the rule that the
paper gives, not as the code computes it.
"""

from __future__ import annotations

import itertools

import pytest

from kvstore.gossip.events import MemberChanged
from kvstore.gossip.member import MemberState
from kvstore.gossip.packet import Ack, Gossip, Nack, Ping, PingRequest, Sync
from tests.gossip.cores import ALIVE, DEAD, LEFT, SUSPECT, Core, Crate, bodies, member, node_id, raw_id

BELIEFS = [None, *MemberState]


def core_that_believes(state: MemberState | None, cargo: Crate | None = None) -> Core:
    """Of node 1, at incarnation 5. Node 2 lives, so that there is somebody to tell."""
    core = Core(member(2), cargo=cargo, answered=True)
    if state is not None:
        core.hear(member(1, 4), source=2)
        core.hear(member(1, 5, state), source=2)
        assert core.state(1) == state
    core.advance(3 * core.settings.gossip_seconds * core.settings.retransmit_factor)
    assert core.swim.waiting == 0
    assert core.swim.health == 0
    core.sent()
    core.events.clear()
    return core


@pytest.mark.parametrize(
    ("belief", "told", "incarnation"), list(itertools.product(BELIEFS, MemberState, [4, 5, 6])), ids=str
)
def test_a_tale_from_a_packet(belief: MemberState | None, told: MemberState, incarnation: int) -> None:
    core = core_that_believes(belief)
    before = core.swim.member(node_id(1))
    core.hear(member(1, incarnation, told), source=2)
    sent = core.advance(0.0)
    if belief is None:
        believed, tells = (incarnation, told), not told >= DEAD
    elif incarnation > 5 or (incarnation == 5 and told > belief):
        believed, tells = (incarnation, told), True
    else:
        believed, tells = (5, belief), False
    after = core.swim.member(node_id(1))
    assert after is not None
    assert (after.incarnation, after.state) == believed
    assert core.events == ([MemberChanged(before, after)] if before != after else [])
    assert any(news.node == raw_id(1) for each in bodies(sent, Gossip) for news in each.news) == tells


@pytest.mark.parametrize(("belief", "told"), list(itertools.product(BELIEFS, MemberState)), ids=str)
def test_a_tale_from_push_pull(belief: MemberState | None, told: MemberState) -> None:
    core = core_that_believes(belief)
    core.swim.pull_state([member(1, 6, told)], core.now)
    expected = SUSPECT if told is DEAD and belief is not None else told
    assert core.state(1) is expected


@pytest.mark.parametrize(("told", "incarnation"), list(itertools.product(MemberState, [4, 5, 6])), ids=str)
def test_a_tale_about_myself_is_refuted(told: MemberState, incarnation: int) -> None:
    core = core_that_believes(ALIVE)
    core.hear(member(0, incarnation, told))
    refuted = incarnation == 6 or (incarnation == 5 and told is not ALIVE)
    assert core.swim.me.state is ALIVE
    assert core.swim.me.incarnation == (incarnation + 1 if refuted else 5)
    assert core.swim.counters.refutations == refuted
    assert core.swim.health == (refuted and told in (SUSPECT, DEAD))
    sent = core.advance(0.0)
    assert any(news.node == raw_id(0) for each in sent for news in each.news) == refuted


@pytest.mark.parametrize(("told", "incarnation"), list(itertools.product(MemberState, [4, 5, 6])), ids=str)
def test_who_leaves_stays_so(told: MemberState, incarnation: int) -> None:
    core = core_that_believes(ALIVE)
    core.swim.leave(core.now)
    core.hear(member(0, incarnation, told))
    assert core.swim.me.state is LEFT
    assert core.swim.me.incarnation == max(incarnation, 5)
    assert core.swim.counters.refutations == 0


@pytest.mark.parametrize("belief", BELIEFS, ids=str)
def test_every_ping_is_answered_and_suspects_are_told(belief: MemberState | None) -> None:
    core = core_that_believes(belief)
    core.hear(member(3), source=2)  # news that waits
    core.sent()
    core.hear(body=core.ping(1), source=1)
    (answer,) = core.sent()
    assert answer.address == "10.0.0.1:7001"
    assert answer.body == Ack(9, raw_id(0), 0, core.digest)
    told = [news.node for news in answer.news]
    assert (raw_id(1) in told) == (belief in (SUSPECT, DEAD))
    assert (raw_id(3) in told) == (belief is not None), "a stranger gets a bare answer"


@pytest.mark.parametrize("belief", BELIEFS, ids=str)
def test_who_believes_otherwise_hears_the_latest_changes_again(belief: MemberState | None) -> None:
    core = core_that_believes(belief)
    core.hear(member(3), source=2)
    core.advance(2.0)
    assert core.swim.waiting == 0
    for digest, told in ((core.digest, False), (core.digest + 1, True)):
        core.hear(body=Ping(9, raw_id(1), raw_id(0), 0, digest), source=1)
        (answer,) = bodies(core.sent(), Ack)
        assert (raw_id(3) in [news.node for news in answer.news]) is (told and belief is not None)


@pytest.mark.parametrize("belief", BELIEFS, ids=str)
def test_a_request_is_relayed_for_members(belief: MemberState | None) -> None:
    core = core_that_believes(belief)
    core.hear(body=PingRequest(9, raw_id(1), raw_id(2)), source=1)
    sent = core.sent()
    if belief is None:
        assert sent == []
        assert core.swim.counters.refused == {"stranger": 1}
    else:
        (ping,) = sent
        assert ping.address == "10.0.0.2:7001"
        assert isinstance(ping.body, Ping)
        assert ping.body.target == raw_id(2)


@pytest.mark.parametrize("belief", BELIEFS, ids=str)
def test_members_may_compare_cargo(belief: MemberState | None) -> None:
    core = core_that_believes(belief)
    core.hear(body=Sync(raw_id(1), b"parts"), source=1)
    assert core.cargo.asked_about == ([] if belief is None else [b"parts"])
    assert core.swim.counters.refused.get("stranger", 0) == (belief is None)


@pytest.mark.parametrize("belief", BELIEFS, ids=str)
@pytest.mark.parametrize("body", [Ack(9, raw_id(1), 0, 0), Nack(9, raw_id(1)), Gossip()], ids=lambda body: str(body))
def test_what_nobody_waits_for_has_no_effect(belief: MemberState | None, body: Ack | Nack | Gossip) -> None:
    core = core_that_believes(belief)
    view = core.swim.view()
    core.hear(body=body, source=1)
    assert core.sent() == []
    assert core.swim.view() == view
    assert core.events == []


@pytest.mark.parametrize("belief", BELIEFS, ids=str)
def test_a_ping_for_somebody_else_is_not_answered(belief: MemberState | None) -> None:
    """Another process has the address of one that is gone: that one must not seem to live."""
    core = core_that_believes(belief)
    core.hear(body=core.ping(1, 7), source=1)
    assert core.sent() == []
    assert core.swim.counters.refused == {"misdirected": 1}
