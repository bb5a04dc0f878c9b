"""What is noticed of other nodes, and in which order campaigns begin: tables, no hosts."""

from __future__ import annotations

import random

import pytest

from kvstore.replica.haste import AGAIN_MAX, FIRST_MS_MAX, FIRST_MS_MIN, Campaign, Haste, Reason
from kvstore.replica.liveness import Liveness, Sight

UP, GONE, HEARD, QUIET = "up", "gone", "heard", "quiet"


class Watched:
    """One node, as another one sees it."""

    def __init__(self) -> None:
        self.liveness = Liveness(silent_ticks_max=3)
        self.count = 0

    def happens(self, event: str, boot: str = "1") -> list[Sight]:
        if event == UP:
            return [self.liveness.on_up("n", boot)]
        if event == GONE:
            self.liveness.on_gone("n")
            return []
        self.count += event == HEARD
        return [sight for _, sight in self.liveness.tick(lambda _: self.count)]


@pytest.mark.parametrize(
    ("events", "seen", "alive"),
    [
        ([QUIET], [], False),
        ([UP], [Sight.REPLACED], True),
        ([UP, HEARD, QUIET, QUIET], [Sight.REPLACED], True),
        ([UP, HEARD, QUIET, QUIET, QUIET], [Sight.REPLACED, Sight.SILENT], False),
        ([UP, HEARD, QUIET, QUIET, QUIET, QUIET, QUIET, QUIET], [Sight.REPLACED, Sight.SILENT], False),
        ([UP, HEARD, QUIET, QUIET, HEARD, QUIET, QUIET], [Sight.REPLACED], True),
        ([UP, HEARD, QUIET, QUIET, QUIET, HEARD], [Sight.REPLACED, Sight.SILENT, Sight.BACK], True),
        ([UP, HEARD, QUIET, QUIET, QUIET, UP], [Sight.REPLACED, Sight.SILENT, Sight.BACK], True),
        ([UP, UP], [Sight.REPLACED, Sight.SAME], True),
        ([UP, GONE], [Sight.REPLACED], False),
        ([UP, GONE, HEARD, HEARD], [Sight.REPLACED], False),  # what was under way when it died
        ([UP, GONE, UP], [Sight.REPLACED, Sight.BACK], True),
        ([UP, HEARD, QUIET, QUIET, UP, QUIET, QUIET], [Sight.REPLACED, Sight.SAME], True),
    ],
)
def test_sights(events: list[str], seen: list[Sight], alive: bool) -> None:
    node = Watched()
    assert [sight for event in events for sight in node.happens(event)] == seen
    assert node.liveness.is_alive("n") is alive


def test_another_boot_id_is_another_process_however_it_was_seen_before() -> None:
    for between in ([], [GONE], [HEARD, QUIET, QUIET, QUIET]):
        node = Watched()
        node.happens(UP, "1")
        for event in between:
            node.happens(event)
        assert node.happens(UP, "2") == [Sight.REPLACED]


def test_only_the_first_evidence_is_news() -> None:
    liveness = Liveness(silent_ticks_max=3)
    assert liveness.on_gone("n")
    assert not liveness.on_gone("n")
    liveness.on_up("n", "1")
    assert liveness.on_gone("n")


def drain(haste: Haste, now: float) -> list[Campaign]:
    found = []
    while (campaign := haste.pop_due(now)) is not None:
        found.append(campaign)
    return found


def test_who_goes_first_and_who_next() -> None:
    haste = Haste(random.Random(1))
    haste.on_evidence([(group, group % 2) for group in range(100)], now=5.0)
    assert haste.next_due is not None
    assert haste.next_due >= 5.0 + FIRST_MS_MIN / 1_000
    first = drain(haste, 5.0 + FIRST_MS_MAX / 1_000)
    assert sorted(campaign.group for campaign in first) == list(range(0, 100, 2))
    assert not drain(haste, 5.0 + (FIRST_MS_MAX + 50) / 1_000), "the others give them the time that so many need"
    assert sorted(campaign.group for campaign in drain(haste, 5.3)) == list(range(1, 100, 2))
    assert haste.next_due is None


def test_one_group_waits_no_longer_than_it_must() -> None:
    haste = Haste(random.Random(1))
    haste.on_evidence([(7, 1)], now=0.0)
    assert drain(haste, 0.1) == [Campaign(7, Reason.EVIDENCE)]


def test_it_is_tried_again_and_not_for_ever() -> None:
    haste = Haste(random.Random(1))
    haste.on_founded([3], now=0.0)
    (campaign,) = drain(haste, 0.0)
    haste.on_undecided(campaign, now=0.0)
    assert haste.next_due is None, "the founding's second look is the election timeout"
    haste.on_evidence([(3, 0)], now=0.0)
    (campaign,) = drain(haste, 1.0)
    for attempt in range(AGAIN_MAX):
        haste.on_undecided(campaign, now=1.0)
        assert not drain(haste, 1.05)
        (campaign,) = drain(haste, 2.0)
        assert campaign == Campaign(3, Reason.AGAIN, attempt + 1)
    haste.on_undecided(campaign, now=1.0)
    assert haste.next_due is None
