"""Goal: a split divides a shard without losing, doubling or moving anything, the same on every replica.

Method: many shards on one store, made by splits in random places, against one dumb model each (tests/state/model.py),
which is divided by the plain rule: both halves know what the whole knew. After every entry all agree; shards are
reloaded from one flush of all; and a replay of the first shard's log alone must end with its data, and touch nothing
that is another's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec
import pytest

from kvstore.base.errors import Code, DamagedRecord
from kvstore.base.key_groups import group_end, group_of, is_legal_cut, nearest_cuts
from kvstore.base.operations import Failure, Found, Put
from kvstore.base.shards import Replica, ReplicaRole
from kvstore.state.command import DecodedWrite, Split, decode_payload, encode_payload
from kvstore.state.session import decode_session
from kvstore.state.shard import ShardState
from kvstore.state.shard_meta import StateLimits, decode_meta
from kvstore.state.split import divide, first_members
from kvstore.storage.protocol import Record
from raft.types import ConfState
from tests.state.fake_store import FakeStore
from tests.state.machine import GROUP, PREFIX, SESSION, STAMP, Machine, codes, descriptor, write
from tests.state.model import Frame, Model, plain
from tests.state.random_log import random_mutation

LIMITS = StateLimits(window_ms=60_000, answers_max=90, answer_bytes_max=8_000, result_bytes_max=1_500)
KEYS = [b"k%02d" % number for number in range(60)]


def split_of(state: ShardState, key: bytes, child: int, *, left_bytes: int = 0) -> Split:
    return Split(state.descriptor.version, state.descriptor.conf, PREFIX + key, child, left_bytes)


def apply_split(state: ShardState, split: Split, *, stamp: int = STAMP) -> ShardState | Failure:
    """As a follower does: through the bytes of the entry."""
    found = decode_payload(encode_payload(stamp, [split])).split
    assert found == split
    return state.apply_split(state.applied_index + 1, max(1, state.applied_term), stamp, found)


# -- the rules


def test_descriptors_of_the_halves() -> None:
    whole = msgspec.structs.replace(
        descriptor(b"b", b"y", version=7),
        conf=9,
        replicas=(Replica("n3", 1_012, ReplicaRole.LEARNER), Replica("n1", 2), Replica("n2", 5)),
    )
    halves = divide(whole, ConfState((2, 5), (1_012,)), Split(7, 9, PREFIX + b"m", 40, 0))
    assert not isinstance(halves, Failure)
    left, right = halves
    assert (left.id, left.start, left.end, left.version, left.conf) == (GROUP, PREFIX + b"b", PREFIX + b"m", 8, 9)
    assert left.replicas == whole.replicas
    assert (right.id, right.start, right.end, right.version, right.conf) == (40, PREFIX + b"m", PREFIX + b"y", 8, 1)
    assert right.replicas == (Replica("n1", 1), Replica("n2", 2), Replica("n3", 3, ReplicaRole.LEARNER))
    assert first_members(right) == ConfState((1, 2), (3,))


@pytest.mark.parametrize(
    ("split", "conf_state", "code"),
    [
        (Split(2, 1, PREFIX + b"m", 40, 0), ConfState((1,)), Code.STALE_ROUTE),
        (Split(1, 2, PREFIX + b"m", 40, 0), ConfState((1,)), Code.STALE_ROUTE),
        (Split(1, 1, PREFIX + b"m", 40, 0), ConfState((1,), voters_outgoing=(1, 2)), Code.CONFLICT),
        (Split(1, 1, PREFIX + b"b", 40, 0), ConfState((1,)), Code.INVALID),
        (Split(1, 1, PREFIX + b"y", 40, 0), ConfState((1,)), Code.INVALID),
        (Split(1, 1, PREFIX + b"z", 40, 0), ConfState((1,)), Code.INVALID),
        (Split(1, 1, b"\0\0\0\2m", 40, 0), ConfState((1,)), Code.INVALID),
        (Split(1, 1, b"", 40, 0), ConfState((1,)), Code.INVALID),
        (Split(1, 1, PREFIX + b"c{a}b", 40, 0), ConfState((1,)), Code.INVALID),
        (Split(1, 1, PREFIX + b"m", GROUP, 0), ConfState((1,)), Code.INVALID),
        (Split(1, 1, PREFIX + b"m" * 481, 40, 0), ConfState((1,)), Code.INVALID),
    ],
)
def test_refused_split_changes_nothing_but_the_position(split: Split, conf_state: ConfState, code: Code) -> None:
    machine = Machine(shard=descriptor(b"b", b"y"))
    machine.do(Put(1, b"m", b"1"))
    state = machine.state
    state.conf_state = conf_state
    before = decode_meta(state.image().meta)
    outcome = apply_split(state, split)
    assert isinstance(outcome, Failure)
    assert outcome.code == code
    assert decode_meta(state.image().meta) == before
    assert state.applied_index == 7
    assert machine.do(Put(2, b"m", b"2")) == [2]


def test_entry_with_a_split_beside_others_is_damaged() -> None:
    split = Split(1, 1, PREFIX + b"m", 40, 0)
    with pytest.raises(DamagedRecord):
        decode_payload(encode_payload(STAMP, [split, write(Put(1, b"a", b""))]))
    with pytest.raises(DamagedRecord):
        decode_payload(encode_payload(STAMP, [split, split]))


# -- key groups


@pytest.mark.parametrize(
    ("key", "group"),
    [
        (b"{order-17}/items/3", b"{order-17}"),
        (b"a{b}c{d}", b"a{b}"),
        (b"{}", b"{}"),
        (b"{{}}", b"{{}"),
        (b"}{a}x", b"}{a}"),
        (b"plain", None),
        (b"{open", None),
        (b"}{", None),
    ],
)
def test_group_of(key: bytes, group: bytes | None) -> None:
    assert group_of(key) == group


def test_legal_cuts_part_no_group() -> None:
    """By trial over all short keys: a cut is legal exactly if no two keys of a group come to lie on both its sides."""
    letters = b"a{}~"
    keys = [b""]
    for _ in range(4):
        keys = [b"", *(key + bytes([letter]) for key in keys for letter in letters)]
    keys = sorted(set(keys) - {b""})
    groups: dict[bytes, list[bytes]] = {}
    for key in keys:
        if (group := group_of(key)) is not None:
            groups.setdefault(group, []).append(key)
    for cut in keys:
        parted = [group for group, members in groups.items() if members[0] < cut <= members[-1]]
        assert len(parted) <= 1
        if is_legal_cut(cut):
            assert not parted, cut
        else:
            low, high = nearest_cuts(cut)
            assert low < cut < high
            assert is_legal_cut(low)
            assert is_legal_cut(high)
            # Nothing nearer is legal.
            assert not [key for key in keys if low < key < high and is_legal_cut(key)]
            assert high == group_end(low)
    assert not is_legal_cut(b"")


# -- against the model


@dataclass
class Pair:
    """A shard and its model."""

    state: ShardState
    model: Model
    log: list[bytes]


class Ground:
    """All shards of one keyspace on one store."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.machine = Machine(LIMITS, shard=descriptor(b"k05", b"k55"))
        self.store = self.machine.store
        self.pairs = [Pair(self.machine.state, Model(LIMITS, b"k05", b"k55", STAMP), [])]
        self.stamp = STAMP
        self.seqs = 0

    def entry(self, pair: Pair) -> None:
        rng = self.rng
        self.stamp += rng.choice((0, 1, 50, 300, 4_000))
        frames = []
        for _ in range(rng.randrange(1, 4)):
            base = rng.randrange(40)
            operations = [random_mutation(rng, base + rng.randrange(8)) for _ in range(rng.randrange(1, 5))]
            session = rng.choice((*(b"session-%08d" % number for number in range(12)), b""))
            version = pair.model.version - (rng.random() < 0.1)
            issued_at = self.stamp - rng.choice((-3_000, 0, 0, 700, 30_000, 61_000))
            frames.append(Frame(session, max(0, base - rng.randrange(12)), issued_at, version, operations))
        expected = pair.model.entry(self.stamp, frames)
        writes = [
            write(*one.operations, session=one.session, low=one.low, issued_at=one.issued_at, version=one.version)
            for one in frames
        ]
        data = encode_payload(self.stamp, writes)
        pair.log.append(data)
        payload = decode_payload(data)
        results = pair.state.apply_entry(
            pair.state.applied_index + 1, 1, payload.stamp, [DecodedWrite.decode(one) for one in payload.writes]
        )
        assert [list(map(plain, one)) for one in results] == expected

    def split(self, pair: Pair) -> None:
        key = self.rng.choice(KEYS)
        split = split_of(pair.state, key, 100 + len(self.pairs), left_bytes=self.rng.randrange(-5, 500))
        pair.log.append(encode_payload(self.stamp, [split]))
        child = apply_split(pair.state, split, stamp=self.stamp)
        model = pair.model
        model.stamp = max(model.stamp, self.stamp)
        model._expire()
        if not model.start < key < model.end:
            assert isinstance(child, Failure)
            return
        assert isinstance(child, ShardState)
        right = Model(
            LIMITS, key, model.end, model.stamp, model.version + 1, model.revision, model.floor,
            answers=dict(model.answers), lows=dict(model.lows), newest=dict(model.newest),
        )  # fmt: skip
        right.data = {key: model.data.pop(key) for key in [one for one in model.data if one >= right.start]}
        model.end, model.version = key, model.version + 1
        self.pairs.append(Pair(child, right, []))

    def flush(self) -> None:
        """One cut over all shards; then every one begins anew from it."""
        for pair in self.pairs:
            self.store.flush(pair.state.group, pair.state.change())
        for pair in self.pairs:
            group = pair.state.group
            pair.state = ShardState.load(group, self.store.images[group], self.store.sessions(group), self.store)

    def check(self) -> None:
        bound = PREFIX + b"k05"
        whole: dict[bytes, Found] = {}
        for pair in sorted(self.pairs, key=lambda one: one.state.descriptor.start):
            state, model = pair.state, pair.model
            assert state.descriptor.start == bound, "a gap or an overlap"
            bound = state.descriptor.end
            whole |= model.data
            assert (state.revision, state.floor, state.stamp) == (model.revision, model.floor, model.stamp)
            assert state.descriptor.version == model.version
            assert (state.session_count, state.answer_count) == (len(model.newest), len(model.answers))
            assert state.answer_bytes == model.weight()
        assert bound == PREFIX + b"k55"
        assert {key[4:]: _found(record) for key, record in self.store.records.items()} == whole

    def check_sessions(self) -> None:
        """After a flush: exactly the model's answers are stored, for each shard."""
        for pair in self.pairs:
            stored = {key: decode_session(data) for key, data in self.store.sessions(pair.state.group).items()}
            answers = {(key, seq): answer for key, one in stored.items() for seq, answer in one.answers.items()}
            assert answers == pair.model.answers
            assert {key: one.low for key, one in stored.items()} == pair.model.lows


