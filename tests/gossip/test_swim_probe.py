"""How a probe goes, step by step, and what its outcome says about whom.

Method: one core, packets by hand, times from the settings.
"""

from __future__ import annotations

import pytest

from kvstore.gossip.packet import Ack, Nack, Ping, PingRequest
from tests.gossip.cores import ALIVE, DEAD, LEFT, SUSPECT, Core, Sent, bodies, member, node_id, raw_id


def probed(core: Core) -> Sent:
    """The next probe of the core, just begun."""
    sent: list[Sent] = []
    while not (pings := bodies(sent, Ping)):
        sent = core.advance(max(0.0, core.swim.next_at() - core.now))
    return pings[0]


def target_of(ping: Sent) -> int:
    return int(ping.body.target.hex(), 16)


def test_an_ack_ends_the_probe_and_tells_the_round_trip() -> None:
    core = Core(member(1))
    ping = probed(core)
    core.now += 0.03
    core.hear(body=core.ack(ping.body))
    (_, view) = core.swim.view()
    assert view.heard == core.now
    assert view.rtt == pytest.approx(0.03)
    assert bodies(core.advance(0.9), Ping) == [], "one probe a period"
    assert core.swim.counters.probes_failed == 0
    assert core.state(1) is ALIVE


def test_a_probe_that_nobody_answers_goes_through_all_its_steps() -> None:
    core = Core(*(member(number) for number in range(1, 6)))
    ping = probed(core)
    began, target = core.now, target_of(ping)
    steps = []
    while core.now < began + 1.0:
        at = core.swim.next_at()
        for each in core.advance(at - core.now):
            if isinstance(each.body, Ping) and target_of(each) == target:
                steps.append((core.now - began, "ping"))
            if isinstance(each.body, PingRequest):
                assert each.body.target == ping.body.target
                assert each.body.ticket == ping.body.ticket
                steps.append((core.now - began, each.address))
    assert [at for at, what in steps if what == "ping"] == pytest.approx([n / 8 for n in range(1, 8)], abs=0.01)
    asked = [step for step in steps if step[1] != "ping"]
    assert [at for at, _ in asked] == pytest.approx([0.5] * 3 + [0.625], abs=0.01)
    assert len({address for _, address in asked}) == 4, "all others, each once"
    (stream,) = core.streams
    assert (stream.node, stream.ticket) == (node_id(target), ping.body.ticket)
    assert core.state(target) is SUSPECT
    assert core.swim.counters.probes_failed == 1
    assert core.swim.health == 3, "no relay said a word: it is probably me"


@pytest.mark.parametrize("nacks", [0, 1, 2, 3])
def test_relays_that_say_no_clear_this_node(nacks: int) -> None:
    core = Core(*(member(number) for number in range(1, 5)))
    ping = probed(core)
    requests = bodies(core.advance(0.5), PingRequest)
    assert len(requests) == 3
    for request in requests[:nacks]:
        number = int(request.address.split(".")[3].split(":")[0])
        for _ in range(2):  # a packet may come twice
            core.hear(body=Nack(ping.body.ticket, raw_id(number)), source=number)
    core.hear(body=Nack(ping.body.ticket, raw_id(99)), source=99)  # was not asked
    core.advance(0.5)
    assert core.state(target_of(ping)) is SUSPECT
    assert core.swim.health == 3 - nacks


def test_without_others_a_failure_counts_one() -> None:
    core = Core(member(1))
    probed(core)
    core.advance(1.0)
    assert core.state(1) is SUSPECT
    assert core.swim.health == 1


def test_an_ack_through_a_relay_saves_the_member_but_is_no_round_trip() -> None:
    core = Core(*(member(number) for number in range(1, 5)))
    ping = probed(core)
    core.advance(0.6)
    core.hear(body=Ack(ping.body.ticket, ping.body.target, None, 0), source=9)
    core.advance(0.3)
    assert core.state(target_of(ping)) is ALIVE
    assert all(view.heard is None for view in core.swim.view())


