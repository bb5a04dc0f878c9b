"""The exactly-once table: which answers a shard still knows, and the floor below which it may have forgotten.

A session holds answers by seq. An answer leaves when the client's `low` passes it, when its window has passed, or when
the table is too large: then the oldest go first and `floor` rises to the last one that went, so that a mutation whose
answer went is refused and not done twice.

Invariant: every answer that was ever kept is known, or its seq is below its session's `low`, or its issued_at is at or
           below max(floor, stamp - window). A session is forgotten only when that holds for all that it ever kept.
Invariant: what is kept depends on the entries applied and on nothing else: expiry and eviction are exact (they take
           the least items by (issued_at, session, seq)), so that a replica that was restarted or installed agrees.
Invariant: after a split, two tables share the sessions that neither has changed since. A session is changed only by the
           table that owns it (`_own` makes a copy first), so a split costs a copy of two dictionaries, not of answers.
Invariant: a session is filed in a slice at or before that of its oldest answer (or of its `newest`, if it has none).
           It is a lower bound that is corrected when it comes up, and is not part of the state.
Called by: shard.py only.   Source: Raft thesis, 6.3; design of the sessions in docs/state.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import NamedTuple

from kvstore.base.operations import Result
from kvstore.state.session import NO_SEQ, Session, decode_session, encode_session, result_weight
from kvstore.state.shard_meta import StateLimits

SLICE_MS = 100
"""Expiry looks at whole slices of issued_at, once a slice: an answer stays up to this much longer than its window."""
EVICTED_FRACTION = 32
"""When the table is too large, this part of it goes at once: the work is shared by as many entries, and stays short."""


class _Visit(NamedTuple):
    """What a write found when it entered a session, and what it did: enough to take it back."""

    session_id: bytes
    session: Session
    new: bool
    low: int
    newest: int
    dropped: dict[int, tuple[int, Result]]  # by the rise of `low`
    added: list[int]  # seqs; the caller of `enter` appends


class Sessions:
    """All sessions of a shard."""

    __slots__ = (
        "_changed",
        "_expired_slice",
        "_filed",
        "_owner",
        "_saved",
        "_unsaved",
        "_visits",
        "answer_bytes",
        "answers",
        "floor",
        "limits",
        "table",
    )

    def __init__(self, limits: StateLimits, floor: int) -> None:
        self.limits = limits
        self.floor = floor
        self.table: dict[bytes, Session] = {}
        self.answers = 0  # in all sessions
        self.answer_bytes = 0  # of all weights
        self._filed: dict[int, dict[bytes, None]] = {}  # sessions by slice
        self._expired_slice = -1  # all slices below it have been dropped
        self._changed: dict[bytes, None] = {}  # since take_changes
        self._visits: list[_Visit] = []  # of this entry
        self._owner = object()  # what sessions that are this table's own carry
        self._unsaved: list[bytes] = []  # of a split's child: sessions that its first flush has to write all the same
        self._saved: dict[bytes, bytes] = {}  # those of them that are encoded already

    # -- a split

    def fork(self) -> Sessions:
        """The same table for the child of a split. Not within an entry."""
        assert not self._visits
        child = Sessions(self.limits, self.floor)
        self._owner = object()  # from here on nobody owns what is in both
        child.table = dict(self.table)
        child.answers = self.answers
        child.answer_bytes = self.answer_bytes
        child._filed = {at: dict(filed) for at, filed in self._filed.items()}
        child._expired_slice = self._expired_slice
        child._unsaved = list(self.table)
        return child

    def _own(self, session_id: bytes, session: Session) -> Session:
        """The session, to be changed: if another table may hold it too, a copy that takes its place here."""
        if session.owner is self._owner:
            return session
        copy = self.table[session_id] = session.copy(self._owner)
        return copy

    # -- while a write is applied

    def enter(self, session_id: bytes, low: int) -> tuple[Session, list[int]]:
        """The session, with what lies below `low` dropped, and a list for the seqs that the caller adds to its
        answers. A new session is in the table only after `keep`."""
        session = self.table.get(session_id)
        added: list[int] = []
        if session is None:
            session = Session(low, self._owner)
            self._visits.append(_Visit(session_id, session, True, low, 0, {}, added))
            return session, added
        session = self._own(session_id, session)
        low_before = session.low
        dropped = self._raise_low(session_id, session, low) if low > low_before else {}
        self._visits.append(_Visit(session_id, session, False, low_before, session.newest, dropped, added))
        return session, added

    def keep(self, session_id: bytes, session: Session, *, issued_at: int, added: int) -> None:
        """Account for `added` answers that the caller has put into session.answers."""
        self.answers += added
        self._changed[session_id] = None
        session.on_added(issued_at)
        at = issued_at // SLICE_MS
        if session_id not in self.table:
            self.table[session_id] = session
            self._file(session_id, session, at)
        elif at < session.slice:
            self._unfile(session_id, session)
            self._file(session_id, session, at)

    def weigh(self, session: Session, seq: int, result: Result) -> None:
        """Count the bytes of an answer that is not a number."""
        weight = result_weight(result)
        session.weights[seq] = weight
        self.answer_bytes += weight

    def _raise_low(self, session_id: bytes, session: Session, low: int) -> dict[int, tuple[int, Result]]:
        answers = session.answers
        dropped: dict[int, tuple[int, Result]] = {}
        if low - session.low <= len(answers):
            for seq in range(session.low, low):
                if seq in answers:
                    dropped[seq] = answers.pop(seq)
        else:  # a large step, or a session with few answers: look at the answers, not at the numbers between
            dropped = {seq: answer for seq, answer in answers.items() if seq < low}
            for seq in dropped:
                del answers[seq]
        session.low = low
        if session.weights:
            for seq in [seq for seq in session.weights if seq < low]:
                self.answer_bytes -= session.weights.pop(seq)
        self.answers -= len(dropped)
        self._changed[session_id] = None
        return dropped

    def roll_back(self) -> None:
        """Everything as it was after the entry before."""
        for visit in reversed(self._visits):
            if visit.new:
                self.table.pop(visit.session_id, None)
                continue
            session = visit.session
            for seq in visit.added:
                del session.answers[seq]
                session.weights.pop(seq, None)
            for seq, (issued_at, result) in visit.dropped.items():
                session.remember(seq, issued_at, result)
            session.low = visit.low
            session.newest = visit.newest
        self._visits.clear()
        self._recount()

    def _recount(self) -> None:
        """Make everything that follows from the table anew."""
        self._filed = {}
        self.answers = self.answer_bytes = 0
        for session_id, session in list(self.table.items()):
            self.answers += len(session.answers)
            self.answer_bytes += sum(session.weights.values())
            self._file(session_id, self._own(session_id, session), session.oldest()[0] // SLICE_MS)

    # -- after an entry

    def end_entry(self, stamp: int) -> None:
        """Drop what has expired, then what is too much. No roll_back after this."""
        self._visits.clear()
        expired = (stamp - self.limits.window_ms) // SLICE_MS
        if expired > self._expired_slice:
            self._expired_slice = expired
            self._expire(expired)
        if self._exceeds(self.limits.answers_max, self.limits.answer_bytes_max):
            self._evict()
        assert self.answers >= 0
        assert self.answer_bytes >= 0

    def _expire(self, expired: int) -> None:
        """Drop all answers issued in a slice below `expired`, and the sessions that have nothing else."""
        bound = expired * SLICE_MS
        for at in [at for at in self._filed if at < expired]:
            for session_id in self._filed.pop(at):
                session = self.table[session_id]
                if session.newest < bound:
                    self._forget(session_id, session)
                    continue
                session = self._own(session_id, session)
                while (item := session.oldest())[0] < bound:
                    self._drop(session_id, session, item[1])
                self._file(session_id, session, item[0] // SLICE_MS)

    def _evict(self) -> None:
        """Drop the oldest until there is room again for a while, and raise the floor to the last one dropped."""
        limits = self.limits
        answers_keep = limits.answers_max - limits.answers_max // EVICTED_FRACTION
        bytes_keep = limits.answer_bytes_max - limits.answer_bytes_max // EVICTED_FRACTION
        heap: list[tuple[int, bytes, int]] = []  # the oldest item of each session that was looked at
        at = min(self._filed)
        while self._exceeds(answers_keep, bytes_keep):
            while self._filed and (not heap or at <= heap[0][0] // SLICE_MS):
                for session_id in self._filed.pop(at):
                    issued_at, seq = self.table[session_id].oldest()
                    heappush(heap, (issued_at, session_id, seq))
                at = min(self._filed, default=0)
            issued_at, session_id, seq = heappop(heap)
            session = self._own(session_id, self.table[session_id])
            self.floor = max(self.floor, issued_at)
            if seq != NO_SEQ:
                self._drop(session_id, session, seq)
            if not session.answers and session.newest <= self.floor:
                self._forget(session_id, session)
            else:
                issued_at, seq = session.oldest()
                heappush(heap, (issued_at, session_id, seq))
        for issued_at, session_id, _ in heap:
            self._file(session_id, self._own(session_id, self.table[session_id]), issued_at // SLICE_MS)

    def _exceeds(self, answers_max: int, answer_bytes_max: int) -> bool:
        return self.answers + len(self.table) > answers_max or self.answer_bytes > answer_bytes_max

    def _drop(self, session_id: bytes, session: Session, seq: int) -> None:
        del session.answers[seq]
        self.answers -= 1
        self.answer_bytes -= session.weights.pop(seq, 0)
        self._changed[session_id] = None

    def _forget(self, session_id: bytes, session: Session) -> None:
        """The caller has taken it out of _filed."""
        self.answers -= len(session.answers)
        self.answer_bytes -= sum(session.weights.values())
        del self.table[session_id]
        self._changed[session_id] = None

    def _file(self, session_id: bytes, session: Session, at: int) -> None:
        session.slice = at
        self._filed.setdefault(at, {})[session_id] = None

    def _unfile(self, session_id: bytes, session: Session) -> None:
        filed = self._filed[session.slice]
        del filed[session_id]
        if not filed:
            del self._filed[session.slice]

    # -- bytes

    def prepare(self, count: int) -> bool:
        """Encode about `count` answers of the sessions that a split's child has to write at its first flush (whole
        sessions), so that the flush itself need not do all of them in one step; whether none is left."""
        while self._unsaved and count > 0:
            session_id = self._unsaved.pop()
            session = self.table.get(session_id)
            count -= 1
            if session is not None and session_id not in self._changed:
                self._saved[session_id] = encode_session(session)
                count -= len(session.answers)
        return not self._unsaved

    def take_changes(self) -> dict[bytes, bytes | None]:
        """Every session that changed since the last call, as it is to be stored; None = forgotten. The first call for
        the child of a split gives all of them."""
        self.prepare(len(self._unsaved) + self.answers)
        changes: dict[bytes, bytes | None] = dict(self._saved)
        self._saved = {}
        for session_id in sorted(self._changed):
            session = self.table.get(session_id)
            changes[session_id] = None if session is None else encode_session(session)
        self._changed = {}
        return changes

    def load(self, records: Mapping[bytes, bytes]) -> None:
        """Fill the empty table with what was stored. Raises DamagedRecord."""
        assert not self.table
        self.table = {session_id: decode_session(record, self._owner) for session_id, record in records.items()}
        self._recount()
