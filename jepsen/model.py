"""What a sequential object is: the one thing a new model has to say, and what more it may say to be searched faster.

A model needs `initial` and `step`; `step` returns the next state or ILLEGAL. The rest has safe defaults:
  observer    true of an operation that, wherever it is legal, leaves the state as it was. Such an operation can be
              placed as soon as it is legal, and one with an unknown outcome can be left out.
  absorbed    true of an operation that loses nothing if it is placed as soon as it would leave the state as it is.
  eager       true of an operation that loses nothing if it is placed as soon as it is legal, even if it has effects.
  effect      what step depends on besides the state. Operations with equal effects are interchangeable.
  partition   an operation touches one part only; parts are judged one by one (Horn and Kroening's P-compositionality).
  bind        prepares model and operations of one part for the search: merges states that these operations cannot tell
              apart, drops what cannot matter, narrows intervals, sees what is impossible at once.
  resets      true of an operation that is legal everywhere and whose next state does not depend on the last one.
  reachable   false if an observer cannot become legal from a state unless something resets that state first.
  needs       the only state in which an operation is legal, or ANY.
  recurs      false of a state that cannot come again once it has been left. An operation that needs it and changes it
              is then the only way out of it, and only observers and absorbed operations may leave it as it is.

Invariant: step is a pure function of (state, effect), and states are hashable values that are never changed.
Invariant: an operation with an unknown outcome is legal only where it has its effect: one without is as good as absent.
Invariant: none of the optional methods changes a verdict; tests compare each model with brute force on thousands of
           small histories.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from jepsen.history import NEVER, Operation

State = Hashable


class _Illegal:
    def __repr__(self) -> str:
        return "ILLEGAL"


ILLEGAL = _Illegal()
"""What step returns where the operation cannot have had this answer."""


class _Any:
    def __repr__(self) -> str:
        return "ANY"


ANY = _Any()
"""What needs returns for an operation that is legal in more than one state, or that the model is not sure of."""


class ModelError(ValueError):
    """An operation that the model does not know, or whose values it cannot be about."""

    def __init__(self, operation: Operation, why: str) -> None:
        super().__init__(f"line {operation.line}: {operation.f} {operation.input!r}: {why}")
        self.operation = operation


@dataclass(slots=True)
class Impossible:
    """An answer that no order explains, seen before any search: the operation, and why."""

    operation: Operation
    why: str


class Model:
    """The base of all models; see the module's docstring for what each method promises."""

    name = "?"
    promise = "linearizable"
    """What a history with a legal order is called."""
    functions: frozenset[str] = frozenset()
    """The operations it knows; what a file's model is guessed from."""

    def initial(self) -> State:
        raise NotImplementedError

    def step(self, state: State, operation: Operation) -> State:
        raise NotImplementedError

    def observer(self, operation: Operation) -> bool:
        return False

    def absorbed(self, operation: Operation) -> bool:
        return False

    def eager(self, operation: Operation) -> bool:
        return False

    def effect(self, operation: Operation) -> Hashable:
        return (operation.f, operation.input, operation.output, operation.known, operation.refused)

    def partition(self, operation: Operation) -> Hashable:
        return operation.key

    def resets(self, operation: Operation) -> bool:
        return False

    def reachable(self, state: State, observer: Operation) -> bool:
        return True

    def needs(self, operation: Operation) -> State:
        return ANY

    def recurs(self, state: State) -> bool:
        return True

    def bind(self, operations: Sequence[Operation]) -> Bound:
        return Bound(self, relevant(self, operations))

    def starts(self, operations: Sequence[Operation]) -> list[Model]:
        """The model begun in each state that these operations can tell apart: all that an unknown past may have left.

        Empty if the model cannot say. Only counterexamples ask for it.
        """
        return []

    def describe(self, state: State) -> str:
        """The state for a person's eye."""
        return "nil" if state is None else str(state)


@dataclass(slots=True)
class Bound:
    """A model and the operations of one part, prepared for the search, in the order of their calls.

    Invariant: some order of the part's operations is legal exactly if there is nothing impossible and one of these is.
    """

    model: Model
    operations: list[Operation]
    impossible: Impossible | None = None


