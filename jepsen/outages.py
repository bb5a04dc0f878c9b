"""When nobody was answered: stretches of a run without a single answered operation, and the faults of that time.

A fault may cost a moment of service; one that costs more is worth a look, though every answer was right.
Times are nanoseconds since the beginning of the run, by the clock of the clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jepsen.history import Annotation, History

NS = 1_000_000_000
SHORTEST_NS = 2 * NS
"""An election takes about as long; less is not worth a line."""
AFTERMATH_NS = 5 * NS
"""A fault that was over this long before is no reason any more."""


@dataclass(frozen=True, slots=True)
class Outage:
    begin_ns: int
    end_ns: int
    faults: tuple[str, ...]  # that were there, or had been shortly before

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / NS

    @property
    def explained(self) -> bool:
        return bool(self.faults)

    def document(self) -> dict[str, object]:
        return {
            "at_seconds": round(self.begin_ns / NS, 1),
            "seconds": round(self.seconds, 1),
            "faults": list(self.faults),
        }


def find(histories: Iterable[History]) -> list[Outage]:
    """The longest first. The faults are the same in all histories of a run."""
    every = list(histories)
    faults = every[0].annotations if every else []
    operations = [one for history in every for one in history.operations]
    begun = min((one.call_ns for one in operations if one.call_ns is not None), default=0)
    answers = sorted(one.ret_ns for one in operations if one.known and one.ret_ns is not None)
    outages = []
    last = begun
    for answer in answers:
        if answer - last >= SHORTEST_NS:
            outages.append(Outage(last, answer, _faults_in(faults, last, answer)))
        last = max(last, answer)
    return sorted(outages, key=lambda one: one.begin_ns - one.end_ns)


def _faults_in(faults: Sequence[Annotation], begin_ns: int, end_ns: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for fault in faults:
        if fault.begin_ns is None or fault.begin_ns > end_ns:
            continue
        if fault.end_ns is None or fault.end_ns + AFTERMATH_NS > begin_ns:
            found[fault.f] = None
    return tuple(found)
