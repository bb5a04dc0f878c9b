"""The exactly-once table: which answers a shard still knows, and the floor below which it may have forgotten.

A session holds answers by seq. An answer leaves when the client's `low` passes it, when its window has passed, or when
the table is too large: then the oldest go first and `floor` rises to the last one that went, so that a mutation whose
answer went is refused and not done twice.

Invariant: every answer that was ever kept is known, or its seq is below its session's `low`, or its issued_at is at or
           below max(floor, stamp - window). A session is forgotten only when that holds for all that it ever kept.
Invariant: what is kept depends on the entries applied and on nothing else: expiry and eviction are exact (they take
           the least items by (issued_at, session, seq)), so that a replica that was restarted or installed agrees.
Invariant: `slice` of a session <= the slice of every answer in it, and of its `newest`. It is a lower bound that is
           corrected when it comes up, and is not part of the state.
Called by: shard.py only.   Source: Raft thesis, 6.3; design of the sessions in docs/state.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.base.operations import BatchDone, Found, Mismatch, Page, RangeDeleted, Result
from kvstore.state.shard_meta import StateLimits

FORMAT = 1
_FORMAT_BYTE = bytes([FORMAT])
SLICE_MS = 1_000
"""Expiry looks at whole slices of issued_at, once a slice: an answer stays up to this much longer than its window."""
_ANSWER_BYTES = 64  # what a structured answer weighs beside its values
_EMPTY_SEQ = -(1 << 64)  # stands in the order of eviction for a session without answers; no seq can be that low


class SessionRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A session as it is stored; the answers are (seq, issued_at, result) in the order of seq."""

    low: int
    newest: int
    answers: list[tuple[int, int, Result]]


_encode = msgspec.msgpack.Encoder().encode
_records = msgspec.msgpack.Decoder(SessionRecord)


