"""Which nodes this one must be connected with: those that have a replica of a group that has one here.

So what a node's connections cost depends on what it holds, not on how many nodes there are.

Invariant: `nodes` gives every node of the descriptors of all replicas here, learners included, and those that were
           among them less than `linger_ms` ago: a replica that was removed has to hear of it, and may be needed by a
           member that crashed before it wrote the removal down (host_driver).
Called by: host_core (settle, drop), whoever tells the transport (nodes).
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from kvstore.base.shards import ShardDescriptor


class Described(Protocol):
    """What is looked at of a ShardState."""

    @property
    def descriptor(self) -> ShardDescriptor: ...


class Neighbours:
    def __init__(self, node: str, *, linger_ms: int) -> None:
        """`node`: the id of this one, which is no neighbour of its own."""
        self.anew = False  # `nodes` has one more since the driver looked
        self._own = node
        self._linger_ms = linger_ms
        self._seen: dict[int, ShardDescriptor] = {}  # by group
        self._groups: Counter[str] = Counter()  # shared with each node; only those above 0
        self._former: dict[str, int] = {}  # node -> boot clock at which the last shared group was gone

    def settle(self, group: int, state: Described | None, now_ms: int) -> None:
        """Something has happened to the group's replica here."""
        descriptor = None if state is None else state.descriptor
        before = self._seen.get(group)
        if descriptor is before:
            return
        if descriptor is None:
            self.drop(group, now_ms)
            return
        self._seen[group] = descriptor
        for place in descriptor.replicas:  # added first, so that who stays is never gone
            self._add(place.node)
        if before is not None:
            self._leave(before, now_ms)

    def drop(self, group: int, now_ms: int) -> None:
        """There is no replica of it here any more."""
        before = self._seen.pop(group, None)
        if before is not None:
            self._leave(before, now_ms)

    def nodes(self, now_ms: int) -> list[str]:
        """By id."""
        self.anew = False
        self._former = {node: at for node, at in self._former.items() if now_ms - at < self._linger_ms}
        return sorted({**self._groups, **self._former})

    def _add(self, node: str) -> None:
        if node == self._own:
            return
        self._groups[node] += 1
        if self._groups[node] == 1 and self._former.pop(node, None) is None:
            self.anew = True

    def _leave(self, descriptor: ShardDescriptor, now_ms: int) -> None:
        for place in descriptor.replicas:
            if place.node == self._own:
                continue
            self._groups[place.node] -= 1
            if not self._groups[place.node]:
                del self._groups[place.node]
                self._former[place.node] = now_ms
