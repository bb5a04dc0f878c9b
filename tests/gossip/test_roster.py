"""Whose turn it is, and who is drawn: each once a round, whoever comes and goes meanwhile; each with the same chance.

Method: seeded rosters; who was probed in the round is kept beside them.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kvstore.gossip.roster import SMALL_RING, Roster
from tests.gossip.cores import DEAD, member, node_id


def roster_of(count: int, seed: int) -> Roster:
    roster = Roster(random.Random(seed))
    for number in range(count):
        roster.put(member(number), 0.0)
    for _ in range(count):  # the first order is shuffled at the end of its round
        roster.next_to_probe()
    return roster


def probed(roster: Roster) -> str:
    entry = roster.next_to_probe()
    assert entry is not None
    return entry.member.node


@pytest.mark.parametrize("seed", range(40))
def test_nobody_is_probed_twice_or_left_out_when_others_come_and_go(seed: int) -> None:
    roster = roster_of(12, seed)
    early = [probed(roster) for _ in range(5)]
    roster.put(member(50), 0.0)
    gone = early[0] if seed % 2 else next(node_id(n) for n in range(12) if node_id(n) not in early)
    roster.remove(gone)
    expected = {node_id(n) for n in range(12)} - set(early) - {gone}
    late = [probed(roster) for _ in range(len(expected))]
    if node_id(50) in late:  # its place was before the end of the round
        late.append(probed(roster))
    assert Counter(late) - Counter([node_id(50)]) == Counter(expected)


def test_a_newcomer_may_get_any_place() -> None:
    waits = set()
    for seed in range(200):
        roster = roster_of(5, seed)
        probed(roster)
        roster.put(member(50), 0.0)
        waits.add(next(turn for turn in range(20) if probed(roster) == node_id(50)))
    assert waits >= {0, 1, 2, 3, 4}
    assert max(waits) <= 10


@pytest.mark.parametrize("count", [SMALL_RING, SMALL_RING * 3])
def test_draws_are_different_ones_with_the_same_chance(count: int) -> None:
    roster = roster_of(count, 1)
    drawn: Counter[str] = Counter()
    for _ in range(2_000):
        some = roster.sample(3, lambda entry: entry.member.node != node_id(0))
        assert len({entry.member.node for entry in some}) == 3
        drawn.update(entry.member.node for entry in some)
    assert drawn[node_id(0)] == 0
    usual = 6_000 / (count - 1)
    assert all(usual * 0.6 < drawn[node_id(number)] < usual * 1.4 for number in range(1, count))


def test_a_draw_among_few_ends() -> None:
    roster = roster_of(SMALL_RING * 3, 1)
    assert roster.sample(3, lambda entry: False) == []
    assert roster.sample(5, lambda entry: entry.member.node == node_id(1)) in ([], [roster.get(node_id(1))])


def test_the_digest_is_of_who_lives_in_any_order() -> None:
    one, two = Roster(random.Random(1)), Roster(random.Random(2))
    empty = one.digest
    for number in range(5):
        one.put(member(number), 0.0)
        two.put(member(4 - number), 0.0)
    assert one.digest == two.digest != empty
    two.put(member(1, 6), 0.0)
    assert one.digest != two.digest
    one.put(member(1, 6), 0.0)
    one.put(member(2, 5, DEAD), 0.0)
    two.remove(node_id(2))
    assert one.digest == two.digest
    for number in (0, 1, 3, 4):
        two.remove(node_id(number))
    assert two.digest == empty


def test_since_is_of_the_state() -> None:
    roster = Roster(random.Random(1))
    entry = roster.put(member(1), 1.0)
    roster.put(member(1, 6), 2.0)
    assert entry.since == 1.0
    roster.put(member(1, 6, DEAD), 3.0)
    assert entry.since == 3.0
