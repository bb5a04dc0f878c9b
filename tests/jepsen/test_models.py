"""The objects one by one: what each answer means, and how a model of one's own is added.

Method: tables of steps; short histories written by hand.
"""

from __future__ import annotations

import pytest

from jepsen.history import Event, History, Operation, Outcome, Value, pair
from jepsen.linearizability import check
from jepsen.model import ILLEGAL, Model, ModelError, State
from jepsen.models import MODELS, guess, model_named
from jepsen.models.lock import HELD
from jepsen.models.register import OTHER


def operation(
    f: str, value: Value = None, output: Value = None, *, known: bool = True, refused: tuple[Value, ...] | None = None
) -> Operation:
    outcome = Outcome.OK if known else Outcome.UNKNOWN
    return Operation(0, 0, f, None, value, output, outcome, call=0, ret=1, refused=refused)


@pytest.mark.parametrize(
    ("name", "state", "one", "after"),
    [
        ("register", 1, operation("read", output=1), 1),
        ("register", 1, operation("read", output=2), ILLEGAL),
        ("register", None, operation("read", output=None), None),
        ("register", 1, operation("write", 2), 2),
        ("register", 1, operation("delete"), None),
        ("register", 1, operation("cas", (1, 2)), 2),
        ("register", 3, operation("cas", (1, 2)), ILLEGAL),
        ("register", 1, operation("cas", (1, 2), known=False), 2),
        ("register", 3, operation("cas", (1, 2), known=False), ILLEGAL),
        ("register", 3, operation("cas", (1, 2), refused=()), 3),
        ("register", 1, operation("cas", (1, 2), refused=()), ILLEGAL),
        ("register", 3, operation("cas", (1, 2), refused=(3,)), 3),
        ("register", 4, operation("cas", (1, 2), refused=(3,)), ILLEGAL),
        ("register", 1, operation("cas", (1, 2), refused=(1,)), ILLEGAL),
        ("kv-append", "a", operation("append", "b"), "ab"),
        ("kv-append", "a", operation("put", "b"), "b"),
        ("kv-append", "a", operation("get", output="a"), "a"),
        ("kv-append", "a", operation("get", output="b"), ILLEGAL),
        ("set", frozenset({1}), operation("add", 2), frozenset({1, 2})),
        ("set", frozenset({1}), operation("remove", 1), frozenset()),
        ("set", frozenset({1}), operation("contains", 1, True), frozenset({1})),
        ("set", frozenset({1}), operation("contains", 2, True), ILLEGAL),
        ("set", frozenset({1, 2}), operation("read", output=(2, 1)), frozenset({1, 2})),
        ("set", frozenset({1}), operation("read", output=()), ILLEGAL),
        ("counter", 3, operation("add", 2), 5),
        ("counter", 3, operation("incr", 2, 5), 5),
        ("counter", 3, operation("incr", 2, 6), ILLEGAL),
        ("counter", 3, operation("incr", 2, known=False), 5),
        ("counter", 3, operation("read", output=4), ILLEGAL),
        ("queue", (1,), operation("enqueue", 2), (1, 2)),
        ("queue", (1, 2), operation("dequeue", output=1), (2,)),
        ("queue", (1, 2), operation("dequeue", output=2), ILLEGAL),
        ("queue", (), operation("dequeue", output=None), ()),
        ("queue", (1,), operation("dequeue", output=None), ILLEGAL),
        ("queue", (1,), operation("dequeue", known=False), ()),
        ("lock", None, operation("acquire"), HELD),
        ("lock", HELD, operation("acquire"), ILLEGAL),
        ("lock", HELD, operation("release"), None),
        ("lock", None, operation("release"), ILLEGAL),
        ("lock", "a", operation("release", "a"), None),
        ("lock", "a", operation("release", "b"), ILLEGAL),
        ("multi-register", (), operation("txn", (("read", "x", 0),), (("read", "x", 0),)), ()),
        ("multi-register", (("x", 1),), operation("txn", (), (("r", "x", 1), ("w", "y", 2))), (("x", 1), ("y", 2))),
        ("multi-register", (("x", 1),), operation("txn", (), (("write", "x", 2), ("read", "x", 1))), ILLEGAL),
    ],
)
def test_a_step(name: str, state: State, one: Operation, after: State) -> None:
    result = model_named(name, 0 if name == "multi-register" else None).step(state, one)
    assert result is ILLEGAL if after is ILLEGAL else result == after


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("register", operation("append", 1)),
        ("register", operation("cas", 1)),
        ("kv-append", operation("append", 1)),
        ("kv-append", operation("read")),
        ("set", operation("write", 1)),
        ("set", operation("read", output=3)),
        ("counter", operation("add", "x")),
        ("queue", operation("read")),
        ("lock", operation("read")),
        ("multi-register", operation("txn", (1,), (1,))),
        ("multi-register", operation("read")),
    ],
)
def test_what_is_not_of_the_model_is_refused(name: str, one: Operation) -> None:
    model = model_named(name)
    with pytest.raises(ModelError):
        model.step(model.initial(), one)
    with pytest.raises(ModelError):
        check(History(operations=[one]), model)


