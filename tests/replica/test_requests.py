"""Requests: answered exactly once, by their deadline at the latest, and truly told whether they may have happened."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from kvstore.base.errors import Code
from kvstore.base.operations import Get, Put, encode
from kvstore.base.stream import LINEARIZABLE, Refused, Results
from kvstore.replica.requests import Answer, Deadlines, ReadRequest, WriteRequest
from kvstore.state.command import DecodedWrite, Write


def write_request(
    answers: list[Answer], *, frame_id: int = 1, deadline_ms: int = 1_000, size: int = 100
) -> WriteRequest:
    operations = [Put(0, b"k", b"v")]
    write = Write(version=1, session=b"", low=0, issued_at=0, operations=msgspec.Raw(encode(operations)))
    return WriteRequest(
        frame_id=frame_id,
        reply=answers.append,
        deadline_ms=deadline_ms,
        write=DecodedWrite(write, list(operations)),
        size=size,
    )


def read_request(
    answers: list[Answer], *, frame_id: int = 1, deadline_ms: int = 1_000, max_staleness_ms: int = LINEARIZABLE
) -> ReadRequest:
    return ReadRequest(
        frame_id=frame_id,
        reply=answers.append,
        deadline_ms=deadline_ms,
        version=1,
        max_staleness_ms=max_staleness_ms,
        operations=[Get(0, b"k")],
    )


@pytest.mark.parametrize(
    ("proposed", "code", "definite"), [(False, Code.UNAVAILABLE, True), (True, Code.TIMEOUT, False)]
)
def test_deadline_of_a_write_tells_whether_it_may_have_happened(proposed: bool, code: Code, definite: bool) -> None:
    answers: list[Answer] = []
    request = write_request(answers)
    request.proposed = proposed
    request.expire()
    (answer,) = answers
    assert isinstance(answer, Refused)
    assert (answer.code, answer.definite) == (code, definite)


def test_only_the_first_answer_counts() -> None:
    answers: list[Answer] = []
    request = read_request(answers)
    request.answer(Results(1, 0, [None]))
    request.expire()
    request.answer(Results(1, 0, [7]))
    assert answers == [Results(1, 0, [None])]


def test_expiry_is_never_early_and_at_most_a_slot_late() -> None:
    wheel = Deadlines.starting(10_000)
    expired: dict[int, int] = {}
    now = 10_000

    def expires(deadline: int) -> Callable[[Answer], None]:
        return lambda answer: expired.__setitem__(answer.id, now - deadline)

    rng = random.Random(1)
    for frame_id in range(500):
        deadline = now + rng.randint(1, 900)
        request = read_request([], frame_id=frame_id, deadline_ms=deadline)
        request.reply = expires(deadline)
        wheel.add(request)
        if frame_id % 5 == 0:
            now += rng.choice((7, 50, 130))
            wheel.sweep(now)
    while wheel.slots:
        now += 50
        wheel.sweep(now)
    assert len(expired) == 500
    assert min(expired.values()) >= 0
    assert max(expired.values()) <= 100 + 130  # two slots, and the longest pause between two sweeps


def test_long_pause_expires_everything_that_is_over_and_nothing_else() -> None:
    """A suspended machine: the sweep visits what there is, not each slot of a day."""
    wheel = Deadlines.starting(0)
    early: list[Answer] = []
    late: list[Answer] = []
    wheel.add(read_request(early, deadline_ms=500))
    wheel.add(read_request(late, deadline_ms=90_000_000))
    wheel.sweep(86_400_000)
    assert len(early) == 1
    assert not late
    wheel.sweep(90_000_000 + 100)
    assert len(late) == 1


def test_deadline_that_is_over_already_is_met_by_the_next_sweep() -> None:
    wheel = Deadlines.starting(0)
    wheel.sweep(10_000)
    answers: list[Answer] = []
    wheel.add(read_request(answers, deadline_ms=5_000))
    wheel.sweep(10_050)
    assert len(answers) == 1


def test_sweep_counts_the_unknown_outcomes() -> None:
    wheel = Deadlines.starting(0)
    answers: list[Answer] = []
    staged, proposed, answered = (write_request(answers) for _ in range(3))
    proposed.proposed = answered.proposed = True
    answered.answer(Results(1, 0, [1]))
    for request in (staged, proposed, answered):
        wheel.add(request)
    assert wheel.sweep(2_000) == 1
    assert len(answers) == 3


def test_released_write_holds_no_values() -> None:
    """Answered requests stay in the wheel until their deadline: they must be small."""
    request = write_request([])
    request.release()
    assert request.write.operations == []
