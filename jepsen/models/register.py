"""A register: read, write, delete, compare-and-set. None is "absent"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from jepsen.history import NEVER, Operation, Value
from jepsen.model import ILLEGAL, Bound, Impossible, Intervals, Model, ModelError, State, relevant

ROUNDS_MAX = 8
"""Rounds of narrowing: each may let the next find more, and the first two find nearly all."""


class _Other:
    """All values that no operation of the part asks for, as one."""

    def __repr__(self) -> str:
        return "(a value that nobody saw)"


OTHER = _Other()


class Register(Model):
    """read -> value; write value; delete; cas (from, to) -> done, or refused since the value was another one."""

    name = "register"
    functions = frozenset({"read", "write", "delete", "cas"})

    def __init__(self, initial: Value = None) -> None:
        self._initial = initial

    def initial(self) -> State:
        return self._initial

    def step(self, state: State, operation: Operation) -> State:
        match self.effect(operation):
            case ("read", value):
                return state if state == value else ILLEGAL
            case ("write", value):
                return value
            case ("differs", value):
                return state if state != value else ILLEGAL
            case ("cas", value, new):
                return new if state == value else ILLEGAL
            case _:
                return ILLEGAL

    def effect(self, operation: Operation) -> tuple[Hashable, ...]:
        if operation.f == "read":
            return ("read", operation.output)
        if operation.f == "write":
            return ("write", operation.input)
        if operation.f == "delete":
            return ("write", None)
        if operation.f != "cas" or not isinstance(operation.input, tuple) or len(operation.input) != 2:
            raise ModelError(operation, "a register knows read, write, delete and cas [from, to]")
        expected, new = operation.input
        if operation.refused is None or not operation.known:
            return ("read", expected) if expected == new else ("cas", expected, new)
        if not operation.refused:
            return ("differs", expected)
        seen = operation.refused[0]
        return ("read", seen) if seen != expected else ("never",)

    def observer(self, operation: Operation) -> bool:
        return self.effect(operation)[0] in ("read", "differs", "never")

    def resets(self, operation: Operation) -> bool:
        return self.effect(operation)[0] == "write"

    def bind(self, operations: Sequence[Operation]) -> Bound:
        return _Binding(self, relevant(self, operations)).bound()


@dataclass(slots=True)
class _Binding:
    """The uses of each value among the operations of one part."""

    model: Register
    operations: list[Operation]
    makers: dict[Value, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    readers: list[tuple[Operation, Value]] = field(default_factory=list)
    asked: set[Value] = field(default_factory=set)  # values that some operation can tell from others

    def bound(self) -> Bound:
        impossible = self._sort()
        if impossible is not None:
            return Bound(self.model, self.operations, impossible)
        intervals = Intervals(self.operations)
        for _ in range(ROUNDS_MAX):
            for reader, value in self.readers:
                if value == self.model.initial():
                    continue
                makers = self.makers[value]
                if not makers or makers[0].call > reader.ret:
                    return Bound(self.model, self.operations, Impossible(reader, f"nobody had written {value!r} yet"))
                intervals.after_one_of(makers, reader)
            if intervals.settle():
                break
        wrong = intervals.contradiction()
        if wrong is not None:
            return Bound(self.model, self.operations, Impossible(wrong, "it was seen before it was called"))
        return Bound(_Told(self.model.initial(), frozenset(self.asked)), self._useful(intervals.narrowed()))

    def _sort(self) -> Impossible | None:
        for operation in self.operations:
            match self.model.effect(operation):
                case ("never",):
                    return Impossible(operation, "it was refused although the value was the expected one")
                case ("read", value):
                    self._asks(operation, value)
                case ("differs", value):
                    self.asked.add(value)
                case ("write", value):
                    self.makers[value].append(operation)
                case ("cas", value, new):
                    self._asks(operation, value)
                    self.makers[new].append(operation)
        return None

    def _asks(self, operation: Operation, value: Value) -> None:
        self.asked.add(value)
        if operation.known:
            self.readers.append((operation, value))

    def _useful(self, operations: list[Operation]) -> list[Operation]:
        """Without unknown writes that nobody can have noticed."""
        if any(self.model.effect(one)[0] == "differs" for one in operations):
            return operations
        return [one for one in operations if one.ret < NEVER or self._made(one) in self.asked]

    def _made(self, operation: Operation) -> Value:
        return self.model.effect(operation)[-1]


class _Told(Register):
    """A register that keeps apart only the values that somebody asks for."""

    def __init__(self, initial: Value, asked: frozenset[Value]) -> None:
        super().__init__(initial if initial in asked else OTHER)
        self._asked = asked

    def effect(self, operation: Operation) -> tuple[Hashable, ...]:
        effect = super().effect(operation)
        if effect[0] in ("write", "cas") and effect[-1] not in self._asked:
            return (*effect[:-1], OTHER)
        return effect
