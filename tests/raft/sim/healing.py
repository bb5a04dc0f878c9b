"""How a replica that has lost log records becomes whole again. Recipe: the docstring of the package raft.

Invariant: it votes again only when everything that was committed when it asked is durable here, in the term of the
           answer. What it had acknowledged and lost is then either here again or was never committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.errors import RaftError
from raft.types import ReadState

if TYPE_CHECKING:
    from .replica import Replica

_ASK_AGAIN = 0.1  # chance at each tick: an answer may be lost


class Healing:
    """The attempt of one process."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._attempt = 0
        self._target: tuple[int, int] | None = None  # (term, index to reach)

    def tick(self) -> None:
        replica = self._replica
        if not replica.damaged:
            return
        node = replica.node
        target = self._target
        if target is not None and target[0] == node.term and min(node.commit, node.durable_index) >= target[1]:
            node.unbar()
            replica.damaged = False
            replica.world.note(replica, "whole", target)
            replica.world.checker.marks["healed damage"] += 1
        elif target is None or target[0] != node.term or replica.world.rng.random() < _ASK_AGAIN:
            self._ask()

    def _ask(self) -> None:
        self._target = None
        self._attempt += 1
        try:
            self._replica.node.read_index(self._context())
        except RaftError:
            return  # no leader is known; the next tick tries again

    def _context(self) -> bytes:
        return b"heal%d.%d" % (self._replica.incarnation, self._attempt)

    def on_read_state(self, answer: ReadState) -> bool:
        """True when it is for the healing; only the newest attempt counts."""
        if not answer.context.startswith(b"heal"):
            return False
        if self._replica.damaged and answer.context == self._context():
            self._target = (answer.term, answer.index)
        return True
