"""One verdict of a whole history: split into parts, judge each, stop at what settles it, stay in bounds.

Invariant: valid is True only if every part has a legal order, False only if some part certainly has none. Whatever ran
           out of time or memory makes it UNKNOWN, unless another part has been found illegal.
Invariant: a verdict does not depend on the order of the parts; the smallest go first, since an illegal one ends it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field

from jepsen.history import History, Operation, Outcome
from jepsen.model import ILLEGAL, Bound, Model
from jepsen.search import Answer, Limits, Result, Search

SECONDS_MAX = 300.0
MEMORY_BYTES_MAX = 4 << 30
"""Defaults of the bounds of one check. The slowest recorded history needs 20 ms and a few MB."""


@dataclass(slots=True)
class Part:
    """The operations of one key (or of all, where a model cannot be split) and what was found."""

    key: Hashable
    operations: list[Operation]
    result: Result | None = None  # None: not looked at, since another part had settled the verdict

    @property
    def answer(self) -> Answer:
        return self.result.answer if self.result is not None else Answer.UNKNOWN


@dataclass(slots=True)
class Verdict:
    """`valid` is None when it is not known. `parts` has the illegal ones first, then those that are not known."""

    valid: bool | None
    parts: list[Part]
    operations: int
    seconds: float
    model: Model
    why: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def illegal(self) -> list[Part]:
        return [part for part in self.parts if part.answer is Answer.ILLEGAL]

    def summary(self) -> dict[str, object]:
        """What the command line says last."""
        valid: object = "unknown" if self.valid is None else self.valid
        return {"valid": valid, "ops": self.operations, "seconds": round(self.seconds, 6)}


def split(history: History, model: Model) -> list[Part]:
    """The parts, in the order of their first operations. What certainly did not happen is in none."""
    parts: dict[Hashable, Part] = {}
    for operation in history.operations:
        if operation.outcome is not Outcome.FAILED:
            key = model.partition(operation)
            parts.setdefault(key, Part(key, [])).operations.append(operation)
    return list(parts.values())


def check(
    history: History,
    model: Model,
    *,
    seconds_max: float = SECONDS_MAX,
    memory_bytes_max: int = MEMORY_BYTES_MAX,
    every_part: bool = False,
) -> Verdict:
    """Judges a history. With `every_part` all parts are judged even if one is illegal (for a report).

    Raises ModelError if an operation is none of the model's.
    """
    begin = time.monotonic()
    limits = Limits(deadline=begin + seconds_max, memory_bytes_max=memory_bytes_max)
    parts = split(history, model)
    for part in sorted(parts, key=lambda one: len(one.operations)):
        part.result = judge(model, part.operations, limits)
        if part.answer is Answer.ILLEGAL and not every_part:
            break
    worst = sorted(parts, key=lambda one: SEVERITY[one.answer])
    verdict = Verdict(
        valid=_valid([part.answer for part in parts]),
        parts=worst,
        operations=len(history.operations),
        seconds=time.monotonic() - begin,
        model=model,
    )
    if worst and worst[0].result is not None:
        verdict.why = worst[0].result.why
    return verdict


SEVERITY = {Answer.ILLEGAL: 0, Answer.UNKNOWN: 1, Answer.LEGAL: 2}


def judge(model: Model, operations: list[Operation], limits: Limits, *, trace: bool = False) -> Result:
    """One part. `trace` also keeps the longest partial orders, for a person to see where it ends."""
    bound = model.bind(operations)
    if bound.impossible is not None:
        if not trace:
            return Result(Answer.ILLEGAL, why=_said(bound))
        bound = Bound(model, bound.operations)  # search all the same: how far does it get?
    result = Search(bound, limits, trace=trace).run()
    if result.answer is Answer.LEGAL:
        _assert_legal(model, operations, result.order)
    return result


def _assert_legal(model: Model, operations: list[Operation], order: list[Operation]) -> None:
    """Looks at an order once more, without anything that the search took for granted: a pass is never a mistake."""
    originals = {one.index: one for one in operations}
    state = model.initial()
    latest_call = -1
    for one in order:
        original = originals.pop(one.index)
        assert original.ret > latest_call, "an operation lies after one that was called when it had returned"
        latest_call = max(latest_call, original.call)
        state = model.step(state, original)
        assert state is not ILLEGAL, "a step of the order is illegal"
    assert not any(one.known and not one.silent for one in originals.values()), "an answered operation is missing"


def _said(bound: Bound) -> str:
    assert bound.impossible is not None
    one = bound.impossible.operation
    return f"{one.f} of process {one.process} (line {one.line}): {bound.impossible.why}"


def _valid(answers: list[Answer]) -> bool | None:
    if Answer.ILLEGAL in answers:
        return False
    return None if Answer.UNKNOWN in answers else True