def test_an_answer_over_tcp_saves_the_member() -> None:
    core = Core(member(1))
    probed(core)
    core.advance(0.5)
    (stream,) = core.streams
    core.swim.stream_answer(stream.ticket + 1, True, core.now)
    core.swim.stream_answer(stream.ticket, True, core.now)
    core.advance(0.45)
    assert core.state(1) is ALIVE
    assert core.swim.counters.stream_saved == 1


def test_an_answer_over_tcp_to_an_earlier_probe_saves_nobody() -> None:
    core = Core(member(1))
    probed(core)
    core.advance(0.5)
    core.swim.stream_answer(core.streams[0].ticket ^ 1, True, core.now)
    core.advance(0.5)
    assert core.state(1) is SUSPECT


def test_no_over_tcp_changes_nothing() -> None:
    core = Core(member(1))
    probed(core)
    core.advance(0.5)
    core.swim.stream_answer(core.streams[0].ticket, False, core.now)
    core.advance(0.5)
    assert core.state(1) is SUSPECT


@pytest.mark.parametrize("wrong", ["ticket", "node"])
def test_a_wrong_ack_saves_nobody(wrong: str) -> None:
    core = Core(member(1))
    ping = probed(core)
    ticket = ping.body.ticket ^ (wrong == "ticket")
    core.hear(body=Ack(ticket, raw_id(2 if wrong == "node" else 1), 0, 0))
    core.advance(1.0)
    assert core.state(1) is SUSPECT


def test_over_a_long_way_the_ping_is_not_repeated_before_its_answer_can_come() -> None:
    core = Core(member(1))
    for _ in range(2):
        ping = probed(core)
        again = [each.body.ticket for each in bodies(core.advance(0.2), Ping)]
        core.hear(body=core.ack(ping.body))
    assert again == []
    (_, view) = core.swim.view()
    assert view.rtt == pytest.approx(0.2)


def test_an_ack_to_a_repeated_ping_tells_its_own_round_trip() -> None:
    core = Core(member(1))
    probed(core)
    (_, second) = bodies(core.advance(0.26), Ping)
    core.now += 0.03
    core.hear(body=core.ack(second.body))
    (_, view) = core.swim.view()
    assert view.rtt == pytest.approx(0.04)


def test_a_failure_does_not_accuse_who_refuted_meanwhile() -> None:
    core = Core(member(1))
    probed(core)
    core.hear(member(1, 6))
    core.advance(1.0)
    assert core.swim.counters.probes_failed == 1
    assert core.state(1) is ALIVE


def test_poor_health_gives_more_time() -> None:
    core = Core(member(1))
    core.hear(member(0, 5, SUSPECT))  # refuted: health 1
    ping = probed(core)
    core.hear(body=core.ack(ping.body))
    assert core.swim.health == 0
    core.hear(member(0, core.swim.me.incarnation, SUSPECT))
    probed(core)
    assert core.advance(0.49) == [] or core.swim.counters.indirect == 0
    core.advance(0.5)
    assert core.swim.counters.indirect == 0, "the timeout is twice as long"
    core.advance(0.1)
    assert core.swim.counters.indirect == 1
    core.advance(0.5)
    assert core.state(1) is ALIVE
    core.advance(0.5)
    assert core.state(1) is SUSPECT


def test_the_round_takes_each_member_once_and_newcomers_soon() -> None:
    """Round robin (SWIM 4.3): between two probes of one member lie at most 2 n - 1 periods."""
    core = Core(*(member(number) for number in range(1, 11)))
    order = []
    for turn in range(30):
        ping = probed(core)
        order.append(target_of(ping))
        core.hear(body=core.ack(ping.body))
        if turn == 13:
            core.hear(member(11))
    assert sorted(order[:10]) == list(range(1, 11))
    assert order[:10] != sorted(order[:10])
    assert 11 in order[14:25]
    assert set(order[20:]) >= set(range(1, 11)) - set(order[10:20])


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_those_gone_are_not_probed(state: int) -> None:
    core = Core(member(1), member(2))
    core.hear(member(1, 5, DEAD if state == DEAD else LEFT))
    for _ in range(4):
        ping = probed(core)
        assert target_of(ping) == 2
        core.hear(body=core.ack(ping.body), source=2)


