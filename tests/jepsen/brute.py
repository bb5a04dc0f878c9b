"""A second, dumb checker, and small random histories to compare with it.

The checker tries every order, and every subset of the unknown operations: no memory, no pruning, no parts. It shares
with the real one nothing but the models' `initial` and `step`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from jepsen.history import NEVER, Event, History, Operation, Outcome, Value, pair
from jepsen.model import ILLEGAL, Model, State


def linearizable(model: Model, operations: Sequence[Operation]) -> bool:
    """Whether some order of all answered operations, and of any of the unknown ones, is legal and keeps real time."""
    asked = [
        one
        for one in operations
        if one.outcome is not Outcome.FAILED and not one.silent and (one.known or one.f not in READS)
    ]
    return _extends(model, {}, asked)


def _extends(model: Model, states: dict[Value, State], left: list[Operation]) -> bool:
    if not any(one.known for one in left):
        return True
    for one in left:
        if any(other.known and other.ret < one.call for other in left):
            continue
        part = model.partition(one)
        after = model.step(states.get(part, model.initial()), one)
        if after is not ILLEGAL and _extends(
            model, {**states, part: after}, [other for other in left if other is not one]
        ):
            return True
    return False


READS = ("read", "get", "contains")
"""What has no effect: without an answer it says nothing."""
Apply = Callable[[dict[Value, State], str, Value, Value], Value]


class Recorder:
    """Runs a made-up object with concurrent clients and records what they would have: the history is linearizable.

    Each step one client calls, takes effect or returns. A call may lose its answer, before or after its effect.
    """

    def __init__(self, rng: random.Random, *, clients: int, lost: float) -> None:
        self._rng = rng
        self._clients = clients
        self._lost = lost
        self.events: list[Event] = []

    def record(self, calls: Sequence[tuple[str, Value, Value]], apply: Apply) -> History:
        rng = self._rng
        states: dict[Value, State] = {}
        names = list(range(self._clients))
        open_calls: dict[int, tuple[str, Value, Value]] = {}
        answers: dict[int, Value] = {}
        todo = list(calls)
        while todo or open_calls:
            name = rng.choice(names)
            if name not in open_calls:
                if not todo:
                    name = rng.choice(list(open_calls))
                else:
                    open_calls[name] = todo.pop(0)
                    f, key, value = open_calls[name]
                    self._event(name, "invoke", f, key, value)
                    continue
            f, key, value = open_calls[name]
            if name not in answers:
                if rng.random() < self._lost:
                    if rng.random() < 0.5:
                        apply(states, f, key, value)
                    self._lose(names, open_calls, name)
                else:
                    answers[name] = apply(states, f, key, value)
            else:
                self._answer(name, f, key, value, answers.pop(name))
                del open_calls[name]
        return pair(self.events)

    def _lose(self, names: list[int], open_calls: dict[int, tuple[str, Value, Value]], name: int) -> None:
        f, key, value = open_calls.pop(name)
        if self._rng.random() < 0.7:
            self._event(name, "info", f, key, value)
        names[names.index(name)] = max(names) + self._clients

    def _answer(self, name: int, f: str, key: Value, value: Value, answer: Value) -> None:
        if isinstance(answer, Refused):
            self.events.append(Event(len(self.events) + 1, name, "fail", f, key, value, observed=answer.seen))
        else:
            self._event(name, "fail" if answer == DECLINED else "ok", f, key, answer)

    def _event(self, name: int, kind: str, f: str, key: Value, value: Value) -> None:
        self.events.append(Event(len(self.events) + 1, name, kind, f, key, value))


DECLINED = "declined"
"""The answer of an operation that did nothing and saw nothing."""


class Refused:
    """The answer of an operation that saw () or (value,) and did nothing."""

    def __init__(self, *seen: Value) -> None:
        self.seen = seen


def spoiled(rng: random.Random, history: History, answers: Callable[[Operation], Sequence[Value]]) -> None:
    """Changes one answer to another one that could have been given to another client."""
    known = [one for one in history.operations if one.known and answers(one)]
    if known:
        one = rng.choice(known)
        one.output = rng.choice(list(answers(one)))


def weakened(one: Operation) -> Operation:
    assert one.weakened().ret == NEVER
    return one.weakened()
