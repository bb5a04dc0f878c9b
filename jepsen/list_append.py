"""Are transactions on lists strictly serializable? Reads show the order of all appends, so no search is needed.

Operations: f is `txn`, the value a list of ["append", key, value] and ["r", key, null]; an answer has the lists in
place of null. Values are unique per key. From every read follows what was written in which order, from that who depends
on whom, and a cycle of dependencies is an anomaly (see cycles.py). Besides cycles:
  G1a  read what a failed transaction appended     G1b  read a state in the middle of another transaction
  internal  a transaction that disagrees with itself      duplicate  an element twice in a list
  incompatible-order  two reads that are no beginnings of one another     unexpected  an element that nobody appended
Invariant: valid means that none of these was found; since all orders of versions are seen, a history of these
           operations that is not strictly serializable shows at least one, unless what is wrong was never read.
Source: Kingsbury & Alvaro, Elle: Inferring Isolation Anomalies from Experimental Observations, 2020.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from jepsen import linearizability
from jepsen.counterexample import Counterexample
from jepsen.cycles import REALTIME, RW, WR, WW, Edge, Graph, find
from jepsen.history import NEVER, History, Operation, Outcome, Value
from jepsen.model import ILLEGAL, Model, ModelError, State
from jepsen.narration import value_text
from jepsen.search import Answer, Result

NAME = "list-append"
READS = ("r", "read")
List = tuple[Value, ...]


@dataclass(slots=True)
class Anomaly:
    """A name, the transactions that show it, and why, in words."""

    name: str
    operations: list[Operation]
    lines: list[str]
    edges: list[Edge] = field(default_factory=list)  # of a cycle: each leads to the next one's source


@dataclass(slots=True)
class Appended:
    """One value that a transaction appended to a list."""

    operation: Operation
    last: bool = True  # the transaction's last one to this key: others must not be seen as the end of a list


@dataclass(slots=True)
class Inference:
    """All that reads and appends say, gathered in one pass."""

    operations: list[Operation]
    appends: dict[tuple[Value, Value], Appended] = field(default_factory=dict)
    longest: dict[Value, tuple[List, Operation]] = field(default_factory=dict)  # by key: the order of all versions read
    reads: list[tuple[Operation, Value, List]] = field(default_factory=list)  # external: before own appends
    anomalies: list[Anomaly] = field(default_factory=list)

    def maker(self, key: Value, value: Value) -> Operation | None:
        """Who appended a value, unless nobody did, or one that certainly failed: both are told as what they are."""
        appended = self.appends.get((key, value))
        return None if appended is None or appended.operation.outcome is Outcome.FAILED else appended.operation

    def report(self, name: str, line: str, *operations: Operation) -> None:
        self.anomalies.append(Anomaly(name, list(operations), [line]))


@dataclass(slots=True)
class Verdict:
    valid: bool
    anomalies: list[Anomaly]
    operations: int
    seconds: float

    def summary(self) -> dict[str, object]:
        return {"valid": self.valid, "ops": self.operations, "seconds": round(self.seconds, 6)}

    def lines(self) -> Iterator[str]:
        yield f"{self.operations} transactions on lists, {self.seconds:.3f} s"
        yield f"{Lists.promise}, as far as was read" if self.valid else f"not {Lists.promise}"
        for anomaly in self.anomalies:
            yield f"{anomaly.name}:"
            yield from (f"  {line}" for line in anomaly.lines)


class Lists(Model):
    """Transactions on lists as one sequential object: what strict serializability means, and what a page shows."""

    name = NAME
    promise = "strictly serializable"
    functions = frozenset({"txn"})

    def initial(self) -> State:
        return ()

    def step(self, state: State, operation: Operation) -> State:
        assert isinstance(state, tuple)
        lists: dict[Value, List] = dict(state)
        for append, key, value in steps_of(operation):
            if append:
                lists[key] = (*lists.get(key, ()), value)
            elif operation.known and lists.get(key, ()) != (value or ()):
                return ILLEGAL
        return tuple(sorted(lists.items(), key=lambda item: str(item[0])))

    def partition(self, operation: Operation) -> None:
        return None


def is_of(history: History) -> bool:
    """Whether a history's operations are transactions that append to lists."""
    return history.functions() == {"txn"} and any(
        isinstance(step, tuple) and step[:1] == ("append",)
        for one in history.operations
        if isinstance(one.input, tuple)
        for step in one.input
    )


