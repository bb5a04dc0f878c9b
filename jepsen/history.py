"""What happened: operations with the moments of their calls and returns, paired from a stream of events.

Invariant: the order of the events is the only clock. Operation A precedes B exactly when A's completion comes before
           B's invocation; `time` is for pictures, since clocks of different processes lie.
Invariant: a process has at most one open operation, and says nothing more once the outcome of one is unknown.
Invariant: what is in an operation is hashable (lists become tuples), so that it can be part of a model's state.

Outcomes. OK: it happened, with this answer. FAILED: it certainly did not happen. UNKNOWN: it may take effect at any
moment after its call, however late, or never; its `ret` is NEVER. An operation without a completion is UNKNOWN.
Whatever a process says that is not numbered by an integer (a nemesis) is an annotation on the time axis.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum

NEVER = 1 << 60
"""The position of a return that does not come: later than every event."""

Value = Hashable


class HistoryError(ValueError):
    """The text is no history. `line` counts from 1 (0: the text as a whole)."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}" if line else why)
        self.line = line
        self.why = why


class Outcome(Enum):
    OK = "ok"
    FAILED = "fail"
    UNKNOWN = "info"


@dataclass(slots=True)
class Event:
    """One line of a history, already in the terms of this module whatever the file's format was.

    `silent` marks a completion that answers nothing (a read that returned no information): the operation has an OK
    outcome for the eye, and constrains nothing.
    """

    line: int
    process: int | str
    type: str  # invoke, ok, fail, info
    f: str
    key: Value = None
    value: Value = None
    time: int | None = None  # ns since the start of the run
    error: str | None = None
    observed: tuple[Value, ...] | None = None
    """Of a refusal: () says that the expectation was wrong, (v,) also that v was there instead."""
    silent: bool = False


@dataclass(slots=True)
class Operation:
    """A call and what became of it. `call` and `ret` are positions in the order of all events."""

    index: int  # position among the operations, by call
    process: int
    f: str
    key: Value
    input: Value
    output: Value
    outcome: Outcome
    call: int
    ret: int
    call_ns: int | None = None
    ret_ns: int | None = None
    error: str | None = None
    refused: tuple[Value, ...] | None = None
    """Event.observed of an operation that was refused for what it saw: OK as an observation, without an effect."""
    silent: bool = False
    line: int = 0
    heard: int = NEVER  # where the process said that it does not know the outcome; for pictures only

    @property
    def known(self) -> bool:
        return self.outcome is Outcome.OK

    def weakened(self) -> Operation:
        """The same call with nothing known of its outcome. A valid history stays valid with it (the converse not)."""
        return Operation(
            index=self.index,
            process=self.process,
            f=self.f,
            key=self.key,
            input=self.input,
            output=None,
            outcome=Outcome.UNKNOWN,
            call=self.call,
            ret=NEVER,
            call_ns=self.call_ns,
            ret_ns=self.ret_ns,
            line=self.line,
            heard=self.heard if self.ret == NEVER else self.ret,
        )


@dataclass(slots=True)
class Annotation:
    """Something on the time axis that is no operation: a fault and its healing. Positions as in Operation."""

    process: str
    f: str
    value: Value
    begin: int
    end: int
    begin_ns: int | None = None
    end_ns: int | None = None


@dataclass(slots=True)
class History:
    operations: list[Operation] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    events: int = 0  # positions are below this
    meta: dict[str, object] = field(default_factory=dict)  # what the header of the file says: model, initial, seed, ...
    truncated: bool = False  # the last line was cut off, as a crashed writer leaves it

    def functions(self) -> set[str]:
        return {operation.f for operation in self.operations}


def freeze(value: object) -> Value:
    """A hashable twin of a JSON value: lists become tuples, objects tuples of sorted pairs."""
    if isinstance(value, list | tuple):
        return tuple(freeze(one) for one in value)
    if isinstance(value, dict):
        return tuple(sorted((str(name), freeze(one)) for name, one in value.items()))
    assert isinstance(value, Hashable), value
    return value


class Pairing:
    """Events in, one by one; operations out. Raises HistoryError where a process contradicts itself."""

    def __init__(self) -> None:
        self._history = History()
        self._open: dict[int, Operation] = {}
        self._gone: set[int] = set()  # processes whose last outcome is unknown
        self._faults: dict[tuple[str, str], Annotation] = {}

    def add(self, event: Event) -> None:
        position = self._history.events
        self._history.events += 1
        if isinstance(event.process, str):
            self._annotate(event, position)
        elif event.type == "invoke":
            self._invoke(event, event.process, position)
        else:
            self._complete(event, event.process, position)

    def finish(self) -> History:
        """What is still open has no completion: its outcome is unknown, a fault lasts to the end."""
        for fault in self._faults.values():
            fault.end = self._history.events
        return self._history

    def _invoke(self, event: Event, process: int, position: int) -> None:
        if process in self._open:
            raise HistoryError(event.line, f"process {process} invokes {event.f} while its last operation is open")
        if process in self._gone:
            raise HistoryError(event.line, f"process {process} goes on after an unknown outcome")
        operation = Operation(
            index=len(self._history.operations),
            process=process,
            f=event.f,
            key=event.key,
            input=event.value,
            output=None,
            outcome=Outcome.UNKNOWN,
            call=position,
            ret=NEVER,
            call_ns=event.time,
            line=event.line,
        )
        self._history.operations.append(operation)
        self._open[process] = operation

    def _complete(self, event: Event, process: int, position: int) -> None:
        operation = self._open.pop(process, None)
        if operation is None:
            raise HistoryError(event.line, f"process {process} completes an operation that it never invoked")
        if operation.f != event.f:
            raise HistoryError(event.line, f"process {process} invoked {operation.f} and completes {event.f}")
        operation.ret_ns = event.time
        operation.error = event.error
        if event.type == "info":
            operation.heard = position
            self._gone.add(process)
            return
        operation.output = event.value
        operation.silent = event.silent
        operation.refused = event.observed
        observed = event.type == "ok" or event.observed is not None
        operation.outcome = Outcome.OK if observed else Outcome.FAILED
        operation.ret = position

    def _annotate(self, event: Event, position: int) -> None:
        """An `invoke` of a nemesis opens a period, its next completion of the same f ends it; all else is a moment."""
        name = (str(event.process), event.f)
        open_fault = self._faults.pop(name, None)
        if open_fault is not None and event.type != "invoke":
            open_fault.end = position
            open_fault.end_ns = event.time
            return
        mark = Annotation(name[0], event.f, event.value, position, position, event.time, event.time)
        self._history.annotations.append(mark)
        if event.type == "invoke":
            mark.end_ns = None
            self._faults[name] = mark


def pair(events: Iterable[Event]) -> History:
    """All events of a history at once."""
    pairing = Pairing()
    for event in events:
        pairing.add(event)
    return pairing.finish()
