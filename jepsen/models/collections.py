"""Objects whose operations add up: a set, a counter, a queue."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Hashable, Sequence

from jepsen.history import NEVER, Operation, Value
from jepsen.model import ANY, ILLEGAL, Bound, Impossible, Intervals, Model, ModelError, State, relevant


class SetModel(Model):
    """add element; remove element; contains element -> bool; read -> all elements, in any order."""

    name = "set"
    functions = frozenset({"add", "remove", "contains", "read"})

    def initial(self) -> State:
        return frozenset()

    def step(self, state: State, operation: Operation) -> State:
        assert isinstance(state, frozenset)
        match operation.f:
            case "add":
                return state | {operation.input}
            case "remove":
                return state - {operation.input}
            case "contains":
                return state if (operation.input in state) == operation.output else ILLEGAL
            case "read":
                return state if state == elements(operation) else ILLEGAL
            case _:
                raise ModelError(operation, "a set knows add, remove, contains and read")

    def effect(self, operation: Operation) -> Hashable:
        match operation.f:
            case "add" | "remove":
                return (operation.f, operation.input)
            case "contains":
                return (operation.f, operation.input, operation.output)
            case _:
                return (operation.f, elements(operation))

    def observer(self, operation: Operation) -> bool:
        return operation.f in ("contains", "read")

    def bind(self, operations: Sequence[Operation]) -> Bound:
        useful = relevant(self, operations)
        if any(one.f != "add" and not (one.f == "read" and one.known) for one in useful):
            return Bound(self, useful)
        return _bind_growing(_GrowingSet(), useful)


def elements(operation: Operation) -> frozenset[Value]:
    """What a read of a set answered. A duplicate is no linearizability matter: set_check counts them."""
    if not isinstance(operation.output, tuple | frozenset):
        raise ModelError(operation, f"a set is read as a list, not as {operation.output!r}")
    return frozenset(operation.output)


class _GrowingSet(SetModel):
    """A set without removals: a state that has what a later read lacks is lost for good."""

    def reachable(self, state: State, observer: Operation) -> bool:
        assert isinstance(state, frozenset)
        return state <= elements(observer)

    def needs(self, operation: Operation) -> State:
        return elements(operation) if operation.f == "read" else ANY

    def recurs(self, state: State) -> bool:
        return False


def _bind_growing(model: Model, operations: list[Operation]) -> Bound:
    """An element that was read was added before; one added once that was not read was added after."""
    adds: dict[Value, list[Operation]] = {}
    reads = [one for one in operations if one.f == "read"]
    seen: set[Value] = set()
    for one in operations:
        if one.f == "add":
            adds.setdefault(one.input, []).append(one)
    intervals = Intervals(operations)
    for read in reads:
        present = elements(read)
        seen |= present
        for element in present:
            makers = adds.get(element)
            if not makers or makers[0].call > read.ret:
                return Bound(model, operations, Impossible(read, f"nobody had added {element!r} yet"))
            intervals.after_one_of(makers, read)
        for element, makers in adds.items():
            if element not in present:
                for maker in makers:
                    if maker.ret < read.call:
                        return Bound(model, operations, Impossible(read, f"{element!r} had been added before"))
                    intervals.before(read, maker)
    wrong = intervals.contradiction()
    if wrong is not None:
        return Bound(model, operations, Impossible(wrong, "it must lie before one read and after another"))
    return Bound(model, [one for one in intervals.narrowed() if one.ret < NEVER or one.input in seen])


class CounterModel(Model):
    """add delta (which may be negative); read -> the sum; incr delta -> the sum after it."""

    name = "counter"
    functions = frozenset({"add", "incr", "read"})

    def __init__(self, initial: Value = 0) -> None:
        self._initial = 0 if initial is None else initial

    def initial(self) -> State:
        return self._initial

    def step(self, state: State, operation: Operation) -> State:
        assert isinstance(state, int)
        if operation.f == "read":
            return state if state == operation.output else ILLEGAL
        if operation.f not in self.functions or not isinstance(operation.input, int):
            raise ModelError(operation, "a counter knows add and incr of an integer, and read")
        after = state + operation.input
        if operation.f == "incr" and operation.known and operation.output != after:
            return ILLEGAL
        return after

    def effect(self, operation: Operation) -> Hashable:
        if operation.f == "read":
            return ("read", operation.output)
        if operation.f == "incr" and operation.known:
            return ("incr", operation.input, operation.output)
        return ("add", operation.input)

    def observer(self, operation: Operation) -> bool:
        return operation.f == "read"

    def bind(self, operations: Sequence[Operation]) -> Bound:
        useful = [one for one in relevant(self, operations) if one.ret < NEVER or one.input != 0]
        deltas = [one.input for one in useful if one.f != "read" and isinstance(one.input, int)]
        grows = all(delta >= 0 for delta in deltas)
        return Bound(_Growing(self._initial) if grows else self, useful)


class _Growing(CounterModel):
    """A counter that is never lowered."""

    def reachable(self, state: State, observer: Operation) -> bool:
        assert isinstance(state, int)
        return not isinstance(observer.output, int) or state <= observer.output

    def needs(self, operation: Operation) -> State:
        return operation.output if operation.f == "read" else ANY

    def recurs(self, state: State) -> bool:
        return False


class QueueModel(Model):
    """A first-in-first-out queue: enqueue value; dequeue -> the value, or None when it was empty."""

    name = "queue"
    functions = frozenset({"enqueue", "dequeue"})

    def initial(self) -> State:
        return ()

    def step(self, state: State, operation: Operation) -> State:
        assert isinstance(state, tuple)
        if operation.f == "enqueue":
            return (*state, operation.input)
        if operation.f != "dequeue":
            raise ModelError(operation, "a queue knows enqueue and dequeue")
        if not operation.known:
            return state[1:] if state else ILLEGAL
        if operation.output is None:
            return state if not state else ILLEGAL
        return state[1:] if state and state[0] == operation.output else ILLEGAL

    def effect(self, operation: Operation) -> Hashable:
        return (operation.f, operation.input if operation.f == "enqueue" else (operation.known, operation.output))

    def observer(self, operation: Operation) -> bool:
        return operation.f == "dequeue" and operation.known and operation.output is None

    def bind(self, operations: Sequence[Operation]) -> Bound:
        """Values are mostly unique: then what was dequeued first was enqueued first, and each order is forced."""
        useful = relevant(self, operations)
        puts = {one.input: one for one in useful if one.f == "enqueue"}
        takes = {one.output: one for one in useful if one.f == "dequeue" and one.known and one.output is not None}
        counts = Count(one.input for one in useful if one.f == "enqueue")
        intervals = Intervals(useful)
        pairs = []
        for one in takes.values():
            put = puts.get(one.output)
            if put is None or (counts[one.output] == 1 and put.call > one.ret):
                return Bound(self, useful, Impossible(one, f"nobody had enqueued {one.output!r} yet"))
            if counts[one.output] == 1:
                intervals.before(put, one)
                pairs.append((put, one))
        if any(count > 1 for count in counts.values()):
            return Bound(self, intervals.narrowed())
        if len(pairs) < sum(one.f == "dequeue" and one.known and one.output is not None for one in useful):
            return Bound(self, useful, Impossible(useful[-1], "a value was dequeued more often than enqueued"))
        intervals.same_order(pairs)
        wrong = intervals.contradiction()
        if wrong is not None:
            return Bound(self, useful, Impossible(wrong, "it would lie before its own call, by the order of the queue"))
        all_known = all(one.known for one in useful if one.f == "dequeue")
        useful = [one for one in intervals.narrowed() if one.ret < NEVER or one.f == "dequeue" or one.input in takes]
        return Bound(_Ordered(takes, all_known=all_known), useful)


class _Ordered(QueueModel):
    """A queue of unique values that refuses to enqueue in an order that the dequeues contradict."""

    def __init__(self, takes: dict[Value, Operation], *, all_known: bool) -> None:
        self._takes = takes
        self._all_known = all_known

    def step(self, state: State, operation: Operation) -> State:
        assert isinstance(state, tuple)
        if operation.f == "dequeue" and not operation.known and state and state[0] in self._takes:
            return ILLEGAL  # it would take what another one answered
        after = super().step(state, operation)
        if operation.f != "enqueue" or not state:
            return after
        take = self._takes.get(operation.input)
        if take is not None and any(self._later(value, take) for value in state):
            return ILLEGAL
        return after

    def eager(self, operation: Operation) -> bool:
        """What is at the front can leave only by its own dequeue, and nothing but enqueues goes on before it does."""
        return operation.f == "dequeue" and operation.known

    def _later(self, value: Value, take: Operation) -> bool:
        """Whether `value` certainly leaves the queue after `take`, or not at all."""
        other = self._takes.get(value)
        return self._all_known if other is None else other.call > take.ret