def shown(history: History, verdict: Verdict) -> tuple[linearizability.Verdict, list[Counterexample]]:
    """The verdict in the form that report.write shows: each anomaly's transactions are a contradiction."""
    operations = [one for one in history.operations if one.outcome is not Outcome.FAILED]
    parts = [] if verdict.anomalies else [linearizability.Part(None, operations, Result(Answer.LEGAL))]
    examples = []
    for anomaly in verdict.anomalies:
        why = "a cycle: each of these must come before the next" if anomaly.edges else anomaly.lines[0]
        why = f"{anomaly.name}, {why}"
        part = linearizability.Part(anomaly.name, operations, Result(Answer.ILLEGAL, why=why))
        core = sorted({one.index: one for one in anomaly.operations}.values(), key=lambda one: one.call)
        edges = [(edge.source, edge.target, edge.kind, edge.why) for edge in anomaly.edges]
        parts.append(part)
        examples.append(Counterexample(part, core, edges=edges))
    whole = linearizability.Verdict(verdict.valid, parts, verdict.operations, verdict.seconds, Lists())
    return whole, examples


def check(history: History) -> Verdict:
    """Raises ModelError for an operation that is no transaction on lists, or a value that is appended twice."""
    begin = time.monotonic()
    found = Inference([one for one in history.operations if one.outcome is not Outcome.FAILED])
    _gather_appends(found, history.operations)
    for one in found.operations:
        if one.known:
            _gather_reads(found, one)
    _judge_reads(found)
    graph = _dependencies(found)
    by_index = {one.index: one for one in found.operations}
    for cycle in find(graph):
        operations = [by_index[edge.source] for edge in cycle.edges]
        lines = [f"{transaction_text(by_index[edge.source])}\n    -{edge.kind}-> {edge.why}" for edge in cycle.edges]
        found.anomalies.append(Anomaly(cycle.name, operations, [*lines, transaction_text(operations[0])], cycle.edges))
    seconds = time.monotonic() - begin
    return Verdict(not found.anomalies, found.anomalies, len(history.operations), seconds)


def steps_of(one: Operation) -> Iterator[tuple[bool, Value, Value]]:
    """(is an append, key, value) of each step: as answered, or as asked if there is no answer."""
    steps = one.output if one.known else one.input
    if one.f != "txn" or not isinstance(steps, tuple):
        raise ModelError(one, "a transaction on lists is a txn with a list of steps")
    for step in steps:
        if not isinstance(step, tuple) or len(step) != 3 or step[0] not in (*READS, "append"):
            raise ModelError(one, f"{step!r} is neither [append, key, value] nor [r, key, list]")
        yield step[0] == "append", step[1], step[2]


def transaction_text(one: Operation) -> str:
    steps = " ".join(
        f"append {value_text(key)} {value_text(value)}" if append else f"r {value_text(key)} {value_text(value or ())}"
        for append, key, value in steps_of(one)
    )
    return f"T{one.index} (line {one.line}, process {one.process}) {steps}"


def _gather_appends(found: Inference, operations: list[Operation]) -> None:
    for one in operations:
        own: dict[Value, Appended] = {}
        for append, key, value in steps_of(one):
            if not append:
                continue
            if (key, value) in found.appends:
                raise ModelError(one, f"{value_text(value)} is appended to {value_text(key)} a second time")
            if key in own:
                own[key].last = False
            own[key] = found.appends[key, value] = Appended(one)


def _gather_reads(found: Inference, one: Operation) -> None:
    """Reads before a transaction's own appends tell of others; later ones must agree with what it did itself."""
    known: dict[Value, List | None] = {}  # by key: the list as this transaction must see it
    own: dict[Value, List] = {}
    for append, key, value in steps_of(one):
        if append:
            own[key] = (*own.get(key, ()), value)
            before = known.get(key)
            known[key] = (*before, value) if before is not None else None
            continue
        seen = value if isinstance(value, tuple) else ()
        expected = known.get(key)
        mine = own.get(key, ())
        wrong = expected is not None and seen != expected
        if wrong or (mine and seen[-len(mine) :] != mine):
            found.report("internal", f"{transaction_text(one)}: {value_text(key)} disagrees with its own steps", one)
            continue
        if key not in known or known[key] is None:
            found.reads.append((one, key, seen[: len(seen) - len(mine)]))
        known[key] = seen


