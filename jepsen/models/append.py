"""A string that grows: get, put, append. The store of porcupine's test data; a key starts as the empty string."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence

from jepsen.history import Operation
from jepsen.model import ILLEGAL, Bound, Impossible, Model, ModelError, State, relevant


class AppendStore(Model):
    """get -> the whole string; put value; append value."""

    name = "kv-append"
    functions = frozenset({"get", "put", "append"})

    def initial(self) -> State:
        return ""

    def step(self, state: State, operation: Operation) -> State:
        if operation.f == "get":
            return state if state == operation.output else ILLEGAL
        if not isinstance(operation.input, str) or operation.f not in self.functions:
            raise ModelError(operation, "an append-only store knows get, put and append of strings")
        assert isinstance(state, str)
        return operation.input if operation.f == "put" else state + operation.input

    def effect(self, operation: Operation) -> Hashable:
        return (operation.f, operation.output if operation.f == "get" else operation.input)

    def observer(self, operation: Operation) -> bool:
        return operation.f == "get"

    def resets(self, operation: Operation) -> bool:
        return operation.f == "put"

    def bind(self, operations: Sequence[Operation]) -> Bound:
        useful = relevant(self, operations)
        outputs: set[str] = set()
        for one in useful:
            if one.f == "get":
                if not isinstance(one.output, str):
                    return Bound(self, useful, Impossible(one, f"{one.output!r} is no string"))
                outputs.add(one.output)
        return Bound(_Prefixes(sorted(outputs)), useful)


LOST = None
"""The state of a string that no get saw, nor any longer one: only a put leads away from it."""


class _Prefixes(AppendStore):
    """The store, with all strings as one that no get answered and none began with."""

    def __init__(self, outputs: list[str]) -> None:
        self._outputs = outputs

    def step(self, state: State, operation: Operation) -> State:
        if operation.f == "put":
            return self._told(super().step("", operation))
        if state is LOST:
            return ILLEGAL if operation.f == "get" else LOST
        after = super().step(state, operation)
        return after if operation.f == "get" else self._told(after)

    def reachable(self, state: State, observer: Operation) -> bool:
        assert isinstance(observer.output, str)
        return isinstance(state, str) and observer.output.startswith(state)

    def _told(self, state: State) -> State:
        assert isinstance(state, str)
        place = bisect_left(self._outputs, state)
        return state if place < len(self._outputs) and self._outputs[place].startswith(state) else LOST
