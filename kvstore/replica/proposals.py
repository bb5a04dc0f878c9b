"""Writes of one shard between their arrival and their applied entry.

Staged writes of a turn of the loop become one entry (or a few, cut at ENTRY_BYTES_MAX). The leader keeps what it
decoded until the entry is applied, so that nothing is decoded twice.

Invariant: `proposed` is ordered by index, then by term, and an element leaves it only when an entry is applied at its
           index, when a snapshot has passed it, or when the replica ends. One index may be there for several terms: a
           leader that was deposed, lost the end of its log and leads again uses indexes a second time, and until an
           entry is applied there nobody knows which one it will be (the old one may yet win from another log).
Invariant: a write is refused definitely only if it was never proposed, or another term's entry took its index.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kvstore.base.errors import Code
from kvstore.base.limits import ENTRY_BYTES_MAX, STAGED_BYTES_MAX
from kvstore.base.stream import Refused
from kvstore.replica.requests import SplitRequest, WriteRequest, refusal
from kvstore.state.command import Split, encode_payload
from raft import ProposalDropped, RawNode, UncommittedLimit


@dataclass(slots=True)
class ProposedEntry:
    index: int
    term: int
    stamp: int
    requests: list[WriteRequest]
    proposed_at: float  # for the commit latency

    @property
    def split(self) -> Split | None:
        """Set when the entry is a split."""
        first = self.requests[0]
        return first.split if isinstance(first, SplitRequest) else None


class Proposals:
    """The two queues of writes of one replica: staged (not in the log) and proposed (in it, not applied)."""

    __slots__ = ("proposed", "staged", "staged_bytes")

    def __init__(self) -> None:
        self.staged: list[WriteRequest] = []
        self.staged_bytes = 0
        self.proposed: deque[ProposedEntry] = deque()

    def stage(self, request: WriteRequest) -> bool:
        """Queue for the next entry; False when too much is waiting."""
        if self.staged_bytes + request.bytes > STAGED_BYTES_MAX:
            return False
        self.staged.append(request)
        self.staged_bytes += request.bytes
        return True

    def propose(self, raw: RawNode, *, stamp: int, now: float) -> int:
        """Put everything staged into entries; how many entries it took. Refuses what the core does not take."""
        staged, self.staged, self.staged_bytes = self.staged, [], 0
        groups = _cut([request for request in staged if request.reply is not None])
        payloads = [encode_payload(stamp, [request.command for request in group]) for group in groups]
        if not payloads:
            return 0
        try:
            term, first_index = raw.propose_many(payloads)
        except UncommittedLimit:
            _refuse(staged, Code.OVERLOADED, "too much is proposed and not committed yet")
            return 0
        except ProposalDropped as error:
            _refuse(staged, Code.NOT_LEADER, str(error))
            return 0
        overlaps = bool(self.proposed) and self.proposed[-1].index >= first_index
        for offset, group in enumerate(groups):
            for request in group:
                request.proposed = True
            self.proposed.append(ProposedEntry(first_index + offset, term, stamp, group, now))
        if overlaps:
            self.proposed = deque(sorted(self.proposed, key=lambda one: (one.index, one.term)))
        return len(groups)

    def take(self, *, index: int, term: int) -> ProposedEntry | None:
        """The own proposal that this applied entry is, if it is one. Refuses those that it proves lost."""
        own: ProposedEntry | None = None
        while self.proposed and self.proposed[0].index <= index:
            head = self.proposed.popleft()
            assert head.index == index, (head.index, index)  # entries are applied one by one; snapshots call skip_to
            if head.term == term:
                own = head
            else:
                _refuse(head.requests, Code.NOT_LEADER, "the leadership changed before the write was committed")
        return own

    def skip_to(self, index: int) -> None:
        """A snapshot stands for the entries up to index: what became of proposals there is not known here."""
        while self.proposed and self.proposed[0].index <= index:
            for request in self.proposed.popleft().requests:
                request.expire()

    def refuse_staged(self, code: Code, message: str) -> None:
        """A replica that does not lead proposes nothing; what only waits is refused definitely."""
        staged, self.staged, self.staged_bytes = self.staged, [], 0
        _refuse(staged, code, message)

    def give_up_sessions(self) -> None:
        """The leadership has been lost for long: what is in a session can be asked again elsewhere, and is done once
        whatever became of it. The others wait for the applied entry: for them only that tells."""
        for entry in self.proposed:
            for request in entry.requests:
                if request.write.write.session:
                    request.expire()

    def abandon(self) -> None:
        """The replica ends here. Staged writes have no effect; of the proposed ones nobody here will ever know."""
        self.refuse_staged(Code.UNAVAILABLE, "the replica is going away")
        while self.proposed:
            for request in self.proposed.popleft().requests:
                request.expire()


def _cut(requests: list[WriteRequest]) -> list[list[WriteRequest]]:
    """In order, in groups of about ENTRY_BYTES_MAX; a split is alone in its one."""
    groups: list[list[WriteRequest]] = []
    room = 0
    for request in requests:
        alone = isinstance(request, SplitRequest)
        if alone or not groups or request.bytes > room:
            groups.append([])
            room = ENTRY_BYTES_MAX
        groups[-1].append(request)
        room = 0 if alone else room - request.bytes
    return groups


def _refuse(requests: list[WriteRequest], code: Code, message: str) -> None:
    for request in requests:
        answer: Refused = refusal(request.frame_id, code, message, definite=True)
        request.answer(answer)
        request.release()