def _judge_reads(found: Inference) -> None:
    """What a single read, or two of them, show to be wrong; and the order of the versions of each key."""
    for one, key, seen in found.reads:
        text = transaction_text(one)
        if len(set(seen)) < len(seen):
            found.report("duplicate", f"{text}: an element of {value_text(key)} is there twice", one)
        for value in seen:
            maker = found.appends.get((key, value))
            if maker is None:
                found.report("unexpected", f"{text}: nobody appended {value_text(value)} to {value_text(key)}", one)
            elif maker.operation.outcome is Outcome.FAILED:
                line = f"{text}: {value_text(value)} is of {transaction_text(maker.operation)}, which failed"
                found.report("G1a", line, one, maker.operation)
        last = found.appends.get((key, seen[-1])) if seen else None
        if last is not None and not last.last and last.operation is not one:
            line = f"{text}: {value_text(seen[-1])} is not the last that {transaction_text(last.operation)} appended"
            found.report("G1b", line, one, last.operation)
        longest, other = found.longest.get(key, ((), one))
        short, long = sorted((seen, longest), key=len)
        if long[: len(short)] != short:
            line = f"{text}: {value_text(key)} is no beginning nor continuation of that in {transaction_text(other)}"
            found.report("incompatible-order", line, one, other)
        elif key not in found.longest or len(seen) > len(longest):
            found.longest[key] = (seen, one)


def _dependencies(found: Inference) -> Graph:
    graph = Graph()
    unread: dict[Value, list[Value]] = {}  # by key: appended for certain, and in no read: after all that was read
    for (key, value), appended in found.appends.items():
        if appended.operation.known and value not in found.longest.get(key, ((),))[0]:
            unread.setdefault(key, []).append(value)
    for key, (versions, _) in found.longest.items():
        for value, after in pairwise(versions):
            _link_appends(graph, found, key, value, after)
        for after in unread.get(key, ()) if versions else ():
            _link_appends(graph, found, key, versions[-1], after)
    for one, key, seen in found.reads:
        _link_read(graph, found, one, key, seen, unread.get(key, []))
    _link_time(graph, found)
    return graph


def _link_appends(graph: Graph, found: Inference, key: Value, value: Value, after: Value) -> None:
    first, second = found.maker(key, value), found.maker(key, after)
    if first is not None and second is not None:
        why = f"appended {value_text(value)} to {value_text(key)}, after which came {value_text(after)} of"
        graph.add(first.index, second.index, WW, why)


def _link_read(graph: Graph, found: Inference, one: Operation, key: Value, seen: List, unread: list[Value]) -> None:
    maker = found.maker(key, seen[-1]) if seen else None
    if maker is not None:
        why = f"appended {value_text(seen[-1])} to {value_text(key)}, which was read by"
        graph.add(maker.index, one.index, WR, why)
    versions = found.longest.get(key, ((), one))[0]
    if versions[: len(seen)] != seen:
        return  # an incompatible order, told already: what comes next in it is not known
    following = versions[len(seen) : len(seen) + 1] or tuple(unread)
    for after in following:
        overwriter = found.maker(key, after)
        if overwriter is not None:
            why = f"read {value_text(key)} as {value_text(seen)}, without {value_text(after)} of"
            graph.add(one.index, overwriter.index, RW, why)


def _link_time(graph: Graph, found: Inference) -> None:
    """Enough edges that all others follow: those answered before a call, less those with an answered successor."""
    calls = [(one.call, 1, one) for one in found.operations]
    returns = [(one.ret, 0, one) for one in found.operations if one.ret < NEVER]
    frontier: list[Operation] = []
    for _, begins, one in sorted(calls + returns, key=_when):
        if begins:
            for earlier in frontier:
                graph.add(earlier.index, one.index, REALTIME, "was answered before the call of")
        else:
            frontier = [earlier for earlier in frontier if earlier.ret > one.call]
            frontier.append(one)


def _when(event: tuple[int, int, Operation]) -> tuple[int, int]:
    return event[0], event[1]
