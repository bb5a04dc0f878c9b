"""Operations, verdicts and counterexamples in words, for a terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterator

from jepsen.counterexample import Counterexample
from jepsen.history import History, Operation, Outcome, Value
from jepsen.linearizability import Verdict
from jepsen.model import Model
from jepsen.search import Answer

LINES_MAX = 24
"""Operations of a counterexample that are listed; the report has all."""
TEXT_MAX = 60
ASKING = ("read", "get", "dequeue")
"""Operations whose answer is told even if it is nothing."""


def value_text(value: Value) -> str:
    """A value as JSON would write it, roughly; long ones are cut in the middle, since both ends tell most."""
    if value is None:
        return "nil"
    if isinstance(value, tuple):
        text = "[" + " ".join(value_text(one) for one in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX // 2 - 1]}…{text[-TEXT_MAX // 2 :]}"


def operation_text(one: Operation) -> str:
    """`write 3`, `read -> 3`, `cas [1 2] -> refused, saw 3`, `write 3 -> unknown`."""
    if one.f == "txn":
        return _transaction_text(one)
    asked = f"{one.f} {value_text(one.input)}" if one.input is not None else one.f
    if one.outcome is Outcome.UNKNOWN:
        return f"{asked} -> unknown"
    if one.outcome is Outcome.FAILED:
        return f"{asked} -> failed"
    if one.refused is not None:
        return f"{asked} -> refused" + (f", saw {value_text(one.refused[0])}" if one.refused else "")
    if one.silent:
        return f"{asked} -> no answer"
    if one.output == one.input and (one.input is not None or one.f not in ASKING):
        return asked
    return f"{asked} -> {value_text(one.output)}"


def _transaction_text(one: Operation) -> str:
    """`r x [1 2] · append y 3`: the steps as they were answered, or else as they were asked."""
    steps = one.output if one.known else one.input
    if not isinstance(steps, tuple):
        return f"txn {value_text(steps)}"
    words = (" ".join(map(value_text, step)) if isinstance(step, tuple) else value_text(step) for step in steps)
    ending = {Outcome.OK: "", Outcome.UNKNOWN: " -> unknown", Outcome.FAILED: " -> failed"}[one.outcome]
    return " · ".join(words) + ending


def verdict_lines(history: History, verdict: Verdict) -> Iterator[str]:
    parts = len(verdict.parts)
    split = "" if parts < 2 else f" in {parts} parts"
    yield f"{len(history.operations)} operations of a {verdict.model.name}{split}, {verdict.seconds:.3f} s"
    if history.truncated:
        yield "the last line of the file was cut off and is left out"
    if verdict.valid:
        yield verdict.model.promise
        return
    for part in verdict.parts:
        if part.answer is not Answer.LEGAL and part.result is not None:
            name = "" if part.key is None else f"key {value_text(part.key)}: "
            word = f"not {verdict.model.promise}" if part.answer is Answer.ILLEGAL else "not known"
            yield f"{name}{word}: {part.result.why}"


def counterexample_lines(model: Model, found: Counterexample) -> Iterator[str]:
    operations = len(found.part.operations)
    least = "the smallest history" if found.smallest else "a smaller history"
    past = "whatever was before and " if found.begin else ""
    yield f"{least} that cannot be put in order, {past}whatever became of all else ({len(found.core)} of {operations}):"
    yield from _list(found.core)
    if found.best or found.stuck:
        yield f"the longest order has {len(found.best)} operations and leads to {model.describe(found.state)}; then"
        yield from _list(found.stuck)
        yield "  would have to follow, and cannot"


def _list(operations: list[Operation]) -> Iterator[str]:
    """All of few, or both ends of many: the last ones are where it breaks."""
    left_out = len(operations) - LINES_MAX
    for number, one in enumerate(operations):
        if left_out <= 0 or not LINES_MAX // 2 <= number < LINES_MAX // 2 + left_out:
            yield f"  line {one.line:<6} process {one.process:<4} {operation_text(one)}"
        elif number == LINES_MAX // 2:
            yield f"  ... {left_out} more ..."
