"""A string that grows: get, put, append. The store of porcupine's test data; a key starts as the empty string."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from itertools import pairwise

from jepsen.history import NEVER, Operation
from jepsen.model import ANY, ILLEGAL, Bound, Impossible, Intervals, Model, ModelError, State, relevant


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
        for one in useful:
            if not isinstance(one.output if one.f == "get" else one.input, str):
                if one.f != "get":
                    raise ModelError(one, "an append-only store knows strings only")
                return Bound(self, useful, Impossible(one, f"{one.output!r} is no string"))
        if _tell_apart(useful):
            return _bind_decoded(self, useful)
        return Bound(_Prefixes(sorted({str(one.output) for one in useful if one.f == "get"})), useful)


LOST = None
"""The state of a string that no get answered, nor began an answer with: only a put leads to one that matters."""


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


def _tell_apart(operations: Sequence[Operation]) -> bool:
    """Whether a string shows which operations made it: no value is empty, and none ends in another (a suffix code)."""
    ends = sorted(str(one.input)[::-1] for one in operations if one.f != "get")
    return all(not after.startswith(end) for end, after in pairwise(ends)) and "" not in ends


def _bind_decoded(model: AppendStore, operations: list[Operation]) -> Bound:
    """Each answer names the operations that made it, and their order, with nothing in between."""
    makers = {str(one.input): one for one in operations if one.f != "get"}
    lengths = sorted({len(value) for value in makers})
    intervals = Intervals(operations)
    needs: dict[str, str] = {}  # value -> the string before it, of those that were seen
    decoded: set[str] = {""}
    for get in sorted((one for one in operations if one.f == "get"), key=lambda one: len(str(one.output))):
        rest, later = str(get.output), get
        while rest not in decoded:
            value = next((rest[-length:] for length in lengths if rest[-length:] in makers), None)
            if value is None:
                return Bound(model, operations, Impossible(get, f"nothing wrote the end of {rest!r}"))
            maker, before = makers[value], rest[: -len(value)]
            if needs.setdefault(value, before) != before or (maker.f == "put" and before):
                return Bound(model, operations, Impossible(get, f"{value!r} was seen after something else, too"))
            intervals.before(maker, later)
            decoded.add(rest)
            rest, later = before, maker
        if rest:
            intervals.before(makers[_last(rest, lengths, makers)], later)
    wrong = intervals.contradiction()
    if wrong is not None:
        return Bound(model, operations, Impossible(wrong, "it was seen before it was called"))
    useful = [one for one in intervals.narrowed() if one.ret < NEVER or one.input in needs]
    return Bound(_Decoded(needs), useful)


def _last(text: str, lengths: list[int], makers: dict[str, Operation]) -> str:
    return next(text[-length:] for length in lengths if text[-length:] in makers)


class _Decoded(AppendStore):
    """The store of values that tell apart: what was seen happened right after what it was seen after."""

    def __init__(self, needs: dict[str, str]) -> None:
        self._needs = needs

    def step(self, state: State, operation: Operation) -> State:
        if operation.f == "get":
            return state if state == operation.output else ILLEGAL
        assert isinstance(operation.input, str)
        before = self._needs.get(operation.input)
        if before is None:
            return LOST
        if operation.f == "put":
            return operation.input
        return before + operation.input if state == before else ILLEGAL

    def absorbed(self, operation: Operation) -> bool:
        """What nobody saw may happen whenever the string is lost anyway."""
        return operation.f != "get" and operation.input not in self._needs

    def reachable(self, state: State, observer: Operation) -> bool:
        assert isinstance(observer.output, str)
        return isinstance(state, str) and observer.output.startswith(state)

    def needs(self, operation: Operation) -> State:
        if operation.f == "append":
            return self._needs.get(str(operation.input), ANY)
        return operation.output if operation.f == "get" else ANY

    def recurs(self, state: State) -> bool:
        return state is LOST
