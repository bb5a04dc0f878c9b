"""The replicated state of one shard: what the replica applies entries to and reads from.

Invariant: entries are applied in the order of their indexes, each once; applied_index is that of the last one.
Invariant: the stamp never goes back.
Invariant: range and epoch are checked after the look-up of a known answer and before execution, in the same step.
Called by: replica, on the loop's thread. Read command.py for how an entry becomes the arguments of `apply_entry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from kvstore.base.errors import Code
from kvstore.base.operations import Failure, Found, Mutation, Page, Put, ReadOperation, Result, Scan
from kvstore.base.shards import ShardDescriptor
from kvstore.state.apply import ANSWERS_TOO_LARGE, STALE_ROUTE, Executor
from kvstore.state.command import DecodedWrite, Split, Write
from kvstore.state.data import ShardData
from kvstore.state.reads import found, read_page
from kvstore.state.session import Session
from kvstore.state.sessions import Sessions
from kvstore.state.shard_meta import (
    FOUNDING_INDEX,
    FOUNDING_TERM,
    ShardMeta,
    StateLimits,
    conf_from_tuple,
    conf_to_tuple,
    decode_meta,
    encode_meta,
)
from kvstore.state.split import divide, first_members
from kvstore.storage.protocol import ShardChange, ShardImage
from raft.types import ConfState

SESSION_EXPIRED: Final = Failure(
    int(Code.SESSION_EXPIRED), "The shard no longer knows whether this mutation was done; this attempt did nothing."
)
ISSUED_AHEAD: Final = Failure(
    int(Code.INVALID), "issued_at lies too far ahead of the shard's stamp; count it from the stamp of the last answer."
)
ANSWER_HELD_BACK: Final = msgspec.structs.replace(ANSWERS_TOO_LARGE, definite=False)
"""For a mutation that an earlier attempt has executed, whose large answer does not fit in now."""


class ShardState:
    """See the module. Everything but `group` changes only by the apply methods."""

    __slots__ = (
        "_executor",
        "_limits",
        "_sessions",
        "_store",
        "applied_index",
        "applied_term",
        "conf_state",
        "descriptor",
        "dirty",
        "group",
        "stamp",
    )

    def __init__(self, group: int, image: ShardImage, meta: ShardMeta, store: ShardData) -> None:
        """Use `create` or `load`."""
        assert meta.descriptor.id == group
        self.group: Final = group
        self.descriptor = meta.descriptor
        self.stamp = meta.stamp
        self.applied_index = image.applied_index
        self.applied_term = image.applied_term
        self.conf_state = conf_from_tuple(image.conf_state)
        self.dirty = False  # anything applied since the last `change`
        self._limits = meta.limits
        self._store = store
        self._executor = Executor(store, meta.descriptor, meta.limits, meta.revision, meta.data_bytes)
        self._sessions = Sessions(meta.limits, meta.floor)

    @classmethod
    def create(
        cls,
        group: int,
        descriptor: ShardDescriptor,
        conf_state: ConfState,
        *,
        applied_index: int,
        applied_term: int,
        stamp: int,
        store: ShardData,
        limits: StateLimits | None = None,
    ) -> ShardState:
        """A new shard without data. Its first image is to be written with `store.create_shard(group, image())`."""
        meta = ShardMeta(descriptor, revision=0, stamp=stamp, floor=0, limits=limits or StateLimits())
        image = ShardImage(applied_index, applied_term, conf_to_tuple(conf_state), encode_meta(meta))
        return cls(group, image, meta, store)

    @classmethod
    def load(cls, group: int, image: ShardImage, sessions: Mapping[bytes, bytes], store: ShardData) -> ShardState:
        """The shard as it was flushed, or as a snapshot brought it. Raises DamagedRecord."""
        state = cls(group, image, decode_meta(image.meta), store)
        state._sessions.load(sessions)
        return state

    @property
    def revision(self) -> int:
        return self._executor.revision

    @property
    def data_bytes(self) -> int:
        """Full keys and values of all records; what the shard takes on disk is somewhat more. Exact until the shard is
        first split: what each half got was estimated. (So the sum that is kept may even fall below zero.)"""
        return max(0, self._executor.data_bytes)

    @property
    def floor(self) -> int:
        """ms; mutations issued at or before it may have been forgotten."""
        return self._sessions.floor

    @property
    def session_count(self) -> int:
        return len(self._sessions.table)

    @property
    def answer_count(self) -> int:
        return self._sessions.answers

    @property
    def answer_bytes(self) -> int:
        return self._sessions.answer_bytes

    # -- apply

    def apply_entry(self, index: int, term: int, stamp: int, writes: Sequence[DecodedWrite]) -> list[list[Result]]:
        """One list for each write, with one result for each of its operations, in their order.

        When the store fails (DamagedRecord), or an assertion, nothing of the entry has been applied: the caller stops
        this replica, which can still be flushed at the entry before.
        """
        self._check_next(index, term)
        stamp_before = self.stamp
        if stamp > stamp_before:
            self.stamp = stamp
        self._executor.begin_entry()
        try:
            results = [
                self._apply_in_session(decoded) if decoded.write.session else self._apply_plainly(decoded)
                for decoded in writes
            ]
        except BaseException:
            self._executor.roll_back()
            self._sessions.roll_back()
            self.stamp = stamp_before
            raise
        self._executor.end_entry()
        self._advance(index, term)  # before what can't be taken back: data and index must never part
        self._sessions.end_entry(self.stamp)
        return results

    def apply_empty(self, index: int, term: int) -> None:
        """The entry that a new leader begins its term with."""
        self._check_next(index, term)
        self._advance(index, term)

    def apply_split(self, index: int, term: int, stamp: int, split: Split) -> ShardState | Failure:
        """Keep the left half; the right half's state, as its log begins, or why the shard stays whole.

        The child goes on from the parent's revision and stamp, and knows every answer and the floor that the parent
        knows: which half's keys an answer was about is not recorded, and one that is known to both is right in both.
        No record moves, since keys do not carry the shard. The child is `dirty`: the next flush has to write both
        halves at once, or a replay of the parent would write over what the child has done since.
        """
        self._check_next(index, term)
        halves = divide(self.descriptor, self.conf_state, split)
        if stamp > self.stamp:
            self.stamp = stamp
        self._advance(index, term)
        self._sessions.end_entry(self.stamp)
        if isinstance(halves, Failure):
            return halves
        left, right = halves
        executor = self._executor
        left_bytes = max(0, min(split.left_bytes, executor.data_bytes))
        meta = ShardMeta(
            right, executor.revision, self.stamp, self.floor, self._limits, executor.data_bytes - left_bytes
        )
        members = conf_to_tuple(first_members(right))
        image = ShardImage(FOUNDING_INDEX, FOUNDING_TERM, members, encode_meta(meta))
        child = ShardState(right.id, image, meta, self._store)
        child._sessions = self._sessions.fork()
        child.dirty = True
        executor.data_bytes = left_bytes
        executor.follow(left)
        self.descriptor = left
        return child

    def apply_conf_change(self, index: int, term: int, conf_state: ConfState, descriptor: ShardDescriptor) -> None:
        """Membership changes what the descriptor says of replicas, never the range nor the epoch's version."""
        old = self.descriptor
        assert (descriptor.id, descriptor.keyspace) == (old.id, old.keyspace)
        assert (descriptor.start, descriptor.end, descriptor.version) == (old.start, old.end, old.version)
        assert descriptor.conf >= old.conf
        self._check_next(index, term)
        self._advance(index, term)
        self.conf_state = conf_state
        self.descriptor = descriptor

    def _check_next(self, index: int, term: int) -> None:
        assert index == self.applied_index + 1, f"group {self.group}: entry {index} after {self.applied_index}"
        assert term >= self.applied_term

    def _advance(self, index: int, term: int) -> None:
        self.applied_index = index
        self.applied_term = term
        self.dirty = True

    def _apply_plainly(self, decoded: DecodedWrite) -> list[Result]:
        """Without a session: no exactly-once, as the caller wished."""
        if decoded.write.version != self.descriptor.version:
            return [STALE_ROUTE] * len(decoded.operations)
        executor = self._executor
        return [
            executor.execute(operation) if executor.covers(operation) else STALE_ROUTE
            for operation in decoded.operations
        ]

    def _apply_in_session(self, decoded: DecodedWrite) -> list[Result]:
        """The order of the tests is part of the promise; docs/state.md says why."""
        write = decoded.write
        session, added = self._sessions.enter(write.session, write.low)
        refusal = self._refusal(write)
        if refusal is not None:
            return [self._refuse(session, operation.seq, refusal) for operation in decoded.operations]
        executor = self._executor
        answers = session.answers
        issued_at = write.issued_at
        low = session.low
        results: list[Result] = []
        for operation in decoded.operations:
            seq = operation.seq
            result: Result
            if seq in answers or seq < low:
                result = self._refuse(session, seq, SESSION_EXPIRED)
            elif type(operation) is Put:  # the hot path: most operations of most loads
                key = executor.prefix + operation.key
                if executor.start <= key < executor.end:
                    result = executor.put(key, operation.value)
                    answers[seq] = (issued_at, result)
                    added.append(seq)
                else:
                    result = STALE_ROUTE
            else:
                result = executor.execute(operation) if executor.covers(operation) else STALE_ROUTE
                if type(result) is not Failure:
                    answers[seq] = (issued_at, result)
                    added.append(seq)
                    if type(result) is not int:
                        self._sessions.weigh(session, seq, result)
            results.append(result)
        if added:
            self._sessions.keep(write.session, session, issued_at=issued_at, added=len(added))
        return results

    def _refusal(self, write: Write) -> Failure | None:
        """Why no operation of this write may be executed, known answers aside."""
        limits = self._limits
        if write.issued_at <= max(self._sessions.floor, self.stamp - limits.window_ms):
            return SESSION_EXPIRED
        if write.issued_at > self.stamp + limits.ahead_ms:
            return ISSUED_AHEAD
        if write.version != self.descriptor.version:
            return STALE_ROUTE
        return None

    def _refuse(self, session: Session, seq: int, refusal: Failure) -> Result:
        """The known answer, or else the reason why there is none."""
        known = session.answers.get(seq)
        if known is None:
            return SESSION_EXPIRED if seq < session.low else refusal
        weight = session.weights.get(seq)
        if weight is not None:
            if self._executor.budget <= 0:
                return ANSWER_HELD_BACK
            self._executor.budget -= weight
        return known[1]

    # -- read

    def check_keys(self, version: int, operations: Iterable[Mutation | ReadOperation]) -> Code | None:
        """STALE_ROUTE when the epoch is another, or a key or range is not in the shard; None = all is well."""
        if version != self.descriptor.version or not all(map(self._executor.covers, operations)):
            return Code.STALE_ROUTE
        return None

    def known_answers(self, session_id: bytes, seqs: Iterable[int]) -> list[Result] | None:
        """What these mutations of the session were answered, if all of them are known here. An answer never changes, so
        it may be given again outside the log, also for keys that a split has taken away since."""
        session = self._sessions.table.get(session_id)
        if session is None:
            return None
        known = [session.answers.get(seq) for seq in seqs]
        return [answer[1] for answer in known if answer is not None] if None not in known else None

    def get(self, key: bytes) -> Found | None:
        """key: the user's. The caller has checked range and epoch in the same step (check_keys)."""
        full_key = self._executor.prefix + key
        assert self._executor.start <= full_key < self._executor.end
        return found(self._store.get(full_key))

    def scan(self, operation: Scan) -> Page:
        """The caller has checked range and epoch in the same step (check_keys)."""
        assert self._executor.covers(operation)
        start, end = self._executor.bounds(operation.start, operation.end)
        return read_page(self._store, operation, start=start, end=end, revision=self._executor.revision)

    # -- flush

    def prepare_change(self, count: int) -> bool:
        """Do some of the work of `change` before it is called, for about so many answers; whether nothing of it is left
        to be done so."""
        return self._sessions.prepare(count)

    def image(self) -> ShardImage:
        executor = self._executor
        meta = ShardMeta(self.descriptor, executor.revision, self.stamp, self.floor, self._limits, executor.data_bytes)
        return ShardImage(self.applied_index, self.applied_term, conf_to_tuple(self.conf_state), encode_meta(meta))

    def change(self) -> ShardChange:
        """What is to be flushed since the last call. Take it in the same step as `store.freeze()`."""
        self.dirty = False
        return ShardChange(self.image(), self._sessions.take_changes())
