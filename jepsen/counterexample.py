"""Why a part of a history is not linearizable: where every order ends, and the few operations that contradict.

The shrunk history is evidence, not only small: every step towards it makes the history say *less*. It is cut off at a
moment; what happened before a moment is forgotten, and every state that it may have left is tried; what was observed is
dropped; that a write was answered is forgotten, so that it may happen late or never. A valid history stays valid under
each of these; so if the little that is left has no legal order, then neither had the whole. Simply leaving operations
out would not do: a read is always "illegal" once its write is gone.
Invariant: `core` is illegal whatever became of all other operations, and illegal all by itself; each is checked again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from jepsen.history import NEVER, Operation
from jepsen.linearizability import Part, judge
from jepsen.model import ILLEGAL, Bound, Model, State, relevant
from jepsen.search import Answer, Limits, Search

SECONDS_MAX = 10.0
"""To shrink one part. Small ones take 0.1 s."""
FOLLOW_SECONDS_MAX = 2.0
"""To follow the longest orders: a search without hints may have no end; mostly the longest is found first."""
LATEST_MIN = 8
"""Answers that are kept at first, then twice as many each time."""
STARTS_MAX = 16
"""States from which the rest of a history is judged once its past is forgotten: each is a search of its own."""
STEP_SECONDS_MAX = 0.5
"""For one look at a smaller history. Past it the step is not taken: smaller is wanted, certain is needed."""


@dataclass(slots=True)
class Counterexample:
    part: Part
    core: list[Operation] = field(default_factory=list)
    """The operations that contradict each other, by call."""
    cut: int = NEVER  # the history up to this position is already illegal, and up to the return before it was not
    begin: int = 0  # what returned before this position does not matter, nor the state that it left
    smallest: bool = False  # every single operation of the core was tried without, in time
    longest: dict[int, list[Operation]] = field(default_factory=dict)
    """Operation index -> the longest partial linearization that was found with it."""
    best: list[Operation] = field(default_factory=list)
    """The longest of them all."""
    state: State = None  # after `best`
    edges: list[tuple[int, int, str, str]] = field(default_factory=list)
    """Of a cycle of transactions instead: index of one, of one that must be later, kind, why."""
    stuck: list[Operation] = field(default_factory=list)
    """What would have to come next, and cannot in that state."""


def explain(model: Model, part: Part, seconds_max: float = SECONDS_MAX) -> Counterexample:
    """For a part that is illegal."""
    assert part.answer is Answer.ILLEGAL
    found = Counterexample(part)
    begin = time.monotonic()
    found.cut = _cut(model, part.operations, begin + seconds_max / 4)
    operations = upto(part.operations, found.cut)
    found.begin = _begin(model, operations, begin + seconds_max / 3)
    recent = since(operations, found.begin)
    _shrink(model.starts(recent) if found.begin else [model], recent, found, begin + seconds_max)
    _follow(model, operations, found, time.monotonic() + min(FOLLOW_SECONDS_MAX, seconds_max))
    return found


def explain_all(model: Model, parts: Sequence[Part]) -> list[Counterexample]:
    """As many illegal parts as there is time for, the smallest first, at least one: they mostly have one cause."""
    begin = time.monotonic()
    found: list[Counterexample] = []
    for part in sorted(parts, key=lambda one: len(one.operations)):
        found.append(explain(model, part))
        if time.monotonic() - begin > SECONDS_MAX:
            break
    return found


def upto(operations: Sequence[Operation], position: int) -> list[Operation]:
    """The history as it was known right after a position: what had not returned has an unknown outcome."""
    return [one if one.ret <= position else one.weakened() for one in operations if one.call <= position]


def since(operations: Sequence[Operation], position: int) -> list[Operation]:
    """The history from a position on: what returned before it is past, what was open then may be past or not."""
    return [
        one if one.call >= position or one.ret == NEVER else one.weakened() for one in operations if one.ret >= position
    ]


def _illegal(models: Sequence[Model], operations: list[Operation], deadline: float) -> bool:
    """Whether it is certainly illegal for each of the models. Not known counts as no."""
    now = time.monotonic()
    if now >= deadline:
        return False
    limits = Limits(deadline=min(deadline, now + STEP_SECONDS_MAX))
    return all(judge(model, operations, limits).answer is Answer.ILLEGAL for model in models)


def _cut(model: Model, operations: list[Operation], deadline: float) -> int:
    """The earliest return by which the history is illegal: every beginning of a valid history is valid."""
    returns = sorted(one.ret for one in operations if one.ret < NEVER)
    legal, illegal = 0, len(returns) - 1  # up to returns[illegal] it is illegal; below returns[legal] not known to be
    while legal < illegal:
        middle = (legal + illegal) // 2
        if _illegal([model], upto(operations, returns[middle]), deadline):
            illegal = middle
        else:
            legal = middle + 1
    return returns[illegal]


def _begin(model: Model, operations: list[Operation], deadline: float) -> int:
    """The latest call from which on the history is illegal whatever the state was; 0 if there is none, or unknown.

    If it is illegal from a moment on, it is so from every earlier one: the state at that moment is one of all states.
    """
    calls = sorted(one.call for one in operations if one.known)

    def illegal_from(place: int) -> bool | None:
        recent = since(operations, calls[place])
        starts = model.starts(recent)
        return _illegal(starts, recent, deadline) if 0 < len(starts) <= STARTS_MAX else None

    legal, span = len(calls), 1
    illegal = len(calls) - 1
    while (answer := illegal_from(illegal)) is False and illegal > 0:  # from the end, doubling: near ones are cheap
        legal, span = illegal, 2 * span
        illegal = max(0, illegal - span)
    if not answer:
        return 0
    while legal - illegal > 1:
        middle = (legal + illegal) // 2
        if illegal_from(middle):
            illegal = middle
        else:
            legal = middle
    return calls[illegal]


def _shrink(models: Sequence[Model], operations: list[Operation], found: Counterexample, deadline: float) -> None:
    """Forgets the outcomes of ever smaller groups, observers first, and keeps what may not be forgotten."""
    wanted, current = _latest(models, operations, deadline)
    wanted.sort(key=lambda one: (not models[0].observer(one), one.call))
    size = max(1, len(wanted) // 2)
    while True:
        wanted, forgotten = _forget(models, current, wanted, size, deadline)
        if size == 1 and not forgotten:
            break
        size = max(1, min(size, len(wanted)) // 2)
        if time.monotonic() >= deadline:
            break
    found.core = sorted(wanted, key=lambda one: one.call)
    found.smallest = time.monotonic() < deadline
    limits = Limits(deadline=time.monotonic() + 10 * STEP_SECONDS_MAX)
    for model in models:
        assert judge(model, found.core, limits).answer is not Answer.LEGAL, "fewer operations cannot make it legal"


def _latest(
    models: Sequence[Model], operations: list[Operation], deadline: float
) -> tuple[list[Operation], dict[int, Operation]]:
    """The last few answers that suffice, all earlier ones forgotten: mostly few do, and little is quickly judged."""
    known = sorted((one for one in operations if one.known), key=lambda one: one.call)
    size = LATEST_MIN
    while size < len(known):
        current = {one.index: one.weakened() for one in operations}
        current |= {one.index: one for one in known[-size:]}
        if _illegal(models, list(current.values()), deadline):
            return known[-size:], current
        size *= 2
    return known, {one.index: one for one in operations}


def _forget(
    models: Sequence[Model], current: dict[int, Operation], wanted: list[Operation], size: int, deadline: float
) -> tuple[list[Operation], bool]:
    """One pass over `wanted` in groups. `current` is the history as it stands, with what was forgotten weakened."""
    kept: list[Operation] = []
    for start in range(0, len(wanted), size):
        group = wanted[start : start + size]
        for one in group:
            current[one.index] = one.weakened()
        if not _illegal(models, list(current.values()), deadline):
            for one in group:
                current[one.index] = one
            kept += group
    return kept, len(kept) < len(wanted)


def _follow(model: Model, operations: list[Operation], found: Counterexample, deadline: float) -> None:
    """Searches without the hints that let the search give up early, so that orders go as far as they can."""
    plain = Bound(model, relevant(model, operations))
    hinted = model.bind(operations)
    for bound, share in ((plain, 0.7), (hinted, 1.0)):
        if bound.impossible is not None:
            continue
        now = time.monotonic()
        result = Search(bound, Limits(deadline=now + share * max(0.0, deadline - now)), trace=True).run()
        lengths = {id(order): _length(order) for order in (*result.longest.values(), *found.longest.values())}
        for index, order in result.longest.items():
            other = found.longest.get(index)
            if other is None or lengths[id(order)] > lengths[id(other)]:
                found.longest[index] = order
        if result.answer is Answer.ILLEGAL:
            break
    orders = {id(order): order for order in found.longest.values()}  # many operations share one
    found.best = max(orders.values(), key=_length, default=[])
    found.state, found.stuck = _ending(model, operations, found.best)


def _length(order: list[Operation]) -> tuple[int, int]:
    """Of two orders the one with more answered operations is longer, then the one with fewer others."""
    answered = sum(one.known for one in order)
    return answered, answered - len(order)


def _ending(model: Model, operations: list[Operation], order: list[Operation]) -> tuple[State, list[Operation]]:
    states = states_of(model, order)
    placed = {one.index for one in order}
    left = [one for one in relevant(model, operations) if one.index not in placed and one.known]
    first = min((one.ret for one in left), default=NEVER)
    state = states[-1] if states else model.initial()
    return state, [one for one in left if one.call < first and model.step(state, one) is ILLEGAL]


def states_of(model: Model, order: Sequence[Operation]) -> list[State]:
    """The state after each operation of an order that is legal."""
    states: list[State] = []
    state = model.initial()
    for one in order:
        state = model.step(state, one)
        assert state is not ILLEGAL
        states.append(state)
    return states
