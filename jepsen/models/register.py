"""A register: read, write, delete, compare-and-set. None is "absent"."""

from __future__ import annotations

from collections import Counter as Count
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from jepsen.history import NEVER, Operation, Value
from jepsen.model import ANY, ILLEGAL, Bound, Impossible, Intervals, Model, ModelError, State, relevant
from jepsen.models import zones

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

    def starts(self, operations: Sequence[Operation]) -> list[Model]:
        asked = dict.fromkeys(
            effect[1] for effect in map(self.effect, operations) if effect[0] not in ("write", "never")
        )
        return [Register(value) for value in (*asked, OTHER)]

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
    ways_out: dict[Value, Operation] = field(default_factory=dict)  # of a value: an answered cas that replaced it
    members: dict[Value, list[Operation]] = field(default_factory=dict)
    """Of each value that was made once and seen: what certainly made it, and what saw it."""
    touched: list[tuple[Operation, frozenset[Value]]] = field(default_factory=list)

    @property
    def initial(self) -> Value:
        return self.model.initial()

    def bound(self) -> Bound:
        impossible = self._sort()
        intervals = Intervals(self.operations)
        rounds = 0
        while impossible is None:
            impossible = self._seen(intervals) or zones.narrow(intervals, self.members, self.touched, self.initial)
            rounds += 1
            if intervals.settle() or rounds == ROUNDS_MAX:
                break
        wrong = intervals.contradiction()
        if impossible is None and wrong is not None:
            impossible = Impossible(wrong, "what was seen by others leaves no moment for it")
        if impossible is not None:
            return Bound(self.model, self.operations, impossible)
        useful = self._useful(intervals.narrowed())
        made = Count([self._made(one) for one in useful if not self.model.observer(one)])
        once = frozenset(value for value in self.asked if made[value] + (value == self.initial) == 1)
        return Bound(_Told(self.initial, frozenset(self.asked), once), useful)

    def _seen(self, intervals: Intervals) -> Impossible | None:
        """What made a value lies before what saw it; what saw it before what led out of it, if it came only once."""
        for reader, value in self.readers:
            makers = self.makers[value]
            if value != self.initial:
                if not makers or makers[0].call > reader.ret:
                    return Impossible(reader, f"nobody had written {value!r} yet")
                intervals.after_one_of(makers, reader)
            out = self.ways_out.get(value) if value in self.members else None
            if out is not None and out is not reader:
                if not self.model.observer(reader):
                    return Impossible(out, f"two operations replaced {value!r}, which was written once")
                intervals.before(reader, out)
        return None

    def _sort(self) -> Impossible | None:
        for operation in self.operations:
            effect = self.model.effect(operation)
            match effect:
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
                    if operation.known:
                        self.ways_out.setdefault(value, operation)
            if effect[0] != "differs":
                self.touched.append((operation, frozenset(effect[1:])))
        for reader, value in self.readers:
            if len(self.makers[value]) + (value == self.initial) == 1:
                self.members.setdefault(value, list(self.makers[value])).append(reader)
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

    def __init__(self, initial: Value, asked: frozenset[Value], once: frozenset[Value]) -> None:
        super().__init__(initial if initial in asked else OTHER)
        self._asked = asked
        self._once = once

    def needs(self, operation: Operation) -> State:
        effect = self.effect(operation)
        return effect[1] if effect[0] in ("read", "cas") else ANY

    def recurs(self, state: State) -> bool:
        return state not in self._once

    def effect(self, operation: Operation) -> tuple[Hashable, ...]:
        effect = super().effect(operation)
        if effect[0] in ("write", "cas") and effect[-1] not in self._asked:
            return (*effect[:-1], OTHER)
        return effect
