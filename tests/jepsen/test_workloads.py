"""Goal: what a workload judges for itself is found when it is wrong, and not when it is right. Method: histories made
by hand, each with one lie; the same without it is valid."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from jepsen.history import Event, History, freeze, pair
from jepsen.workloads import WORKLOADS
from jepsen.workloads.bank import ACCOUNTS, BALANCE

MS = 1_000_000


def history(*steps: tuple[Any, ...]) -> History:
    """Each step: (process, type, f, key, value[, ms])."""
    return pair(_events(steps))


def _events(steps: Iterable[tuple[Any, ...]]) -> Iterable[Event]:
    for line, (process, kind, f, key, value, *ms) in enumerate(steps, start=1):
        time = (ms[0] if ms else line) * MS
        yield Event(line=line, process=process, type=kind, f=f, key=key, value=freeze(value), time=time)


def judge(name: str, *steps: tuple[Any, ...]) -> tuple[bool | None, list[str]]:
    judgement = WORKLOADS[name](random.Random(1)).judge(history(*steps))
    return judgement.valid, judgement.lines


def put(process: int, value: int, kind: str = "ok") -> list[tuple[Any, ...]]:
    return [(process, "invoke", "put", None, value), (process, kind, "put", None, value)]


def scan(found: list[int], direction: str = "forward") -> list[tuple[Any, ...]]:
    return [(9, "invoke", "scan", None, direction), (9, "ok", "scan", None, found)]


@pytest.mark.parametrize(
    ("found", "direction", "complaint"),
    [
        ([1, 2, 3], "forward", None),
        ([3, 2, 1], "reverse", None),
        ([1, 3], "forward", "lacks 1 keys, 2"),
        ([1, 2, 2, 3], "forward", "a key twice"),
        ([1, 3, 2], "forward", "out of order"),
        ([3, 1, 2], "reverse", "out of order"),
        ([1, 2, 3, 4], "forward", "nobody had put: 4"),
    ],
)
def test_scans(found: list[int], direction: str, complaint: str | None) -> None:
    valid, lines = judge("scan", *put(1, 1), *put(1, 3), *put(1, 2), *scan(found, direction), *put(1, 4))
    assert (valid, [complaint in line for line in lines]) == ((True, []) if complaint is None else (False, [True]))


def test_a_scan_may_or_may_not_see_what_was_put_meanwhile_or_has_an_unknown_outcome() -> None:
    for found in ([], [1], [7], [1, 7]):
        valid, lines = judge(
            "scan",
            *put(2, 7, "info"),
            (1, "invoke", "put", None, 1),
            (9, "invoke", "scan", None, "forward"),
            (1, "ok", "put", None, 1),
            (9, "ok", "scan", None, found),
        )
        assert valid, lines


def test_a_bank_whose_sum_changes_is_robbed() -> None:
    whole = [BALANCE] * ACCOUNTS
    for balances, valid in (
        (whole, True),
        ([BALANCE - 5, BALANCE + 5, *whole[2:]], True),
        ([BALANCE - 5, *whole[1:]], False),
        ([-1, 2 * BALANCE + 1, *whole[2:]], False),
    ):
        assert judge("bank", (1, "invoke", "read", None, None), (1, "ok", "read", None, balances))[0] is valid


def test_an_operation_that_is_sent_again_has_one_answer_and_one_effect() -> None:
    once = [(1, "invoke", "put", 0, [1, 3]), (1, "ok", "put", 0, [1, [5, 5, 5]])]
    unknown = [(2, "invoke", "put", 0, [2, 2]), (2, "info", "put", 0, [2, 2])]

    def read(changes: int) -> list[tuple[Any, ...]]:
        return [(3, "invoke", "read", 0, None), (3, "ok", "read", 0, changes)]

    assert judge("idempotence", *once, *read(1))[0]
    assert judge("idempotence", *once, *unknown, *read(1))[0]
    assert judge("idempotence", *once, *unknown, *read(2))[0]
    assert not judge("idempotence", *once, *read(2))[0]
    assert not judge("idempotence", *once, *unknown, *read(0))[0]
    answers = (1, "ok", "put", 0, [1, [5, 6]])
    assert not judge("idempotence", once[0], answers, *read(1))[0]


def write(value: int, begin: int, end: int, kind: str = "ok") -> list[tuple[Any, ...]]:
    return [(1, "invoke", "write", 0, value, begin), (1, kind, "write", 0, value, end)]


def stale(value: int, revision: int, age: float, begin: int, end: int, asked: float = 0.5) -> list[tuple[Any, ...]]:
    return [(2, "invoke", "read", 0, asked, begin), (2, "ok", "read", 0, [value, revision, age], end)]


@pytest.mark.parametrize(
    ("reads", "complaint"),
    [
        (stale(2, 20, 0.0, 3_000, 3_001), None),
        (stale(1, 10, 0.4, 1_400, 1_401), None),  # the write of 2 returned 300 ms before
        (stale(1, 10, 0.4, 1_700, 1_701), "misses 2"),
        (stale(0, 0, 0.4, 3_000, 3_001), "misses"),
        (stale(2, 20, 0.6, 3_000, 3_001), "says itself"),
        (stale(2, 20, 0.6, 3_000, 3_200), None),  # it asked the leader first, which took 200 ms
        (stale(9, 20, 0.1, 3_000, 3_001), "nobody wrote: 9"),
        ([*stale(2, 20, 0.1, 3_000, 3_001), *stale(1, 20, 0.1, 3_002, 3_003, 5.0)], "revision 20"),
        ([*stale(2, 20, 0.1, 3_000, 3_001), *stale(2, 21, 0.1, 3_002, 3_003)], "at revisions 20 and 21"),
    ],
)
def test_stale_reads(reads: list[tuple[Any, ...]], complaint: str | None) -> None:
    valid, lines = judge("stale", *write(1, 0, 100), *write(2, 1_000, 1_100), *reads)
    assert valid is (complaint is None), lines
    assert complaint is None or any(complaint in line for line in lines), lines


def test_the_same_seed_asks_for_the_same() -> None:
    for name, make in WORKLOADS.items():
        one, other, third = (make(random.Random(seed)) for seed in (5, 5, 6))
        first = [one.next() for _ in range(200)]
        assert first == [other.next() for _ in range(200)], name
        assert first != [third.next() for _ in range(200)], name


def test_a_set_that_loses_an_element_is_told_in_counts() -> None:
    def add(element: int) -> list[tuple[Any, ...]]:
        return [(1, "invoke", "add", 0, element), (1, "ok", "add", 0, element)]

    def read(*elements: int) -> list[tuple[Any, ...]]:
        return [(2, "invoke", "read", 0, None), (2, "ok", "read", 0, list(elements))]

    assert judge("set", *add(1), *add(2), *read(1, 2)) == (True, [])
    valid, lines = judge("set", *add(1), *add(2), *read(2))
    assert valid is False
    assert any("lost: 1" in line for line in lines), lines


def transaction(process: int, *steps: list[Any]) -> list[tuple[Any, ...]]:
    asked = [[f, key, None if f == "r" else value] for f, key, value in steps]
    return [(process, "invoke", "txn", None, asked), (process, "ok", "txn", None, list(steps))]


def test_transactions_are_judged_by_their_cycles() -> None:
    first = transaction(1, ["append", "x", 1], ["append", "y", 2])
    whole = transaction(2, ["r", "x", [1]], ["r", "y", [2]])
    assert judge("append", *first, *whole) == (True, [])
    half = transaction(2, ["r", "x", [1]], ["r", "y", []])
    valid, lines = judge("append", *first, *half, *whole)
    assert valid is False
    assert any(line.startswith("G-single") for line in lines), lines


def test_what_is_complained_of_is_shown() -> None:
    judgement = WORKLOADS["scan"](random.Random(1)).judge(history(*put(1, 1), *scan([])))
    assert judgement.verdict is not None
    assert [len(example.core) for example in judgement.examples] == [2]  # the put, and the scan that lacks it
    assert not judgement.verdict.valid
