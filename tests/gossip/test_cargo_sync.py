"""When cargo differs, the nodes compare: not too often, and with an answer that is bounded.

Method: one core with a crate that says what it was asked.
"""

from __future__ import annotations

import pytest
from msgspec import Raw

from kvstore.gossip.packet import Ack, Gossip, Ping, Sync
from tests.gossip.cores import Core, Crate, bodies, member, raw_id

ITEM = Raw(b"\x01")


def syncs(core: Core, digest: int, sender: int = 1) -> int:
    """How many comparisons a ping with the digest begins."""
    core.hear(body=core.ping(sender, digest=digest))
    return len(bodies(core.sent(), Sync))


def test_another_digest_begins_a_comparison_once_a_second() -> None:
    core = Core(member(1), member(2), cargo=Crate(digest_value=5))
    assert syncs(core, 5) == 0
    assert syncs(core, 6) == 1
    assert syncs(core, 6) == 0
    assert syncs(core, 6, sender=2) == 1, "each peer has its own second"
    assert syncs(core, 6, sender=3) == 0, "a stranger has none"
    core.now += 1.0
    assert syncs(core, 6) == 1
    assert core.swim.counters.syncs_sent == 3


@pytest.mark.parametrize(("waited_for", "digest", "begins"), [(True, 6, 1), (True, 5, 0), (False, 6, 0)])
def test_an_ack_to_a_probe_does_so_too(waited_for: bool, digest: int, begins: int) -> None:
    core = Core(member(1), cargo=Crate(digest_value=5))
    (ping,) = bodies(core.advance(1.0), Ping)[:1]
    ticket = ping.body.ticket if waited_for else ping.body.ticket ^ 1
    core.hear(body=Ack(ticket, raw_id(1), digest, core.digest))
    assert len(bodies(core.sent(), Sync)) == begins


def test_while_items_are_told_differences_are_expected() -> None:
    core = Core(member(1), cargo=Crate(digest_value=5))
    assert syncs(core, 6) == 1
    core.cargo.waiting = [Raw(b"\xda" + bytes(5_000))]  # never fits, so it waits for ever
    core.advance(2.0)
    assert syncs(core, 6) == 0
    core.advance(4.0)
    assert syncs(core, 6) == 1


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


def test_old_comparisons_are_forgotten() -> None:
    core = Core(*(member(number) for number in range(1, 20)), cargo=Crate(digest_value=5), answered=True)
    for number in range(1, 20):
        core.hear(body=Sync(raw_id(number), b"theirs"), source=number)
        core.hear(body=core.ping(number, digest=6), source=number)
    assert len(core.swim._sync._asked) == len(core.swim._sync._answered) == 19
    core.cargo.digest_value = 0
    core.advance(130.0)
    assert len(core.swim._sync._asked) == len(core.swim._sync._answered) == 0