def test_a_suspect_is_told_by_its_probe() -> None:
    """Lifeguard's buddy system: the suspicion is in the very packet that the suspect has to answer."""
    core = Core(member(1))
    core.hear(member(1, 5, SUSPECT), accuser=2)
    core.advance(0.7)  # all usual telling is over
    ping = probed(core)
    assert [(news.node, news.state) for news in ping.news if news.node == raw_id(1)] == [(raw_id(1), SUSPECT)]


def test_the_dead_are_told_now_and_then() -> None:
    """So that two halves find each other again when the network is whole."""
    core = Core(member(1), member(2), answered=True)
    core.hear(member(1, 5, DEAD), source=2)
    core.advance(40.0)
    told = [each for each in core.advance(60.0) if isinstance(each.body, Ping) and target_of(each) == 1]
    assert 5 <= len(told) <= 7
    assert all(each.news[0].state is DEAD for each in told)


def relay(core: Core, target: int = 2) -> Sent:
    core.hear(body=PingRequest(9, raw_id(1), raw_id(target)), source=1)
    (ping,) = core.sent()
    return ping


def test_a_relay_passes_the_ack_on_once() -> None:
    core = Core(member(1), member(2))
    ping = relay(core)
    assert ping.body.ticket != 9
    core.hear(body=core.ack(ping.body), source=2)
    core.hear(body=core.ack(ping.body), source=2)
    (ack,) = bodies(core.sent(), Ack)
    assert (ack.address, ack.body) == ("10.0.0.1:7001", Ack(9, raw_id(2), None, 0))
    assert bodies(core.advance(1.0), Nack) == []


def test_a_relay_without_an_answer_says_so_in_time() -> None:
    core = Core(member(1), member(2))
    ping = relay(core)
    assert bodies(core.advance(0.39), Nack) == []
    (nack,) = bodies(core.advance(0.02), Nack)
    assert (nack.address, nack.body) == ("10.0.0.1:7001", Nack(9, raw_id(0)))
    core.hear(body=core.ack(ping.body), source=2)
    assert len(bodies(core.sent(), Ack)) == 1, "late is better than never"


def test_a_relay_that_does_not_know_the_target_says_no_at_once() -> None:
    core = Core(member(1))
    core.hear(body=PingRequest(9, raw_id(1), raw_id(77)), source=1)
    (nack,) = core.sent()
    assert nack.body == Nack(9, raw_id(0))


def test_relays_are_bounded_and_end() -> None:
    core = Core(member(1), member(2), relays_max=10)
    for ticket in range(15):
        core.hear(body=PingRequest(ticket, raw_id(1), raw_id(2)), source=1)
    assert core.swim.counters.refused == {"too many relays": 5}
    core.advance(1.1)
    core.hear(body=PingRequest(99, raw_id(1), raw_id(2)), source=1)
    assert core.swim.counters.refused == {"too many relays": 5}


def test_who_slept_blames_nobody() -> None:
    """A process that was stopped for 30 s: the answers to its probe wait in its socket, and so do refutations."""
    core = Core(member(1), member(2), member(3), member(4))
    core.hear(member(3, 5, SUSPECT), accuser=4)
    ping = probed(core)
    core.now += 30.0
    core.swim.tick(core.now)
    core.sent()
    assert core.swim.counters.late_ticks == 1
    assert core.swim.health == 1
    assert core.state(3) is SUSPECT
    core.hear(body=core.ack(ping.body))
    core.hear(member(3, 6))
    assert all(view.rtt is None for view in core.swim.view()), "no round trip takes 30 s"
    core.advance(0.5)
    assert {core.state(number) for number in range(1, 5)} == {ALIVE}


def test_who_leaves_probes_nobody() -> None:
    core = Core(member(1), member(2))
    core.swim.leave(core.now)
    assert bodies(core.advance(30.0), Ping) == []
    relay(core)


def test_nobody_to_probe() -> None:
    core = Core()
    assert core.advance(5.0) == []
