"""When cargo differs, the nodes compare: not too often, and with an answer that is bounded.

Method: one core with a crate that says what it was asked.
"""

from __future__ import annotations

from msgspec import Raw

from kvstore.gossip.packet import Ack, Gossip, Ping, Sync
from tests.gossip.cores import Core, Crate, bodies, member, raw_id

ITEM = Raw(b"\x01")


def syncs(core: Core, body: Ping | Ack) -> int:
    core.hear(body=body)
    return len(bodies(core.sent(), Sync))


def ping(digest: int) -> Ping:
    return Ping(9, raw_id(1), raw_id(0), digest)


def test_another_digest_begins_a_comparison_once_a_second() -> None:
    core = Core(member(1), member(2), cargo=Crate(digest_value=5))
    assert syncs(core, ping(5)) == 0
    assert syncs(core, ping(6)) == 1
    assert syncs(core, Ack(9, raw_id(1), 6)) == 0
    core.advance(1.0)
    assert syncs(core, Ack(9, raw_id(1), 6)) == 1
    assert syncs(core, Ack(9, raw_id(2), 6)) == 1, "each peer has its own second"
    assert syncs(core, Ack(9, raw_id(3), 6)) == 0, "a stranger has none"
    assert syncs(core, Ack(9, raw_id(1), None)) == 0, "a relay says nothing of itself"
    assert core.swim.counters.syncs_sent == 3


def test_while_items_are_told_differences_are_expected() -> None:
    core = Core(member(1), cargo=Crate(digest_value=5))
    assert syncs(core, ping(6)) == 1
    core.cargo.waiting = [Raw(b"\xda" + bytes(5_000))]  # never fits, so it waits for ever
    core.advance(2.0)
    assert syncs(core, ping(6)) == 0
    core.advance(4.0)
    assert syncs(core, ping(6)) == 1


def test_the_answer_is_bounded_in_packets_and_frequency() -> None:
    core = Core(member(1), cargo=Crate(parts=[[ITEM] * 3] * 20))
    core.hear(body=Sync(raw_id(1), b"theirs"), source=44)
    sent = bodies(core.sent(), Gossip)
    assert [each.address for each in sent] == ["10.0.0.1:7001"] * 8, "to where the member is, whoever asked"
    assert [len(each.packet.cargo) for each in sent] == [3] * 8
    core.hear(body=Sync(raw_id(1), b"theirs"))
    assert core.sent() == []
    core.advance(0.6)
    core.hear(body=Sync(raw_id(1), b"theirs"))
    assert len(bodies(core.sent(), Gossip)) == 8
    assert core.cargo.asked_about == [b"theirs", b"theirs"]
    assert core.swim.counters.refused == {"sync too soon": 1}
