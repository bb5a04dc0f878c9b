"""Reads of one shard: batched ReadIndex rounds, the leader lease, and bounded stale reads.

A round confirms, for all reads that waited when it began, an index that they must see; it costs one heartbeat to each
peer however many they are. At most two rounds are under way; what arrives meanwhile shares the next one.

Invariant: a linearizable read joins only a round that begins after the read arrived (Raft thesis, section 6.4).
Invariant: a context is never used twice; an answer counts only in the term in which it was asked.
Invariant: in lease mode the lease is checked *after* the value was read: a pause between the two would make it stale.
Invariant: `fresh_at_ms` is when the newest confirmed round began: the state applied here is at least that new.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kvstore.base.errors import Code
from kvstore.base.limits import PENDING_READS_MAX
from kvstore.replica.requests import ReadRequest, refusal
from raft import ProposalDropped, RawNode, ReadState

ROUNDS_MAX = 2
ROUND_RETRY_MS = 500  # a round that was lost on the way is begun anew, with a new context


@dataclass(slots=True)
class Round:
    context: bytes
    term: int
    began_ms: int
    requests: list[ReadRequest]
    index: int = 0  # 0 until confirmed


class Reads:
    """The reads that wait at one replica."""

    __slots__ = ("_counter", "_prefix", "asked", "confirmed", "fresh_at_ms", "rounds", "waiting")

    def __init__(self, *, prefix: bytes) -> None:
        """`prefix` tells this start of this replica from every other one that asks the same leader."""
        self._prefix = prefix
        self._counter = 0
        self.asked = 0  # linearizable reads, however they were answered: a group that is read is not idle
        self.waiting: list[ReadRequest] = []
        self.rounds: dict[bytes, Round] = {}
        self.confirmed: deque[Round] = deque()  # waiting for their index to be applied
        self.fresh_at_ms = -1

    def add(self, request: ReadRequest) -> bool:
        """False when too many wait."""
        if len(self.waiting) >= PENDING_READS_MAX:
            return False
        self.waiting.append(request)
        return True

    def begin_round(self, raw: RawNode, now_ms: int) -> None:
        """Ask for a read index for everything that waits."""
        if not self.waiting or len(self.rounds) >= ROUNDS_MAX:
            return
        self._counter += 1
        context = self._prefix + self._counter.to_bytes(8, "big")
        try:
            raw.read_index(context)
        except ProposalDropped:  # no leader known
            self.refuse_all(Code.NOT_LEADER, "no leader is known")
            return
        requests, self.waiting = self.waiting, []
        self.rounds[context] = Round(context, raw.term, now_ms, requests)

    def on_read_state(self, state: ReadState) -> None:
        round_ = self.rounds.pop(state.context, None)
        if round_ is None:
            return  # of an earlier attempt
        if round_.term != state.term:
            self.waiting = round_.requests + self.waiting
            return
        round_.index = state.index
        self.confirmed.append(round_)

    def take_served(self, applied: int) -> list[ReadRequest]:
        """The reads that may be answered from the state applied now."""
        served: list[ReadRequest] = []
        while self.confirmed and self.confirmed[0].index <= applied:
            round_ = self.confirmed.popleft()
            self.fresh_at_ms = max(self.fresh_at_ms, round_.began_ms)
            served += round_.requests
        return served

    def retry_lost(self, raw: RawNode, now_ms: int) -> None:
        """Begin anew what got no answer in time, or was asked in a term that is over."""
        for context, round_ in list(self.rounds.items()):
            if round_.term != raw.term or now_ms - round_.began_ms > ROUND_RETRY_MS:
                del self.rounds[context]
                self.waiting = [request for request in round_.requests if request.reply is not None] + self.waiting

    def refuse_all(self, code: Code, message: str) -> None:
        """Everything that waits, confirmed or not: reads are always refused definitely."""
        requests, self.waiting = self.waiting, []
        for round_ in (*self.rounds.values(), *self.confirmed):
            requests += round_.requests
        self.rounds.clear()
        self.confirmed.clear()
        for request in requests:
            request.answer(refusal(request.frame_id, code, message))