class Session:
    """What is known about one client."""

    __slots__ = ("answers", "low", "newest", "slice", "weights")

    def __init__(self, low: int) -> None:
        self.low = low  # lowest seq that the client still waits for
        self.newest = 0  # highest issued_at of all that was ever kept; >= that of every answer
        self.slice = 0  # under which it is filed in Sessions._filed
        self.answers: dict[int, tuple[int, Result]] = {}  # by seq: (issued_at, result)
        self.weights: dict[int, int] = {}  # by seq: bytes, of the answers that are more than a number

    def remember(self, seq: int, issued_at: int, result: Result) -> None:
        """An answer from elsewhere than the execution. The totals of the table are the caller's."""
        self.answers[seq] = (issued_at, result)
        if type(result) is not int:
            self.weights[seq] = result_weight(result)


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

    # -- while a write is applied

    def enter(self, session_id: bytes, low: int) -> tuple[Session, list[int]]:
        """The session, with what lies below `low` dropped, and a list for the seqs that the caller adds to its
        answers. A new session is in the table only after `keep`."""
        session = self.table.get(session_id)
        added: list[int] = []
        if session is None:
            session = Session(low)
            self._visits.append(_Visit(session_id, session, True, low, 0, {}, added))
            return session, added
        low_before = session.low
        dropped = self._raise_low(session_id, session, low) if low > low_before else {}
        self._visits.append(_Visit(session_id, session, False, low_before, session.newest, dropped, added))
        return session, added

    def keep(self, session_id: bytes, session: Session, *, issued_at: int, added: int) -> None:
        """Account for `added` answers that the caller has put into session.answers."""
        self.answers += added
        self._changed[session_id] = None
        if issued_at > session.newest:
            session.newest = issued_at
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
        for session_id, session in self.table.items():
            self.answers += len(session.answers)
            self.answer_bytes += sum(session.weights.values())
            self._file(session_id, session, _oldest(session) // SLICE_MS)

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
        for at in [at for at in self._filed if at < expired]:
            for session_id in self._filed.pop(at):
                session = self.table[session_id]
                bound = expired * SLICE_MS
                if session.newest < bound:
                    self._forget(session_id, session)
                    continue
                for seq in [seq for seq, (issued_at, _) in session.answers.items() if issued_at < bound]:
                    self._drop(session_id, session, seq)
                self._file(session_id, session, _oldest(session) // SLICE_MS)

    def _evict(self) -> None:
        """Drop the oldest until there is room again for a while, and raise the floor to the last one dropped.

        More than needed is dropped (an eighth), so that the search for the oldest is not made for every entry.
        """
        answers_keep = self.limits.answers_max - self.limits.answers_max // 8
        bytes_keep = self.limits.answer_bytes_max - self.limits.answer_bytes_max // 8
        while self._exceeds(answers_keep, bytes_keep):
            at = min(self._filed)
            visited = self._filed.pop(at)
            items = self._items(visited, at)
            while items and self._exceeds(answers_keep, bytes_keep):
                issued_at, session_id, seq = heappop(items)
                session = self.table[session_id]
                self.floor = max(self.floor, issued_at)
                if seq != _EMPTY_SEQ:
                    self._drop(session_id, session, seq)
                if not session.answers:
                    if session.newest <= self.floor:
                        self._forget(session_id, session)
                    elif session.newest // SLICE_MS == at:
                        heappush(items, (session.newest, session_id, _EMPTY_SEQ))
            for session_id in visited:
                if (left := self.table.get(session_id)) is not None:
                    self._file(session_id, left, _oldest(left) // SLICE_MS)

    def _exceeds(self, answers_max: int, answer_bytes_max: int) -> bool:
        return self.answers + len(self.table) > answers_max or self.answer_bytes > answer_bytes_max

    def _items(self, session_ids: Mapping[bytes, None], at: int) -> list[tuple[int, bytes, int]]:
        """A heap of what these sessions hold in slice `at`, in the order of eviction: (issued_at, session, seq)."""
        items = []
        for session_id in session_ids:
            session = self.table[session_id]
            for seq, (issued_at, _) in session.answers.items():
                if issued_at // SLICE_MS == at:
                    items.append((issued_at, session_id, seq))
            if not session.answers and session.newest // SLICE_MS == at:
                items.append((session.newest, session_id, _EMPTY_SEQ))
        heapify(items)
        return items

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

    def take_changes(self) -> dict[bytes, bytes | None]:
        """Every session that changed since the last call, as it is to be stored; None = forgotten."""
        changes: dict[bytes, bytes | None] = {}
        for session_id in sorted(self._changed):
            session = self.table.get(session_id)
            changes[session_id] = None if session is None else encode_session(session)
        self._changed = {}
        return changes

    def load(self, records: Mapping[bytes, bytes]) -> None:
        """Fill the empty table with what was stored. Raises DamagedRecord."""
        assert not self.table
        self.table = {session_id: decode_session(record) for session_id, record in records.items()}
        self._recount()


def _oldest(session: Session) -> int:
    if not session.answers:
        return session.newest
    return min([issued_at for issued_at, _ in session.answers.values()])


def result_weight(result: Result) -> int:
    """About how many bytes a result takes in memory; a number or nil counts as nothing."""
    match result:
        case Found():
            return _ANSWER_BYTES + len(result.value)
        case Mismatch():
            return _ANSWER_BYTES + result_weight(result.current)
        case BatchDone():
            return _ANSWER_BYTES + 16 * len(result.results) + sum(map(result_weight, result.results))
        case RangeDeleted():
            return _ANSWER_BYTES + len(result.cursor or b"")
        case Page():
            return _ANSWER_BYTES + sum(_ANSWER_BYTES + len(item.key) + len(item.value) for item in result.items)
        case _:
            return 0


def encode_session(session: Session) -> bytes:
    """Equal sessions give equal bytes, in whatever order their answers came."""
    answers = [(seq, issued_at, result) for seq, (issued_at, result) in sorted(session.answers.items(), key=_seq)]
    return _FORMAT_BYTE + _encode(SessionRecord(session.low, session.newest, answers))


def _seq(item: tuple[int, tuple[int, Result]]) -> int:
    return item[0]


def decode_session(data: bytes) -> Session:
    """Raises DamagedRecord."""
    if data[:1] != _FORMAT_BYTE:
        raise DamagedRecord(f"session of unknown format {data[:1].hex() or 'nothing'}; this program reads {FORMAT}")
    try:
        record = _records.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"session cannot be decoded: {error}") from None
    session = Session(record.low)
    session.newest = record.newest
    for seq, issued_at, result in record.answers:
        session.remember(seq, issued_at, result)
    return session
