"""Every pruning keeps the verdict.

Goal: the search, with all that a model's `bind` drops, merges and narrows, says what trying every order says.
Method: tiny random histories of each model, recorded from a made-up object with concurrent clients and lost answers,
some with one answer changed; thousands of them, seeded. Both verdicts must occur often, or the test compares nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from jepsen.history import NEVER, History, Operation, Value
from jepsen.linearizability import check
from jepsen.model import ILLEGAL, Model
from jepsen.models import model_named
from jepsen.models.lock import HELD
from jepsen.search import Answer
from tests.jepsen.brute import DECLINED, READS, Recorder, Refused, linearizable, spoiled

CASES = 700
Call = tuple[str, Value, Value]


@dataclass
class Kind:
    """How histories of one model are made up."""

    call: Callable[[random.Random, int], Call]
    apply: Callable[[dict[Value, Value], str, Value, Value], Value]
    answers: Callable[[Operation], Sequence[Value]]
    model: str


def _register_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["read", "read", "write", "cas", "cas", "delete"])
    key = rng.choice(["a", "a", "a", "b"])
    if f == "cas":
        return f, key, (rng.randrange(3), rng.randrange(3))
    return f, key, rng.randrange(3) if f == "write" else None


def _unique_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["read", "write", "cas"])
    return f, "a", (rng.randrange(number + 1), number) if f == "cas" else number if f == "write" else None


def _few_values_call(rng: random.Random, number: int) -> Call:
    """Many ways to make the same value: nothing may be concluded from who wrote it."""
    f = rng.choice(["read", "write", "write", "cas"])
    return f, "a", (rng.randrange(2), rng.randrange(2)) if f == "cas" else rng.randrange(2) if f == "write" else None


def _register_apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    now = states.get(key)
    if f == "read":
        return now
    if f == "cas":
        assert isinstance(value, tuple)
        if now != value[0]:
            return Refused(now) if now == 1 else Refused()
        states[key] = value[1]
        return value
    states[key] = None if f == "delete" else value
    return value


def _register_answers(one: Operation) -> Sequence[Value]:
    return [0, 1, 2, 3, None] if one.f == "read" else []


def _append_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["get", "get", "append", "append", "put"])
    return f, rng.choice("aab"), None if f == "get" else rng.choice(["x", "y", str(number)])


def _token_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["get", "get", "append", "append", "append", "put"])
    return f, "a", None if f == "get" else f"{number}."


def _token_answers(one: Operation) -> Sequence[Value]:
    if one.f != "get":
        return []
    seen = str(one.output)
    return [seen[2:], seen[:-2], seen + "3.", seen[2:] + seen[:2], seen[:2] + seen[4:]]


def _append_apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    now = str(states.get(key, ""))
    if f == "get":
        return now
    states[key] = str(value) if f == "put" else now + str(value)
    return value


def _append_answers(one: Operation) -> Sequence[Value]:
    return ["", "x", "xy", str(one.output)[:-1], str(one.output) + "x"] if one.f == "get" else []


def _set_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["add", "add", "read", "remove", "contains"])
    return f, None, None if f == "read" else rng.randrange(4)


def _growing_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["add", "read"])
    return f, None, None if f == "read" else rng.choice([number, number, rng.randrange(3)])


def _set_apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    now = states.get(key, frozenset())
    assert isinstance(now, frozenset)
    if f == "read":
        return tuple(sorted(now, key=str))
    if f == "contains":
        return value in now
    states[key] = now | {value} if f == "add" else now - {value}
    return value


def _set_answers(one: Operation) -> Sequence[Value]:
    if one.f == "contains":
        return [True, False]
    if one.f != "read" or not isinstance(one.output, tuple):
        return []
    return [one.output[1:], (*one.output, 0), (*one.output, 1), one.output[:-1]]


def _counter_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["add", "read", "incr"])
    return f, None, None if f == "read" else rng.choice([1, 1, 2, 0])


def _up_and_down_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["add", "read", "incr"])
    return f, None, None if f == "read" else rng.choice([1, -1, 2, 0])


def _counter_apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    now = states.get(key, 0)
    assert isinstance(now, int)
    if f == "read":
        return now
    assert isinstance(value, int)
    states[key] = now + value
    return now + value if f == "incr" else value


def _counter_answers(one: Operation) -> Sequence[Value]:
    return [0, 1, 2, 3, 4] if one.f in ("read", "incr") else []


def _queue_call(rng: random.Random, number: int) -> Call:
    f = rng.choice(["enqueue", "dequeue"])
    return f, None, None if f == "dequeue" else rng.choice([number, number, number, 0])


def _queue_apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    now = states.get(key, ())
    assert isinstance(now, tuple)
    if f == "enqueue":
        states[key] = (*now, value)
        return value
    states[key] = now[1:]
    return now[0] if now else None


def _queue_answers(one: Operation) -> Sequence[Value]:
    return [None, 0, 1, 2, 3] if one.f == "dequeue" else []


def _lock_call(rng: random.Random, number: int) -> Call:
    return rng.choice(["acquire", "release"]), rng.choice("ab"), rng.choice([None, 1])


def _lock_apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    """A lock that gives every fourth caller what it asks for, whatever it holds."""
    count = states.get("count", 0)
    assert isinstance(count, int)
    states["count"] = count + 1
    owner = value or HELD
    if f == "acquire" and (states.get(key) is None or count % 4 == 3):
        states[key] = owner
        return value
    if f == "release" and (states.get(key) == owner or count % 4 == 3):
        states[key] = None
        return value
    return DECLINED


def _txn_call(rng: random.Random, number: int) -> Call:
    return (
        "txn",
        None,
        tuple((rng.choice(["read", "write"]), rng.choice("xy"), rng.randrange(3)) for _ in range(rng.randrange(1, 3))),
    )


def _txn_apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    assert isinstance(value, tuple)
    answers = []
    for kind, name, new in value:
        if kind == "write":
            states[name] = new
        answers.append((kind, name, states.get(name, 0)))
    return tuple(answers)


def _txn_answers(one: Operation) -> Sequence[Value]:
    assert isinstance(one.output, tuple)
    changed = tuple((kind, name, (value + 1) % 3 if kind == "read" else value) for kind, name, value in one.output)
    return [changed]


KINDS = {
    "register": Kind(_register_call, _register_apply, _register_answers, "register"),
    "few values": Kind(_few_values_call, _register_apply, _register_answers, "register"),
    "unique": Kind(_unique_call, _register_apply, _register_answers, "register"),
    "append": Kind(_append_call, _append_apply, _append_answers, "kv-append"),
    "tokens": Kind(_token_call, _append_apply, _token_answers, "kv-append"),
    "set": Kind(_set_call, _set_apply, _set_answers, "set"),
    "growing set": Kind(_growing_call, _set_apply, _set_answers, "set"),
    "counter": Kind(_counter_call, _counter_apply, _counter_answers, "counter"),
    "up and down": Kind(_up_and_down_call, _counter_apply, _counter_answers, "counter"),
    "queue": Kind(_queue_call, _queue_apply, _queue_answers, "queue"),
    "lock": Kind(_lock_call, _lock_apply, lambda _: [], "lock"),
    "transactions": Kind(_txn_call, _txn_apply, _txn_answers, "multi-register"),
}


def made_up(
    kind: Kind, rng: random.Random, *, calls: tuple[int, int] = (2, 8), clients: tuple[int, int] = (2, 5)
) -> History:
    """Ranges are [from, to)."""
    todo = [kind.call(rng, number) for number in range(rng.randrange(*calls))]
    recorder = Recorder(rng, clients=rng.randrange(*clients), lost=rng.choice([0.0, 0.1, 0.3]))
    history = recorder.record(todo, kind.apply)
    if rng.random() < 0.6:
        spoiled(rng, history, kind.answers)
    return history


@pytest.mark.parametrize("name", KINDS)
def test_the_search_agrees_with_trying_every_order(name: str) -> None:
    kind = KINDS[name]
    verdicts: Counter[bool] = Counter()
    for seed in range(CASES):
        history = made_up(kind, random.Random(f"{name} {seed}"))
        model = model_named(kind.model)
        expected = linearizable(model, history.operations)
        verdict = check(history, model)
        assert verdict.valid is expected, f"seed {seed}: {history.operations}"
        verdicts[expected] += 1
        if verdict.valid:
            _assert_orders_hold(model, history)
    assert min(verdicts[True], verdicts[False]) > CASES / 20, verdicts


def _assert_orders_hold(model: Model, history: History) -> None:
    """The linearization that the checker shows is one: legal in the plain model, in real time, nothing left out."""
    for part in check(history, model).parts:
        assert part.result is not None and part.result.answer is Answer.LEGAL
        order = part.result.order
        state = model.initial()
        for one in order:
            state = model.step(state, history.operations[one.index])
            assert state is not ILLEGAL
        places = {one.index: place for place, one in enumerate(order)}
        must = [one for one in part.operations if one.known and not one.silent]
        assert all(one.index in places for one in must)
        for one in must:
            assert all(places[one.index] < places[other.index] for other in order if other.call > one.ret)


class Plain(Model):
    """Nothing but initial, step and partition of another model: searched without any of its hints."""

    def __init__(self, model: Model) -> None:
        self.initial = model.initial  # type: ignore[method-assign]
        self.step = model.step  # type: ignore[method-assign]
        self.partition = model.partition  # type: ignore[method-assign]


@pytest.mark.parametrize("name", KINDS)
def test_the_hints_of_a_model_keep_the_verdict_of_longer_histories(name: str) -> None:
    """Too long for every order: the search without hints is the judge, itself held to every order above."""
    kind = KINDS[name]
    model = model_named(kind.model)
    verdicts: Counter[bool | None] = Counter()
    for seed in range(CASES // 10):
        history = made_up(kind, random.Random(f"long {name} {seed}"), calls=(10, 30), clients=(2, 7))
        _drop_lost_observers(history)
        expected = check(history, Plain(model), seconds_max=1.0).valid
        verdicts[expected] += 1
        if expected is not None:
            assert check(history, model).valid is expected, f"seed {seed}: {history.operations}"
    assert min(verdicts[True], verdicts[False]) > CASES / 200, verdicts
    assert verdicts[None] < CASES / 100, verdicts


def _drop_lost_observers(history: History) -> None:
    """A plain model cannot say that a read without an answer says nothing."""
    history.operations = [one for one in history.operations if one.known or one.f not in READS]


def _widened(rng: random.Random, history: History) -> None:
    one = rng.choice(history.operations)
    one.call = max(-1, one.call - rng.randrange(4))
    one.ret = one.ret if one.ret == NEVER else one.ret + rng.randrange(4)


def _without_an_observer(rng: random.Random, history: History, model: Model) -> None:
    observers = [one for one in history.operations if one.known and model.observer(one)]
    if observers:
        history.operations.remove(rng.choice(observers))


def _with_a_lost_answer(rng: random.Random, history: History) -> None:
    known = [one for one in history.operations if one.known and one.f != "txn"]
    if known:
        place = history.operations.index(rng.choice(known))
        history.operations[place] = history.operations[place].weakened()


@pytest.mark.parametrize("name", KINDS)
def test_knowing_less_never_makes_a_valid_history_invalid(name: str) -> None:
    """Widening an interval, dropping an observer, forgetting an answer, one after the other."""
    kind = KINDS[name]
    model = model_named(kind.model)
    checked = 0
    for seed in range(CASES // 2):
        rng = random.Random(f"less {name} {seed}")
        history = made_up(kind, rng)
        if check(history, model).valid is not True:
            continue
        for _ in range(4):
            change = rng.randrange(3)
            if change == 0 and len(history.operations) > 1:
                _widened(rng, history)
            elif change == 1:
                _without_an_observer(rng, history, model)
            else:
                _with_a_lost_answer(rng, history)
            assert check(history, model).valid is True, f"seed {seed} after change {change}: {history.operations}"
            checked += 1
    assert checked > CASES / 4
