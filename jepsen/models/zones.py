"""When a register certainly held a value: an operation of another value lies outside of that time.

For a value that was made only once, the register holds it in one stretch of time, and whatever made or saw it lies in
that stretch. So it holds the value from the first return among them to the last call, if that comes later: a zone.
Two zones cannot overlap, and other operations can be narrowed to what is left of their intervals outside of all zones.
Invariant: nothing is narrowed that an order could need.   Source: Gibbons & Korach 1997.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jepsen.history import Operation, Value
from jepsen.model import Impossible, Intervals


@dataclass(slots=True)
class Zone:
    """The register held `value` at all moments between two positions, exclusive."""

    begin: int
    end: int
    value: Value
    last: Operation  # whose call is the end


def narrow(
    intervals: Intervals,
    members: Mapping[Value, Sequence[Operation]],
    touched: Sequence[tuple[Operation, frozenset[Value]]],
    initial: Value,
) -> Impossible | None:
    """One round. `members` of each value made once; `touched` says of every operation which values it is about."""
    zones = []
    for value, operations in members.items():
        begin = -1 if value == initial else min(intervals.ret(one) for one in operations)
        last = max(operations, key=intervals.call)
        if begin < intervals.call(last):
            zones.append(Zone(begin, intervals.call(last), value, last))
    zones.sort(key=lambda zone: zone.begin)
    for number, zone in enumerate(zones[1:]):
        earlier = zones[number]
        if zone.begin < earlier.end:
            return Impossible(earlier.last, f"{zone.value!r} had been there by then, after {earlier.value!r}")
    begins = [zone.begin for zone in zones]
    for operation, values in touched:
        place = bisect_right(begins, intervals.call(operation)) - 1
        if place >= 0 and zones[place].value not in values:
            intervals.not_called_within(operation, zones[place].begin, zones[place].end)
        place = bisect_right(begins, intervals.ret(operation)) - 1
        if place >= 0 and zones[place].value not in values:
            intervals.not_returned_within(operation, zones[place].begin, zones[place].end)
    return None
