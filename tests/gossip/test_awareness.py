"""The local health multiplier stays within its bounds and scales times by score + 1."""

from __future__ import annotations

import pytest

from kvstore.gossip.awareness import Awareness


@pytest.mark.parametrize(
    ("deltas", "score"),
    [([], 0), ([1], 1), ([-1], 0), ([3, -1], 2), ([20], 7), ([20, -1], 6), ([7, 1, 1, -8], 0), ([0, 0], 0)],
)
def test_score(deltas: list[int], score: int) -> None:
    awareness = Awareness(8)
    for delta in deltas:
        awareness.shift(delta)
    assert awareness.score == score
    assert awareness.scaled(0.5) == 0.5 * (score + 1)


def test_health_max_1_switches_it_off() -> None:
    awareness = Awareness(1)
    awareness.shift(5)
    assert awareness.scaled(2.0) == 2.0
