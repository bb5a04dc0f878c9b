"""What became of each element of a growing set: kept, lost, stale, read twice, read though nobody added it.

Where a linearizability checker says only "no", these counts say what went wrong, for sets of any size, in one pass.
An element is *known* from the moment its addition was acknowledged, or the first read that had it returned.
  lost        known, and missing from the last read that was called later
  stale       known, missing from a read that was called later, and there again in a still later one
  duplicated  more than once in one read
  unexpected  read, but nobody ever tried to add it; `risen` if the addition was answered to have certainly failed
  unread      acknowledged, but no read was called later: nothing is known of it
  recovered   the outcome of its addition is unknown, and it was read
Source: jepsen.checker/set-full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from jepsen.history import NEVER, History, Operation, Outcome, Value
from jepsen.models.collections import elements
from jepsen.narration import value_text

SHOWN_MAX = 10
"""Elements of each kind that are named in words."""

Element = tuple[Value, Value]  # key of the set, element


@dataclass(slots=True)
class SetCounts:
    attempted: int = 0
    acknowledged: int = 0
    reads: int = 0
    lost: list[Element] = field(default_factory=list)
    stale: list[Element] = field(default_factory=list)
    duplicated: list[Element] = field(default_factory=list)
    unexpected: list[Element] = field(default_factory=list)
    risen: list[Element] = field(default_factory=list)
    unread: list[Element] = field(default_factory=list)
    recovered: list[Element] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Of a set that promises linearizable reads; one that promises less may allow what is stale."""
        return not (self.lost or self.stale or self.duplicated or self.unexpected or self.risen)

    def numbers(self) -> dict[str, int]:
        found = {"attempted": self.attempted, "acknowledged": self.acknowledged, "reads": self.reads}
        return found | {name: len(getattr(self, name)) for name in WORST_FIRST}

    def lines(self) -> Iterator[str]:
        yield ", ".join(f"{count} {name}" for name, count in self.numbers().items())
        for name in WORST_FIRST[:5]:
            wrong: list[Element] = getattr(self, name)
            if wrong:
                more = f" and {len(wrong) - SHOWN_MAX} more" if len(wrong) > SHOWN_MAX else ""
                yield f"{name}: {', '.join(_text(one) for one in wrong[:SHOWN_MAX])}{more}"


WORST_FIRST = ("lost", "unexpected", "risen", "duplicated", "stale", "unread", "recovered")


def _text(element: Element) -> str:
    key, value = element
    return value_text(value) if key is None else f"{value_text(value)} of {value_text(key)}"


def count(history: History) -> SetCounts:
    """Counts over all keys. `add` has an element, `read` answers all elements as a list; all else is skipped."""
    counts = SetCounts()
    by_key: dict[Value, list[Operation]] = {}
    for one in history.operations:
        if one.f == "add" or (one.f == "read" and one.known and not one.silent):
            by_key.setdefault(one.key, []).append(one)
    for key, operations in by_key.items():
        _count_key(counts, key, operations)
    return counts


def _count_key(counts: SetCounts, key: Value, operations: list[Operation]) -> None:
    adds = [one for one in operations if one.f == "add"]
    reads = sorted((one for one in operations if one.f == "read"), key=lambda one: one.call)
    present = [elements(read) for read in reads]
    counts.attempted += len(adds)
    counts.reads += len(reads)
    acknowledged = {one.input: one.ret for one in reversed(adds) if one.known}
    counts.acknowledged += len(acknowledged)
    _count_reads(counts, key, adds, reads)
    known = dict(acknowledged)
    for read, there in zip(reads, present, strict=True):
        for element in there:
            known[element] = min(known.get(element, NEVER), read.ret)
    fates = _fates(known, reads, present)
    for element, (missed, seen) in fates.items():
        if missed > seen:
            counts.lost.append((key, element))
        elif missed >= 0:
            counts.stale.append((key, element))
    last_call = reads[-1].call if reads else -1
    counts.unread += [(key, element) for element, at in acknowledged.items() if at > last_call]


def _count_reads(counts: SetCounts, key: Value, adds: list[Operation], reads: list[Operation]) -> None:
    tried = {one.input for one in adds if one.outcome is not Outcome.FAILED}
    answered = {one.input for one in adds if one.known}
    failed = {one.input for one in adds} - tried
    seen: dict[Value, None] = {}  # in the order of the first read: the same history gives the same words
    twice: dict[Value, None] = {}
    for read in reads:
        assert isinstance(read.output, tuple | frozenset)
        seen |= dict.fromkeys(read.output)
        twice |= {element: None for element, times in Counter(read.output).items() if times > 1}
    counts.duplicated += [(key, element) for element in twice]
    for element in seen:
        if element in failed:
            counts.risen.append((key, element))
        elif element not in tried:
            counts.unexpected.append((key, element))
        elif element not in answered:
            counts.recovered.append((key, element))


def _fates(
    known: dict[Value, int], reads: list[Operation], present: list[frozenset[Value]]
) -> dict[Value, tuple[int, int]]:
    """Element -> numbers of the last read that should have had it and had not, and of the last that had it (or -1)."""
    fates = dict.fromkeys(known, (-1, -1))
    waiting = sorted(known.items(), key=lambda item: item[1], reverse=True)
    expected: set[Value] = set()
    for number, (read, there) in enumerate(zip(reads, present, strict=True)):
        while waiting and waiting[-1][1] < read.call:
            expected.add(waiting.pop()[0])
        for element in expected - there:
            fates[element] = (number, fates[element][1])
        for element in there:
            fates[element] = (fates[element][0], number)
    return fates