@pytest.mark.parametrize(
    ("used", "name"),
    [
        ({"read", "write"}, "register"),
        ({"read"}, "register"),
        ({"cas", "delete"}, "register"),
        ({"get", "append"}, "kv-append"),
        ({"add", "read"}, "set"),
        ({"add", "contains", "remove"}, "set"),
        ({"incr", "read"}, "counter"),
        ({"enqueue"}, "queue"),
        ({"acquire", "release"}, "lock"),
        ({"txn"}, "multi-register"),
    ],
)
def test_the_model_is_guessed_from_what_is_called(used: set[str], name: str) -> None:
    assert guess(History(operations=[operation(f) for f in sorted(used)])) == name


def test_a_counter_is_told_from_a_set_by_its_reads() -> None:
    assert guess(History(operations=[operation("add", 1), operation("read", output=1)])) == "counter"
    assert guess(History(operations=[operation("add", 1), operation("read", output=(1,))])) == "set"
    with pytest.raises(ValueError, match="no model knows all of"):
        guess(History(operations=[operation("read"), operation("enqueue", 1)]))


def test_every_model_is_reachable_by_its_own_name() -> None:
    assert {name: model_named(name).name for name in MODELS} == {name: name for name in MODELS}
    assert model_named("mutex").name == "lock"
    with pytest.raises(KeyError):
        model_named("heap")
    assert repr(OTHER) != repr(ILLEGAL)


class Stack(Model):
    """A model as anybody would add one: two methods. push value; pop -> value, or None when it was empty."""

    name = "stack"

    def initial(self) -> State:
        return ()

    def step(self, state: State, operation: Operation) -> State:
        assert isinstance(state, tuple)
        if operation.f == "push":
            return (*state, operation.input)
        if not operation.known:
            return state[:-1]
        top = state[-1] if state else None
        return state[:-1] if top == operation.output else ILLEGAL


def _history(*steps: tuple[int, str, str, Value]) -> History:
    return pair(Event(line, process, kind, f, value=value) for line, (process, kind, f, value) in enumerate(steps, 1))


def test_a_model_of_ones_own_needs_two_methods() -> None:
    overlapping = (
        (0, "invoke", "push", 1),
        (1, "invoke", "push", 2),
        (0, "ok", "push", 1),
        (1, "ok", "push", 2),
        (0, "invoke", "pop", None),
    )
    assert check(_history(*overlapping, (0, "ok", "pop", 1)), Stack()).valid is True
    assert check(_history(*overlapping, (0, "ok", "pop", 2)), Stack()).valid is True
    assert check(_history(*overlapping, (0, "ok", "pop", None)), Stack()).valid is False
    lost_pop = (*overlapping, (0, "info", "pop", None), (2, "invoke", "pop", None))
    assert check(_history(*lost_pop, (2, "ok", "pop", 1)), Stack()).valid is True


def test_a_lost_write_may_take_effect_late_and_only_after_its_call() -> None:
    lost = ((0, "invoke", "write", 1), (0, "info", "write", 1))
    read = ((1, "invoke", "read", None), (1, "ok", "read", 1))
    other = ((2, "invoke", "write", 2), (2, "ok", "write", 2))
    model = model_named("register")
    assert check(_history(*lost, *other, *read), model).valid is True
    assert check(_history(*read, *lost, *other), model).valid is False
    assert (
        check(_history(*lost, *read, *other, (3, "invoke", "read", None), (3, "ok", "read", 1)), model).valid is False
    )
