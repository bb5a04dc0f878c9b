"""Goal: records say who is a member, gossip says how each is; neither hides what the other one knows.

Method: a table of what is known of one node by both, and what is told of it.
"""

from __future__ import annotations

import pytest

from kvstore.gossip.events import MemberView
from kvstore.gossip.member import Member as GossipMember
from kvstore.gossip.member import MemberState
from kvstore.placement.census import census, count_states
from kvstore.placement.members import Member, MemberRecord, Records

NODE = "ab" * 16
ALIVE, SUSPECT, DEAD, LEFT = MemberState
BOUND = Records([Member(MemberRecord("n1", NODE, "old:1", {"zone": "old"}, "0.1"), 7)], {})
REMOVED = Records([], {NODE: "n1"})
NOBODY = Records([], {})


def view(state: MemberState, *, name: str = "n1", node: str = NODE, heard: float | None = 99.5) -> MemberView:
    return MemberView(GossipMember(node, name, "new:1", 1_000_000, state, {"zone": "a"}, "0.2"), 90.0, heard, 0.00025)


@pytest.mark.parametrize(
    ("records", "state", "told"),
    [
        (BOUND, ALIVE, "alive"),
        (BOUND, SUSPECT, "suspect"),
        (BOUND, DEAD, "dead"),
        (BOUND, LEFT, "left"),  # stopped, not removed
        (BOUND, None, "dead"),  # gossip has never heard of it
        (NOBODY, ALIVE, "alive"),  # it is just joining
        (NOBODY, SUSPECT, "suspect"),
        (NOBODY, DEAD, None),
        (NOBODY, LEFT, None),
        (NOBODY, None, None),
        (REMOVED, ALIVE, None),  # until it hears of it
        (REMOVED, LEFT, None),
        (None, ALIVE, "alive"),  # nobody could be asked: what gossip knows must do
        (None, DEAD, "dead"),
        (None, LEFT, "left"),
        (None, None, None),
    ],
)
def test_table(records: Records | None, state: MemberState | None, told: str | None) -> None:
    views = [] if state is None else [view(state)]
    rows = census(records, views, 100.0)
    assert [row.state for row in rows] == ([] if told is None else [told])
    assert sum(count_states(rows).values()) == len(rows)


def test_what_gossip_says_of_a_node_is_newer_than_its_record() -> None:
    (row,) = census(BOUND, [view(ALIVE)], 100.0)
    assert (row.address, row.labels, row.version) == ("new:1", {"zone": "a"}, "0.2")
    assert (row.round_trip_ms, row.state_age_ms, row.heard_age_ms) == (0.25, 10_000, 500)
    assert row.incarnation == 1_000_000


def test_without_gossip_the_record_is_told() -> None:
    (row,) = census(BOUND, [], 100.0)
    assert (row.name, row.node_id, row.address) == ("n1", NODE, "old:1")
    assert (row.labels, row.version) == ({"zone": "old"}, "0.1")
    assert row.incarnation is row.round_trip_ms is row.state_age_ms is row.heard_age_ms is None


def test_a_node_that_never_answered_was_not_heard() -> None:
    (row,) = census(BOUND, [view(ALIVE, heard=None)], 100.0)
    assert row.heard_age_ms is None


def test_two_nodes_of_one_name_are_both_told_in_a_certain_order() -> None:
    views = [view(ALIVE, node="cd" * 16), view(ALIVE), view(ALIVE, name="a", node="ff" * 16)]
    rows = census(BOUND, views, 100.0)
    assert [(row.name, row.node_id) for row in rows] == [("a", "ff" * 16), ("n1", NODE), ("n1", "cd" * 16)]
    assert count_states(rows) == {"alive": 3, "suspect": 0, "dead": 0, "left": 0}