def _found(record: Record) -> Found:
    return Found(record.value, record.mod_revision, record.create_revision, record.version)


@pytest.mark.parametrize("seed", range(12))
def test_against_model(seed: int) -> None:
    rng = random.Random(seed)
    ground = Ground(rng)
    for _ in range(120):
        pair = rng.choice(ground.pairs)
        action = rng.randrange(12)
        if action == 0:
            ground.split(pair)
        elif action == 1:
            ground.flush()
            ground.check_sessions()
        elif action == 2:
            pair.state.prepare_change(rng.randrange(5))
        else:
            ground.entry(pair)
        ground.check()
    assert len(ground.pairs) > 2
    ground.flush()
    ground.check_sessions()
    _check_replay(ground)


def _check_replay(ground: Ground) -> None:
    """The first shard's log, from its beginning, over a store that holds all that the others have done since."""
    first = ground.pairs[0]
    start, end = first.state.descriptor.start, first.state.descriptor.end
    machine = Machine(LIMITS, shard=descriptor(b"k05", b"k55"))
    before: dict[bytes, Record] = {}
    for data in first.log:
        payload = decode_payload(data)
        if payload.split is None:
            machine.entry_of(data)
        else:
            bounds = machine.state.descriptor
            apply_split(machine.state, payload.split, stamp=payload.stamp)
            behind = machine.state.descriptor.end
            # What is cut off is the child's from here on: the rest of the replay must leave it alone.
            before |= {key: record for key, record in machine.store.records.items() if behind <= key < bounds.end}
    assert {key: record for key, record in machine.store.records.items() if key >= end} == before
    kept = {key: record for key, record in machine.store.records.items() if start <= key < end}
    assert kept == {key: record for key, record in ground.store.records.items() if start <= key < end}
    assert decode_meta(machine.state.image().meta) == decode_meta(first.state.image().meta)


