"""Is there an order? The search of Wing and Gong with Lowe's memoisation, in the form that suits Python.

A configuration says which operations have been placed and what the state is then. From each, any operation may go next
whose call comes before the first return of an operation that is not placed yet. Depth first, with an explicit stack.
No configuration is entered twice, nor one that another dominates:

1. `r` is the rank (by return) of the first operation with a deadline that is not placed. All of lower rank are placed,
   so a configuration is (r, placed among those open at r, placed among the optional ones, state): small integers.
2. An observer that is legal goes first, at once and without alternatives: it changes nothing, so whatever worked
   without it works with it in front. So does what the model calls eager, and where it changes nothing, absorbed.
3. Of candidates with the same effect the one with the earliest return goes first (exchange them otherwise).
4. Optional operations (no return ever) only add choices. A configuration that has used a superset of those that another
   one with the same r, placed and state has used can do nothing that the other cannot.
5. An optional operation is useless if the next operation would have led to the same state without it.
6. If the model says that the next observer cannot become legal from this state without a reset, and all resets that
   can precede it are placed, there is nothing to look for.
7. A state that cannot come again is not left before all operations that need it are placed: there is nothing to look
   for if the next operation must leave it while one that needs it has not been called, and if one that needs it leads
   out of it, that is the way out.

Why this loses no order: let C be, of all configurations that were entered, one with the shortest way to the end. By 2-7
the first step of some equally short way leads to a configuration that was entered or is dominated by one, with a
shorter way; so C is the end.   Sources: Wing & Gong 1993; Lowe 2017; Horn & Kroening 2015.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from jepsen.history import NEVER, Operation
from jepsen.model import ANY, ILLEGAL, Bound, Model, State
from jepsen.windows import Traits, Windows

CHECK_EVERY = 512
"""Configurations between two looks at the clock."""
COMPARE_MAX = 100
"""Sets of used optional operations that are compared with a new one. Missing one costs time, never the verdict."""
REMEMBER_BACK = 64
"""How many operations in a row must know a longer path before the rest of a path is taken to know one, too."""
CONFIGURATION_BYTES = 320
STATE_BYTES = 500
"""What an entered configuration costs (key, integers, list, path), and a state besides itself (number, transitions).
Upper bounds, measured with tracemalloc: 70 to 870 bytes together for each configuration."""


class Answer(Enum):
    LEGAL = "legal"
    ILLEGAL = "illegal"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Limits:
    """Bounds of a whole check: the moment (time.monotonic) to stop at, and bytes for what a search remembers."""

    deadline: float = float("inf")
    memory_bytes_max: int = 4 << 30


@dataclass(slots=True)
class Result:
    answer: Answer
    order: list[Operation] = field(default_factory=list)
    """LEGAL: a linearization, optional operations that it does not need left out."""
    configurations: int = 0
    why: str = ""
    longest: dict[int, list[Operation]] = field(default_factory=dict)
    """If asked for and not LEGAL: operation index -> the longest partial linearization that contains it."""


_Path = tuple["_Path", int] | None
"""The placed operations, last first: the rank of one that must be placed, ~place of an optional one."""
_Configuration = tuple[int, int, int, int, int, _Path]
"""r, placed, used, state, the state before the optional operation that led here (or -1), path."""


class Search:
    """One part of a history. `run` may be called once."""

    def __init__(self, bound: Bound, limits: Limits, *, trace: bool = False) -> None:
        self._model: Model = bound.model
        self._limits = limits
        self._effects: dict[Hashable, int] = {}
        self._examples: list[Operation] = []  # by effect number
        self._must = sorted((one for one in bound.operations if one.ret < NEVER), key=lambda one: (one.ret, one.index))
        self._may = sorted((one for one in bound.operations if one.ret >= NEVER), key=lambda one: one.call)
        self._must_effect = [self._effect_of(one) for one in self._must]
        self._may_effect = [self._effect_of(one) for one in self._may]
        observes = [self._model.observer(one) for one in self._examples]
        eager = [self._model.eager(one) for one in self._examples]
        absorbed = [self._model.absorbed(one) for one in self._examples]
        self._traits = Traits(
            observes=observes,
            at_once=[any(three) for three in zip(observes, eager, absorbed, strict=True)],
            eager=eager,
            resets=[self._model.resets(one) for one in self._examples],
        )
        self._windows = Windows(self._must, self._may, self._must_effect, self._traits)
        self._ranks_of = self._by_effect()
        self._optional_groups: dict[int, list[tuple[int, list[int]]]] = {}
        self._may_resets = sum(
            1 << place for place, effect in enumerate(self._may_effect) if self._traits.resets[effect]
        )
        self._needs = [self._model.needs(one) for one in self._examples]
        self._last_need, self._ways_out = self._needed()
        self._stay_until: list[int] = []  # by state number: the last call that needs a state that cannot come again
        self._way_out: list[int] = []  # by state number: the effect that leads out of such a state, or -1
        self._states: dict[State, int] = {}
        self._values: list[State] = []
        self._rows: list[dict[int, int]] = []  # state number -> effect number -> next state number, or -1
        self._looks_ahead = type(self._model).reachable is not Model.reachable
        self._watched = [rank for rank, effect in enumerate(self._must_effect) if self._traits.observes[effect]]
        self._next_watched = self._following(self._watched)
        self._resets_before = self._count_resets() if self._looks_ahead else {}
        self._reach: dict[tuple[int, int], bool] = {}
        self._bytes = 0
        self._longest: dict[int, tuple[tuple[int, int], _Path]] | None = {} if trace else None

    # -- preparation ---------------------------------------------------------------------------------------------

    def _effect_of(self, operation: Operation) -> int:
        effect = self._model.effect(operation)
        number = self._effects.setdefault(effect, len(self._examples))
        if number == len(self._examples):
            self._examples.append(operation)
        return number

    def _by_effect(self) -> list[list[int]]:
        """For each effect the ranks that have it."""
        ranks: list[list[int]] = [[] for _ in self._examples]
        for rank, effect in enumerate(self._must_effect):
            ranks[effect].append(rank)
        return ranks

    def _following(self, watched: list[int]) -> list[int]:
        """For each rank the place in `watched` of the first one that is not lower."""
        places = []
        place = 0
        for rank in range(len(self._must)):
            if place < len(watched) and watched[place] < rank:
                place += 1
            places.append(place)
        return places

    def _count_resets(self) -> dict[int, int]:
        """For each watched rank how many resets are called before it returns."""
        calls = sorted(
            [one.call for one, effect in zip(self._must, self._must_effect, strict=True) if self._traits.resets[effect]]
            + [one.call for one, effect in zip(self._may, self._may_effect, strict=True) if self._traits.resets[effect]]
        )
        return {rank: bisect_left(calls, self._must[rank].ret) for rank in self._watched}

    def _needed(self) -> tuple[dict[State, int], dict[State, int]]:
        """For each state that some operation needs the last call of an observer, and the effect that leads out."""
        last: dict[State, int] = {}
        out: dict[State, int] = {}
        for one, effect in zip(self._must, self._must_effect, strict=True):
            state = self._needs[effect]
            if state is ANY:
                continue
            if self._traits.observes[effect]:
                last[state] = max(last.get(state, -1), one.call)
            elif self._model.step(state, one) not in (state, ILLEGAL):
                out[state] = effect
        return last, out

    def _optional_at(self, count: int) -> list[tuple[int, list[int]]]:
        """The first `count` optional operations by effect: the number of the effect, bits in the order of the calls."""
        found = self._optional_groups.get(count)
        if found is None:
            groups: dict[int, list[int]] = {}
            for place in range(count):
                groups.setdefault(self._may_effect[place], []).append(1 << place)
            found = self._optional_groups[count] = list(groups.items())
        return found

    # -- states --------------------------------------------------------------------------------------------------

    def _number(self, state: State) -> int:
        number = self._states.setdefault(state, len(self._values))
        if number == len(self._values):
            self._values.append(state)
            self._rows.append({})
            once = not self._model.recurs(state)
            self._stay_until.append(self._last_need.get(state, -1) if once else -1)
            self._way_out.append(self._ways_out.get(state, -1) if once else -1)
            self._bytes += sys.getsizeof(state) + STATE_BYTES
        return number

    def _step(self, state: int, effect: int) -> int:
        after = self._model.step(self._values[state], self._examples[effect])
        number = -1 if after is ILLEGAL else self._number(after)
        self._rows[state][effect] = number
        return number

    def _hopeless(self, r: int, k: int, u: int, state: int) -> bool:
        """Rule 6 for the first observer (by return) that is not placed."""
        opened = self._windows.at(r)
        placed = {rank for bit, _, rank in opened.at_once if k & bit}
        for place in range(self._next_watched[r], len(self._watched)):
            rank = self._watched[place]
            if rank in placed:
                continue
            effect = self._must_effect[rank]
            reachable = self._reach.get((state, effect))
            if reachable is None:
                reachable = self._model.reachable(self._values[state], self._examples[effect])
                self._reach[state, effect] = reachable
            if reachable:
                return False
            done = opened.resets_below + (k & opened.resets).bit_count() + (u & self._may_resets).bit_count()
            return done == self._resets_before[rank]
        return False

    # -- the search ----------------------------------------------------------------------------------------------

    def run(self) -> Result:
        seen: dict[tuple[int, int, int], list[int]] = {}
        stack: list[_Configuration] = [(0, 0, 0, self._number(self._model.initial()), -1, None)]
        entered = 0
        while stack:
            r, k, u, s, previous, path = stack.pop()
            r, k, s, path, moved = self._place_at_once(r, k, s, path)
            if r == len(self._must):
                return Result(Answer.LEGAL, self._order(path), entered)
            used = seen.get((r, k, s))
            if used is None:
                seen[r, k, s] = [u]
            elif _dominated(used, u):
                continue
            else:
                used.append(u)
            entered += 1
            if not entered % CHECK_EVERY:
                why = self._out_of_bounds(entered)
                if why:
                    return Result(Answer.UNKNOWN, [], entered, why, self._traced())
            if self._must_stay(r, s) or (self._looks_ahead and self._hopeless(r, k, u, s)):
                pushed = False
            else:
                pushed = self._push(stack, r, k, u, s, -1 if moved else previous, path)
            if self._longest is not None and not pushed:
                self._remember(path)
        return Result(Answer.ILLEGAL, [], entered, "no order is legal", self._traced())

    def _place_at_once(self, r: int, k: int, s: int, path: _Path) -> tuple[int, int, int, _Path, bool]:
        """Rule 2, and on to the first operation that is not placed."""
        row = self._rows[s]
        moved = False
        while r < len(self._must):
            opened = self._windows.at(r)
            before = s
            for bit, effect, rank in opened.at_once:
                if not k & bit:
                    after = row.get(effect)
                    after = self._step(s, effect) if after is None else after
                    if after == s or (after >= 0 and self._traits.eager[effect]):
                        k |= bit
                        path = (path, rank)
                        moved = True
                        if after != s:
                            s, row = after, self._rows[after]
            if s != before:
                continue  # what comes earlier in the list may be legal now
            if not k & opened.own:
                break
            k ^= opened.own
            r += 1
        return r, k, s, path, moved

    def _must_stay(self, r: int, s: int) -> bool:
        """Rule 7: whether the next operation leads out of a state that another one, not called yet, needs."""
        if self._stay_until[s] < self._must[r].ret:
            return False
        effect = self._must_effect[r]
        after = self._rows[s].get(effect)
        return (self._step(s, effect) if after is None else after) != s

    def _push(self, stack: list[_Configuration], r: int, k: int, u: int, s: int, previous: int, path: _Path) -> bool:
        """What may go next, the best choice last, since it is popped first. Whether any of it must be placed."""
        opened = self._windows.at(r)
        row = self._rows[s]
        out = self._way_out[s]
        moves: list[tuple[int, int, int]] = []  # effect, bit, rank
        if out >= 0:
            moves = self._leaving(r, k, out)
        else:
            for effect, members in self._windows.groups(opened):
                for bit, rank in members:
                    if not k & bit:
                        moves.append((effect, bit, rank))
                        break
            if opened.optional:
                self._push_optional(stack, opened.optional, {move[0] for move in moves}, (r, k, u, s, previous, path))
        height = len(stack)
        for effect, bit, rank in moves:
            after = row.get(effect)
            after = self._step(s, effect) if after is None else after
            if after >= 0 and not (previous >= 0 and self._same(previous, effect, after)):
                stack.append((r, k | bit, u, after, -1, (path, rank)))
        return len(stack) > height

    def _leaving(self, r: int, k: int, out: int) -> list[tuple[int, int, int]]:
        """Rule 7: the first open operation with the only effect that may lead out of a state."""
        ret = self._must[r].ret
        for rank in self._ranks_of[out]:
            if rank >= r and self._must[rank].call < ret and not k & self._windows.bits[rank]:
                return [(out, self._windows.bits[rank], rank)]
        return []

    def _push_optional(
        self, stack: list[_Configuration], count: int, taken: set[int], configuration: _Configuration
    ) -> None:
        """The first of the optional operations of each effect, unless one that must be placed has the same effect."""
        r, k, u, s, previous, path = configuration
        row = self._rows[s]
        for effect, bits in self._optional_at(count):
            if effect in taken:
                continue
            for bit in bits:
                if not u & bit:
                    after = row.get(effect)
                    after = self._step(s, effect) if after is None else after
                    if after not in (-1, s) and not (previous >= 0 and self._same(previous, effect, after)):
                        stack.append((r, k, u | bit, after, s, (path, ~(bit.bit_length() - 1))))
                    break

    def _same(self, previous: int, effect: int, after: int) -> bool:
        """Rule 5: whether the effect leads from the state before the optional operation to the same state."""
        other = self._rows[previous].get(effect)
        return (self._step(previous, effect) if other is None else other) == after

    def _out_of_bounds(self, entered: int) -> str:
        if time.monotonic() > self._limits.deadline:
            return f"out of time after {entered} configurations"
        if entered * CONFIGURATION_BYTES + self._bytes > self._limits.memory_bytes_max:
            return f"out of memory after {entered} configurations"
        return ""

    # -- what was found ------------------------------------------------------------------------------------------

    def _operation(self, number: int) -> Operation:
        return self._must[number] if number >= 0 else self._may[~number]

    def _order(self, path: _Path) -> list[Operation]:
        order = []
        while path is not None:
            path, number = path
            order.append(self._operation(number))
        order.reverse()
        return order

    def _remember(self, path: _Path) -> None:
        """Keeps, for each operation in a path that leads no further, the longest such path."""
        assert self._longest is not None
        placed = optional = 0
        step = path
        while step is not None:
            placed += step[1] >= 0
            optional += step[1] < 0
            step = step[0]
        length = (placed, -optional)  # what had to be placed counts; what need not have been, not
        step, old = path, 0
        while step is not None and old < REMEMBER_BACK:
            best = self._longest.get(step[1])
            if best is None or best[0] < length:
                self._longest[step[1]] = (length, path)
                old = 0
            else:
                old += 1
            step = step[0]

    def _traced(self) -> dict[int, list[Operation]]:
        orders: dict[int, list[Operation]] = {}  # by id of the path: many operations share one
        found = {}
        for number, (_, path) in (self._longest or {}).items():
            if id(path) not in orders:
                orders[id(path)] = self._order(path)
            found[self._operation(number).index] = orders[id(path)]
        return found


def _dominated(used: list[int], u: int) -> bool:
    """Whether one of the recent sets is a subset."""
    unused = ~u
    return any(not other & unused for other in used[-COMPARE_MAX:])
