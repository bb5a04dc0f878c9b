"""A lock, and a group of registers that transactions read and write at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from jepsen.history import Operation, Value
from jepsen.model import ILLEGAL, Bound, Model, ModelError, State, relevant

HELD = "held"


class Lock(Model):
    """acquire [owner] needs the lock free, release [owner] needs it held (by that owner, if one is named)."""

    name = "lock"
    functions = frozenset({"acquire", "release"})

    def __init__(self, initial: Value = None) -> None:
        self._initial = initial

    def initial(self) -> State:
        return self._initial

    def starts(self, operations: Sequence[Operation]) -> list[Model]:
        owners = dict.fromkeys(HELD if one.input is None else one.input for one in operations)
        return [Lock(holder) for holder in (None, *owners)]

    def step(self, state: State, operation: Operation) -> State:
        owner = HELD if operation.input is None else operation.input
        if operation.f == "acquire":
            return owner if state is None else ILLEGAL
        if operation.f != "release":
            raise ModelError(operation, "a lock knows acquire and release")
        return None if state == owner else ILLEGAL

    def effect(self, operation: Operation) -> Hashable:
        return (operation.f, operation.input)


class MultiRegister(Model):
    """Registers by name; txn is a list of [read, key, value] and [write, key, value] that happen at one moment."""

    name = "multi-register"
    functions = frozenset({"txn"})

    def __init__(self, initial: Value = 0) -> None:
        self._initial = initial

    def initial(self) -> State:
        """The registers that were written, sorted by name; all others hold the start value."""
        return ()

    def step(self, state: State, operation: Operation) -> State:
        assert isinstance(state, tuple)
        registers: dict[Value, Value] = dict(state)
        for kind, key, value in self._steps(operation):
            if kind == "write":
                registers[key] = value
            elif operation.known and registers.get(key, self._initial) != value:
                return ILLEGAL
        return tuple(sorted(registers.items(), key=lambda item: str(item[0])))

    def effect(self, operation: Operation) -> Hashable:
        return (operation.known, tuple(self._steps(operation)))

    def observer(self, operation: Operation) -> bool:
        return all(kind == "read" for kind, _, _ in self._steps(operation))

    def partition(self, operation: Operation) -> Hashable:
        """All registers are one part: a transaction may touch several."""
        return None

    def bind(self, operations: Sequence[Operation]) -> Bound:
        return Bound(self, relevant(self, operations))

    def _steps(self, operation: Operation) -> Iterator[tuple[str, Value, Value]]:
        steps = operation.output if operation.known else operation.input
        if operation.f != "txn" or not isinstance(steps, tuple):
            raise ModelError(operation, "a multi-register knows txn with a list of steps")
        for step in steps:
            if not isinstance(step, tuple) or len(step) != 3 or step[0] not in ("read", "r", "write", "w"):
                raise ModelError(operation, f"{step!r} is neither [read, key, value] nor [write, key, value]")
            yield ("read" if step[0] in ("read", "r") else "write"), step[1], step[2]