def relevant(model: Model, operations: Sequence[Operation]) -> list[Operation]:
    """Without what constrains nothing: answers that tell nothing, observers whose answer is not known."""
    return [one for one in operations if not one.silent and (one.ret < NEVER or one.known or not model.observer(one))]


ORDER_ROUNDS = 4
"""Rounds of Intervals.same_order: each may let the next find more, and none is needed for the verdict."""


class Intervals:
    """Narrows the intervals of operations by what was seen of them, without losing an order that was possible.

    If only one operation can have made what a reader saw, it lies before the reader in every order: its return may be
    taken to be no later than the reader's, and the reader's call no earlier than its call. An unknown write that was
    read is then as good as known. Where several can have made it, the reader still lies after the first call of them.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._call = {one.index: one.call for one in operations}
        self._ret = {one.index: one.ret for one in operations}
        self._changed = False

    def settle(self) -> bool:
        """Whether nothing has changed since the last time: then another round would find nothing new."""
        changed, self._changed = self._changed, False
        return not changed

    def before(self, first: Operation, then: Operation) -> None:
        """`first` lies before `then` in every legal order."""
        self._earlier_ret(first, self._ret[then.index])
        self._later_call(then, self._call[first.index])

    def call(self, operation: Operation) -> int:
        return self._call[operation.index]

    def ret(self, operation: Operation) -> int:
        return self._ret[operation.index]

    def not_called_within(self, operation: Operation, begin: int, end: int) -> None:
        """The operation does not happen between two positions: a call in between may as well be the end."""
        if begin < self._call[operation.index] < end:
            self._later_call(operation, end)

    def not_returned_within(self, operation: Operation, begin: int, end: int) -> None:
        if begin < self._ret[operation.index] < end:
            self._earlier_ret(operation, begin)

    def after_one_of(self, makers: Sequence[Operation], reader: Operation) -> None:
        """One of the makers lies before the reader in every legal order. `makers` are in the order of their calls."""
        if len(makers) == 1 or makers[1].call > self._ret[reader.index]:
            self.before(makers[0], reader)
        else:
            self._later_call(reader, makers[0].call)

    def same_order(self, pairs: Sequence[tuple[Operation, Operation]]) -> None:
        """The first ones of the pairs have the same order as the second ones: what is certain of one, holds of both."""
        for _ in range(ORDER_ROUNDS):
            self._follow([(one, other) for one, other in pairs])
            self._follow([(other, one) for one, other in pairs])
            if self.settle():
                break

    def _follow(self, pairs: list[tuple[Operation, Operation]]) -> None:
        """Where the first ones do not overlap, the second ones are in their order."""
        by_ret = sorted(pairs, key=lambda pair: self._ret[pair[0].index])
        by_call = sorted(pairs, key=lambda pair: self._call[pair[0].index])
        latest, place = -1, 0
        for first, second in by_call:  # after all whose first one returned before this one's was called
            while place < len(by_ret) and self._ret[by_ret[place][0].index] < self._call[first.index]:
                latest = max(latest, self._call[by_ret[place][1].index])
                place += 1
            self._later_call(second, latest)
        earliest, place = NEVER, len(by_call) - 1
        for first, second in reversed(by_ret):  # before all whose first one was called after this one's returned
            while place >= 0 and self._call[by_call[place][0].index] > self._ret[first.index]:
                earliest = min(earliest, self._ret[by_call[place][1].index])
                place -= 1
            self._earlier_ret(second, earliest)

    def narrowed(self) -> list[Operation]:
        """Copies with the narrowed intervals, in the order of their (new) calls."""
        result = [
            one
            if one.call == self._call[one.index] and one.ret == self._ret[one.index]
            else replace(one, call=self._call[one.index], ret=self._ret[one.index])
            for one in self._operations
        ]
        return sorted(result, key=lambda one: (one.call, one.index))

    def contradiction(self) -> Operation | None:
        """An operation that would have to lie before its own call."""
        return next((one for one in self._operations if self._ret[one.index] < self._call[one.index]), None)

    def _earlier_ret(self, operation: Operation, ret: int) -> None:
        if self._ret[operation.index] > ret:
            self._ret[operation.index] = ret
            self._changed = True

    def _later_call(self, operation: Operation, call: int) -> None:
        if self._call[operation.index] < call:
            self._call[operation.index] = call
            self._changed = True
