"""Reads that wait until a quorum confirms that this replica still leads.

Invariant: the read index of a round is the commit index at the moment when the round was sent, and every read in it
           was asked before that: so what it sees is at least what was committed when it was asked.
Invariant: a peer that answers a round has heard from this leader after that round was sent, and so confirms all
           older ones too. Answers belong to a term; a new leader starts anew.
Called by: raft/leader.py.   Thesis: 6.4.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

ROUNDS_MAX = 64
"""Rounds without a confirmation; more reads wait and share the next one. A bound for a leader that is cut off."""

ROUND_BYTES = 8


@dataclass(slots=True)
class ReadRequest:
    context: bytes
    from_id: int  # who asked; this replica's own id for a local read


@dataclass(slots=True)
class ReadRound:
    number: int
    index: int
    requests: list[ReadRequest]


@dataclass(slots=True)
class ReadOnly:
    newest_round: int = 0  # counts all heartbeat rounds of this term, those without reads too
    waiting: list[ReadRequest] = field(default_factory=list)  # in no round yet
    rounds: deque[ReadRound] = field(default_factory=deque)

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.rounds

    @property
    def can_start(self) -> bool:
        return bool(self.waiting) and len(self.rounds) < ROUNDS_MAX

    def start_round(self, *, read_index: int | None) -> int:
        """The number of a new round; with a read index, everything that waits becomes a part of it."""
        self.newest_round += 1
        if read_index is not None and self.can_start:
            self.rounds.append(ReadRound(self.newest_round, read_index, self.waiting))
            self.waiting = []
        return self.newest_round

    def confirm(self, number: int) -> list[ReadRound]:
        """The rounds that a quorum has confirmed now, oldest first."""
        confirmed = []
        while self.rounds and self.rounds[0].number <= number:
            confirmed.append(self.rounds.popleft())
        return confirmed


def encode_round(number: int) -> bytes:
    return number.to_bytes(ROUND_BYTES, "big")


def decode_round(context: bytes) -> int:
    """0 for what no leader of ours has sent."""
    return int.from_bytes(context, "big") if len(context) == ROUND_BYTES else 0
