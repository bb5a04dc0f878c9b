"""The reads that wait at one replica: by a read index, or by the leader's lease.

Invariant: a read is answered from a state that has everything that was committed anywhere when it was asked for
           (`floor`), whoever leads by now. That is more than linearizability asks, and the protocol gives it.
Called by: replica.py, workload.py. Recipes: the docstring of the package raft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raft.errors import RaftError
from raft.types import ReadState

if TYPE_CHECKING:
    from .replica import Replica


@dataclass(slots=True)
class Read:
    kind: str
    floor: int  # what was committed when the read began
    index: int = 0  # what must be applied before it is answered
    term: int = 0  # lease reads: in which it was taken up


class Reads:
    """Those of one process; they do not outlive it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._asked: dict[bytes, Read] = {}
        self._waiting: list[Read] = []  # for the index to be applied
        self._lease_waiting: list[Read] = []

    def on_applied(self, index: int) -> None:
        replica = self._replica
        checker = replica.world.checker
        for read in self._waiting:
            if read.index <= index:
                checker.on_read(replica, read.kind, index, read.floor)
        self._waiting = [read for read in self._waiting if read.index > index]
        if self._lease_waiting:
            self._read_values(index)

    # -- by read index

    def ask(self, context: bytes, floor: int, kind: str) -> None:
        try:
            self._replica.node.read_index(context)
        except RaftError:
            return
        self._asked[context] = Read(kind, floor)
        self._replica.turn_over()

    def on_read_state(self, answer: ReadState) -> None:
        read = self._asked.pop(answer.context, None)
        if read is None:
            return  # answered twice, or asked by the process before this one
        replica = self._replica
        checker = replica.world.checker
        checker.check_read(replica, read.kind, answer.index, read.floor)
        if answer.index > replica.machine.index:
            read.index = answer.index
            self._waiting.append(read)
        else:
            checker.on_read(replica, read.kind, replica.machine.index, read.floor)

    # -- by lease

    def ask_lease(self, floor: int) -> None:
        """The request is being looked at; it may have waited in a socket since `floor` was committed.

        `turn_ms` was read when this turn of the loop began, so the first check is only a filter.
        """
        replica = self._replica
        node = replica.node
        if not node.lease_valid(replica.turn_ms):
            return
        self._lease_waiting.append(Read("lease", floor, index=node.commit, term=node.term))
        self._read_values(replica.machine.index)

    def _read_values(self, index: int) -> None:
        """The value is read at `index`; the lease is checked after that, perhaps after a pause."""
        ready = [read for read in self._lease_waiting if read.index <= index]
        self._lease_waiting = [read for read in self._lease_waiting if read.index > index]
        replica = self._replica
        world = replica.world
        for read in ready:
            if world.rng.random() < 0.1:
                world.pause(replica)
            world.later(world.rng.randrange(200), replica, self._answer_lease_read, (read, index))

    def _answer_lease_read(self, read: Read, index: int) -> None:
        if self.lease_still_held(read.term):
            self._replica.world.checker.on_read(self._replica, read.kind, index, read.floor)

    def lease_still_held(self, term: int) -> bool:
        """By a clock read *after* the value: a pause in between would make the value stale."""
        node = self._replica.node
        return node.term == term and node.lease_valid(self._replica.clock_ms())
