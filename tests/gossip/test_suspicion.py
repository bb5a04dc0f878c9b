"""How long a suspect has, by formula and by accusers.

Method: a table (the first rows are the formula of Lifeguard 4.2 worked out by hand), then one suspicion step by step.
"""

from __future__ import annotations

import pytest

from kvstore.gossip.settings import GossipSettings
from kvstore.gossip.suspicion import Suspicion, suspicion_seconds
from tests.gossip.cores import node_id


@pytest.mark.parametrize(
    ("confirmations", "expected", "seconds"),
    [
        (0, 3, 30.0),
        (1, 3, 16.0),  # log 2 / log 4 = half of the way
        (2, 3, 7.8),
        (3, 3, 2.0),
        (4, 3, 2.0),
        (0, 1, 30.0),
        (1, 1, 2.0),
        (0, 0, 2.0),  # nobody could confirm
    ],
)
def test_seconds_fall_with_the_logarithm(confirmations: int, expected: int, seconds: float) -> None:
    found = suspicion_seconds(seconds_min=2.0, seconds_max=30.0, confirmations=confirmations, expected=expected)
    assert found == pytest.approx(seconds, abs=0.02)


@pytest.mark.parametrize(
    ("members", "seconds_min", "seconds_max", "expected"),
    [(2, 4.0, 24.0, 0), (3, 4.0, 24.0, 0), (4, 4.0, 24.0, 2), (10, 4.0, 24.0, 2), (100, 8.0, 48.0, 2),
     (1_000, 12.0, 72.0, 2)],
)  # fmt: skip
def test_times_grow_with_the_cluster(members: int, seconds_min: float, seconds_max: float, expected: int) -> None:
    begun = Suspicion.begin(node_id(1), members=members, settings=GossipSettings(), now=7.0)
    assert begun.seconds_min == pytest.approx(seconds_min)
    assert begun.seconds_max == pytest.approx(seconds_max)
    assert begun.expected == expected
    assert begun.ends_at == pytest.approx(7.0 + (seconds_max if expected else seconds_min))


def test_each_accuser_counts_once_and_no_more_than_needed() -> None:
    suspicion = Suspicion.begin(node_id(1), members=10, settings=GossipSettings(), now=0.0)
    ends = [suspicion.ends_at]
    assert not suspicion.confirm(node_id(1))
    assert suspicion.confirm(node_id(2))
    ends.append(suspicion.ends_at)
    assert not suspicion.confirm(node_id(2))
    assert suspicion.confirm(node_id(3))
    ends.append(suspicion.ends_at)
    assert not suspicion.confirm(node_id(4))
    assert len(suspicion.accusers) == 3
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] == pytest.approx(4.0)


@pytest.mark.parametrize(("members", "times"), [(1, 4), (9, 4), (10, 8), (99, 8), (100, 12), (999, 12), (1_000, 16)])
def test_retransmit_limit(members: int, times: int) -> None:
    assert GossipSettings().retransmits(members) == times


@pytest.mark.parametrize(("members", "seconds"), [(1, 30), (32, 30), (33, 60), (64, 60), (65, 90), (1_024, 180)])
def test_push_pull_interval(members: int, seconds: int) -> None:
    assert GossipSettings().push_pull_interval(members) == seconds


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(AssertionError, match="nack"):
        GossipSettings(probe_timeout_seconds=0.6)