# -- what is shared


def test_halves_share_sessions_until_one_changes_them() -> None:
    machine = Machine()
    for seq in range(5):
        machine.do(Put(seq, b"%d" % seq, b""))
    child = apply_split(machine.state, split_of(machine.state, b"3", 40))
    assert isinstance(child, ShardState)
    left, right = machine.state._sessions.table[SESSION], child._sessions.table[SESSION]
    assert left is right
    machine.do(Put(9, b"1", b""), low=2, version=2)
    assert codes(machine.do(Put(1, b"1", b""), version=2)) == [Code.SESSION_EXPIRED]
    assert set(machine.state._sessions.table[SESSION].answers) == {2, 3, 4, 9}
    assert set(child._sessions.table[SESSION].answers) == {0, 1, 2, 3, 4}


def test_first_flush_of_a_child_writes_every_session() -> None:
    machine = Machine()
    for number in range(20):
        machine.entry(write(Put(1, b"x", b""), session=b"session-%08d" % number))
    machine.flush()
    child = apply_split(machine.state, split_of(machine.state, b"m", 40))
    assert isinstance(child, ShardState)
    assert child.dirty
    assert not child.prepare_change(7)
    assert len(child._sessions._unsaved) == 16
    again = write(Put(2, b"y", b""), session=b"session-%08d" % 19, version=2)
    child.apply_entry(2, 2, STAMP, [DecodedWrite.decode(again)])
    assert child.prepare_change(100)
    store = FakeStore()
    store.flush(40, child.change())
    assert len(store.stored_sessions[40]) == 20
    changed = decode_session(store.stored_sessions[40][b"session-%08d" % 19])
    assert set(changed.answers) == {1, 2}
    assert machine.state.prepare_change(0), "the parent has nothing of the kind"
    assert not machine.state.change().sessions
