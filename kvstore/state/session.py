"""One client's answers in a shard, and their bytes.

Layout: one byte FORMAT, then the MessagePack array [low, newest, seqs, ages, results]; the three lists go together, in
the order of seq, and an age is newest - issued_at (small numbers are short).

Invariant: `newest` >= the issued_at of every answer, and `low` <= every seq.
Invariant: only its owner changes it (the table that it is in, or one that it was in when a split copied the table);
           the order by age that `oldest` keeps is made from the answers alone, so both may renew it.
Invariant: two sessions that remember the same have the same bytes, whatever the order in which the answers came.
Called by: sessions.py; shard.py reads and adds answers while it applies a write.
"""

from __future__ import annotations

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.base.operations import BatchDone, Found, Mismatch, Page, RangeDeleted, Result

FORMAT = 1
_FORMAT_BYTE = bytes([FORMAT])
_ANSWER_BYTES = 64  # what a structured answer weighs beside its values
NO_SEQ = -(1 << 64)
"""Stands in the order of age for a session without answers; no seq can be that low."""


class SessionRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    low: int
    newest: int
    seqs: list[int]
    ages: list[int]
    results: list[Result]


_encode = msgspec.msgpack.Encoder().encode
_records = msgspec.msgpack.Decoder(SessionRecord)


class Session:
    """Sessions.keep accounts for what is put into `answers`."""

    __slots__ = ("_by_age", "_by_age_until", "answers", "low", "newest", "owner", "slice", "weights")

    def __init__(self, low: int, owner: object = None) -> None:
        self.low = low  # lowest seq that the client still waits for
        self.newest = 0  # highest issued_at of all that was ever kept
        self.answers: dict[int, tuple[int, Result]] = {}  # by seq: (issued_at, result)
        self.weights: dict[int, int] = {}  # by seq: bytes, of the answers that are more than a number
        self.owner = owner  # whose it is to change; whoever else holds it changes a copy
        self.slice = 0  # where Sessions has filed it
        # The oldest answers as (issued_at, seq), the very oldest last, as far as they were sorted once; answers that
        # are gone may still stand in it, and every answer that is not in it is newer than _by_age_until.
        self._by_age: list[tuple[int, int]] = []
        self._by_age_until = 0

    def copy(self, owner: object) -> Session:
        """The same memory, for another owner."""
        copy = Session(self.low, owner)
        copy.newest = self.newest
        copy.answers = dict(self.answers)
        copy.weights = dict(self.weights)
        copy.slice = self.slice
        return copy

    def remember(self, seq: int, issued_at: int, result: Result) -> None:
        """An answer from elsewhere than the execution. The totals of the table are the caller's."""
        self.answers[seq] = (issued_at, result)
        if type(result) is not int:
            self.weights[seq] = result_weight(result)
        self.on_added(issued_at)

    def on_added(self, issued_at: int) -> None:
        """Answers of this age have been put into `answers`."""
        if issued_at > self.newest:
            self.newest = issued_at
        if issued_at <= self._by_age_until:
            self._by_age.clear()
            self._by_age_until = 0

    def oldest(self) -> tuple[int, int]:
        """(issued_at, seq) of the oldest answer, the lower seq first; (newest, NO_SEQ) if there is none."""
        if not self.answers:
            return self.newest, NO_SEQ
        by_age = self._by_age
        while True:
            if not by_age:
                # Sorted once for all that is there now, so that taking one after the other does not look at all again.
                by_age += sorted([(issued_at, seq) for seq, (issued_at, _) in self.answers.items()], reverse=True)
                self._by_age_until = by_age[0][0]
            item = by_age[-1]
            known = self.answers.get(item[1])
            if known is not None and known[0] == item[0]:
                return item
            by_age.pop()


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
    answers, newest = session.answers, session.newest
    seqs = sorted(answers)
    ages = [newest - answers[seq][0] for seq in seqs]
    results = [answers[seq][1] for seq in seqs]
    return _FORMAT_BYTE + _encode(SessionRecord(session.low, newest, seqs, ages, results))


def decode_session(data: bytes, owner: object = None) -> Session:
    """Raises DamagedRecord."""
    if data[:1] != _FORMAT_BYTE:
        raise DamagedRecord(f"session of unknown format {data[:1].hex() or 'nothing'}; this program reads {FORMAT}")
    try:
        record = _records.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"session cannot be decoded: {error}") from None
    if not len(record.seqs) == len(record.ages) == len(record.results):
        raise DamagedRecord("session has lists of unlike lengths")
    session = Session(record.low, owner)
    session.newest = record.newest
    for seq, age, result in zip(record.seqs, record.ages, record.results, strict=True):
        session.remember(seq, record.newest - age, result)
    return session
