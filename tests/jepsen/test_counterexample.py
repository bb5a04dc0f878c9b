"""What is shown of a violation is true, small, and all that is needed.

Method: made-up histories that are spoiled in one answer; the shrunk ones are judged by trying every order. Hand-written
ones for the words.
"""

from __future__ import annotations

import random

import pytest

from jepsen.counterexample import explain, since, states_of, upto
from jepsen.history import Event, Operation, Outcome, Value, pair
from jepsen.linearizability import check
from jepsen.model import ILLEGAL
from jepsen.models import model_named
from jepsen.narration import counterexample_lines, operation_text, value_text, verdict_lines
from jepsen.search import Answer
from tests.jepsen.brute import Recorder, linearizable
from tests.jepsen.test_against_brute_force import KINDS, made_up


@pytest.mark.parametrize("name", ["register", "unique", "few values", "tokens", "growing set", "queue", "lock"])
def test_the_core_is_illegal_alone_and_with_all_else_forgotten(name: str) -> None:
    kind = KINDS[name]
    model = model_named(kind.model)
    explained = 0
    for seed in range(400):
        history = made_up(kind, random.Random(f"core {name} {seed}"))
        verdict = check(history, model)
        for part in verdict.illegal:
            explained += 1
            found = explain(model, part)
            assert found.smallest
            assert not linearizable(model, found.core), seed
            core = {one.index for one in found.core}
            whole = since(upto(part.operations, found.cut), found.begin)
            models = model.starts(whole) if found.begin else [model]
            rest = [one if one.index in core else one.weakened() for one in whole]
            assert not any(linearizable(start, rest) for start in models), seed
            for left_out in core:
                less = [one.weakened() if one.index == left_out else one for one in rest]
                assert any(linearizable(start, less) for start in models), f"seed {seed}: {left_out} is not needed"
            assert linearizable(model, upto(part.operations, found.cut - 1)), "the cut is the first one"
    assert explained > 20


@pytest.mark.parametrize("name", ["register", "few values", "unique", "lock"])
def test_a_valid_history_without_its_past_is_valid_from_some_state(name: str) -> None:
    """So what is illegal from every state is illegal with any past: what the counterexamples rely on."""
    kind = KINDS[name]
    model = model_named(kind.model)
    looked = 0
    for seed in range(300):
        history = made_up(kind, random.Random(f"past {name} {seed}"))
        for part in check(history, model).parts:
            if part.answer is Answer.LEGAL:
                for position in range(history.events):
                    recent = since(part.operations, position)
                    assert any(linearizable(start, recent) for start in model.starts(recent)), (seed, position)
                    assert linearizable(model, upto(part.operations, position)), (seed, position)
                    looked += 1
    assert looked > 300


@pytest.mark.parametrize("name", ["register", "append", "queue"])
def test_the_longest_orders_are_orders_and_end_where_nothing_can_follow(name: str) -> None:
    kind = KINDS[name]
    model = model_named(kind.model)
    stuck = 0
    for seed in range(300):
        history = made_up(kind, random.Random(f"longest {name} {seed}"))
        for part in check(history, model).illegal:
            found = explain(model, part)
            for index, order in found.longest.items():
                assert index in {one.index for one in order}
                assert len(states_of(model, order)) == len(order)  # asserts that every step is legal
                for place, one in enumerate(order):
                    assert all(one.ret > other.call for other in order[:place]), "real time"
            assert all(model.step(found.state, one) is ILLEGAL for one in found.stuck)
            stuck += bool(found.stuck)
    assert stuck > 10


def _stale_read() -> list[Event]:
    steps: list[tuple[int, str, str, Value]] = [
        (0, "invoke", "write", 1),
        (0, "ok", "write", 1),
        (0, "invoke", "write", 2),
        (1, "invoke", "write", 9),
        (0, "ok", "write", 2),
        (0, "invoke", "read", None),
        (0, "ok", "read", 2),
        (2, "invoke", "read", None),
        (2, "ok", "read", 1),
        (1, "info", "write", 9),
        (0, "invoke", "write", 3),
        (0, "ok", "write", 3),
    ]
    return [Event(line, process, kind, f, "k", value) for line, (process, kind, f, value) in enumerate(steps, 1)]


def test_a_stale_read_in_words() -> None:
    history = pair(_stale_read())
    model = model_named("register")
    verdict = check(history, model)
    (part,) = verdict.illegal
    found = explain(model, part)
    assert [(one.f, one.input, one.output) for one in found.core] == [("read", None, 2), ("read", None, 1)]
    assert (found.begin, found.cut) == (5, 8)
    assert list(verdict_lines(history, verdict))[1].startswith("key k: not linearizable: ")
    words = "\n".join(counterexample_lines(model, found))
    assert "put in order, whatever was before and whatever became of all else (2 of 6):" in words
    assert "  line 8      process 2    read -> 1\n" in words
    assert "leads to 2; then" in words


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Operation(0, 0, "write", None, 3, 3, Outcome.OK, 0, 1), "write 3"),
        (Operation(0, 0, "read", None, None, None, Outcome.OK, 0, 1), "read -> nil"),
        (Operation(0, 0, "read", None, None, None, Outcome.OK, 0, 1, silent=True), "read -> no answer"),
        (Operation(0, 0, "read", None, None, (1, None), Outcome.OK, 0, 1), "read -> [1 nil]"),
        (Operation(0, 0, "write", None, 3, None, Outcome.UNKNOWN, 0, 1), "write 3 -> unknown"),
        (Operation(0, 0, "write", None, 3, 3, Outcome.FAILED, 0, 1), "write 3 -> failed"),
        (Operation(0, 0, "cas", None, (1, 2), (1, 2), Outcome.OK, 0, 1), "cas [1 2]"),
        (Operation(0, 0, "cas", None, (1, 2), (1, 2), Outcome.OK, 0, 1, refused=()), "cas [1 2] -> refused"),
        (Operation(0, 0, "cas", None, (1, 2), (1, 2), Outcome.OK, 0, 1, refused=(3,)), "cas [1 2] -> refused, saw 3"),
        (Operation(0, 0, "incr", None, 1, 5, Outcome.OK, 0, 1), "incr 1 -> 5"),
    ],
)
def test_an_operation_in_words(one: Operation, text: str) -> None:
    assert operation_text(one) == text


def test_a_long_value_keeps_both_ends() -> None:
    text = value_text("a" * 100 + "b" * 100)
    assert len(text) == 60
    assert text.startswith("aaa") and text.endswith("bbb")


def test_a_contradiction_in_the_middle_of_a_long_history_is_found_in_time() -> None:
    """Little must be judged of much: the last answers before the violation suffice, and near ones are tried first."""
    rng = random.Random(5)
    calls: list[tuple[str, Value, Value]] = []
    for number in range(3000):
        f = rng.choice(["get", "append", "append"])
        calls.append((f, "k", None if f == "get" else f"<{number}>"))
    history = Recorder(rng, clients=5, lost=0.002).record(calls, KINDS["append"].apply)
    gets = [one for one in history.operations if one.f == "get" and one.known and 1400 < one.index < 1600]
    gets[20].output = gets[0].output
    model = model_named("kv-append")
    (part,) = check(history, model).illegal
    found = explain(model, part)
    assert found.smallest
    assert len(found.core) == 2
    assert gets[20].index in {one.index for one in found.core}
    assert len(found.best) > 1000
