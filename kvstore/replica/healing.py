"""How a replica that lost log records becomes a voter again.

It may have acknowledged what it lost. If it voted at once, an acknowledged write could be lost with it (amnesia), so
the core is barred from voting and campaigning until this replica holds again all that was committed when it asked.

Invariant: the bar is lifted only once a read index that the leader confirmed *after* this start is durable and
           committed here, in the term in which it was asked; the leader forgot the old acknowledgements before that.
Called by: replica.
"""

from __future__ import annotations

import logging

from kvstore.storage.protocol import ReplicaIdentity
from raft import ProposalDropped, RawNode, ReadState

logger = logging.getLogger(__name__)

_CONTEXT = b"heal."
RETRY_TICKS = 10


class Healing:
    """The state of one replica's healing; does nothing for a sound one."""

    __slots__ = ("_asked_term", "_attempt", "_target", "_ticks", "damaged", "healed")

    def __init__(self, identity: ReplicaIdentity) -> None:
        self.damaged = identity.damaged_at > 0
        self.healed = False  # set once; the host then persists a sound identity
        self._attempt = 0
        self._asked_term = 0
        self._target = 0
        self._ticks = 0

    def tick(self, raw: RawNode) -> None:
        """Ask for a read index now and then, and lift the bar once it is reached."""
        if not self.damaged:
            return
        if (
            self._target
            and self._asked_term == raw.term
            and raw.commit >= self._target
            and raw.durable_index >= self._target
        ):
            raw.unbar()
            self.damaged = False
            self.healed = True
            return
        self._ticks -= 1
        if self._ticks <= 0 and raw.leader_id:
            self._ticks = RETRY_TICKS
            self._attempt += 1
            self._asked_term = raw.term
            self._target = 0
            try:
                raw.read_index(_CONTEXT + self._attempt.to_bytes(8, "big"))
            except ProposalDropped:
                self._asked_term = 0

    def on_read_state(self, state: ReadState) -> bool:
        """True when the answer was for the healing."""
        if not state.context.startswith(_CONTEXT):
            return False
        current = state.context == _CONTEXT + self._attempt.to_bytes(8, "big")
        if self.damaged and current and state.term == self._asked_term:
            self._target = max(state.index, 1)
        return True
