"""What became of the elements of a set. Method: a table of small histories, each with one fault."""

from __future__ import annotations

import pytest

from jepsen.history import Event, History, Value, pair
from jepsen.set_check import count

Done = tuple[str, str, Value]  # outcome, f, value: one after the other, each of its own process


def _history(*done: Done) -> History:
    events = []
    for n, (outcome, f, value) in enumerate(done):
        events.append(Event(2 * n, n, "invoke", f, value=None if f == "read" else value))
        events.append(Event(2 * n + 1, n, outcome, f, value=value))
    return pair(events)


OK, FAIL, INFO = "ok", "fail", "info"


@pytest.mark.parametrize(
    ("name", "done"),
    [
        ("lost", [(OK, "add", 1), (OK, "read", ())]),
        ("lost", [(OK, "add", 1), (OK, "read", (1,)), (OK, "read", ())]),
        ("stale", [(OK, "add", 1), (OK, "read", ()), (OK, "read", (1,))]),
        ("duplicated", [(OK, "add", 1), (OK, "read", (1, 1))]),
        ("unexpected", [(OK, "read", (1,))]),
        ("risen", [(FAIL, "add", 1), (OK, "read", (1,))]),
        ("unread", [(OK, "read", ()), (OK, "add", 1)]),
        ("recovered", [(INFO, "add", 1), (OK, "read", (1,))]),
    ],
)
def test_each_fate_is_counted(name: str, done: list[Done]) -> None:
    counts = count(_history(*done))
    numbers = counts.numbers()
    fates = ("lost", "stale", "duplicated", "unexpected", "risen", "unread", "recovered")
    assert {fate: numbers[fate] for fate in fates} == {fate: int(fate == name) for fate in fates}
    assert counts.valid is (name in ("unread", "recovered"))
    lines = list(counts.lines())
    assert any(line == f"{name}: 1" for line in lines[1:]) is not counts.valid


def test_what_was_read_once_must_stay_though_its_addition_is_unknown() -> None:
    counts = count(_history((INFO, "add", 1), (OK, "read", (1,)), (OK, "read", ())))
    assert (counts.lost, counts.recovered) == ([(None, 1)], [(None, 1)])


def test_what_overlaps_a_read_may_be_missing_from_it() -> None:
    events = [
        Event(1, 0, "invoke", "add", value=1),
        Event(2, 1, "invoke", "read"),
        Event(3, 0, "ok", "add", value=1),
        Event(4, 1, "ok", "read", value=()),
        Event(5, 2, "invoke", "read"),
        Event(6, 2, "ok", "read", value=(1,)),
    ]
    assert count(pair(events)).valid


def test_keys_are_counted_apart_and_named() -> None:
    events = [
        Event(1, 0, "invoke", "add", "a", 1),
        Event(2, 0, "ok", "add", "a", 1),
        Event(3, 0, "invoke", "read", "b"),
        Event(4, 0, "ok", "read", "b", ()),
        Event(5, 0, "invoke", "read", "a"),
        Event(6, 0, "ok", "read", "a", ()),
    ]
    counts = count(pair(events))
    assert counts.lost == [("a", 1)]
    assert "lost: 1 of a" in list(counts.lines())


def test_many_are_named_in_part() -> None:
    counts = count(_history(*[(OK, "add", n) for n in range(30)], (OK, "read", ())))
    assert len(counts.lost) == 30
    assert list(counts.lines())[1].endswith(" and 20 more")
