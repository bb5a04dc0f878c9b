"""Goal: every operation, and everything that is remembered about sessions, does what docs/state.md says.

Method: hypothesis makes logs of entries - several writes an entry, sessions that repeat, regroup and forget, time that
jumps, epochs that are wrong - and the machine must agree with the dumb model in tests/state/model.py after each: in its
answers, its data, its revision, its floor and each session's answers. In between it is reloaded from what it flushed.
Bounds are tiny, so that eviction, early ends and refusals for size happen all the time.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.base.operations import Batch, Cas, Delete, DeleteRange, Found, Get, Mutation, Put, Scan
from kvstore.state.session import decode_session
from kvstore.state.shard_meta import StateLimits
from tests.state.machine import GROUP, OTHER, PREFIX, SESSION, STAMP, Machine, descriptor, write
from tests.state.model import Frame, Model, plain

LIMITS = StateLimits(
    window_ms=20_000,
    ahead_ms=5_000,
    answers_max=12,
    answer_bytes_max=900,
    result_bytes_max=120,
    delete_range_bytes_max=70,
)
START, END = b"b", b"y"
LONG = b"p" * 480  # a key that has no longer neighbour
KEYS = (b"b", b"b\0", b"c", b"cc", b"d", b"m", b"m\xff", b"m\xff\xff", LONG, LONG[:-1] + b"\xff", b"x\xff")
OUTSIDE = (b"a", b"y", b"\xff")

BOUNDS = (b"", b"b", b"c", b"cc", b"m", b"p", LONG, b"x", b"y", b"z")


def one_of_these(choices: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """By number: hypothesis prints its strategies, and the long keys are too long for that."""
    return st.integers(0, len(choices) - 1).map(choices.__getitem__)


keys = one_of_these(KEYS * 3 + OUTSIDE)
values = st.sampled_from((b"", b"1", b"2", b"v" * 50))
seqs = st.integers(min_value=0, max_value=14)
revisions = st.integers(min_value=0, max_value=12)
bounds = one_of_these(BOUNDS)


def cas(seq: st.SearchStrategy[int]) -> st.SearchStrategy[Cas]:
    value = values | st.none()
    by_revision = st.builds(Cas, seq, keys, value, revisions | st.just(0))
    return by_revision | st.builds(Cas, seq, keys, value, st.none(), values)


zero = st.just(0)
in_batch = st.one_of(
    st.builds(Put, zero, keys, values), st.builds(Delete, zero, keys), cas(zero), st.builds(Get, zero, keys)
)
mutations: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(Put, seqs, keys, values),
    st.builds(Put, seqs, one_of_these(KEYS), values),
    st.builds(Delete, seqs, keys),
    cas(seqs),
    st.builds(Batch, seqs, st.lists(in_batch, min_size=1, max_size=5)),
    st.builds(DeleteRange, seqs, bounds, bounds, st.integers(min_value=1, max_value=4)),
)
sessions = st.sampled_from((SESSION, SESSION, OTHER, b"session-00000003", b""))
ages = st.sampled_from((0, 0, 0, 1, 400, 3_000, 19_000, 19_999, 20_000, 21_000, -4_999, -5_000, -5_001, -9_000))
frames = st.tuples(
    sessions, st.integers(0, 8), ages, st.sampled_from((1,) * 9 + (2,)), st.lists(mutations, min_size=1, max_size=5)
)


class AgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(LIMITS, shard=descriptor(START, END))
        self.model = Model(LIMITS, START, END, STAMP)

    @rule(
        step=st.sampled_from((0, 0, 1, 500, 1_000, 7_000, 30_000, -3_000)),
        drawn=st.lists(frames, min_size=1, max_size=3),
    )
    def entry(self, step: int, drawn: list[tuple[bytes, int, int, int, list[Mutation]]]) -> None:
        stamp = self.model.stamp + step
        made = [Frame(session, low, stamp - age, version, list(ops)) for session, low, age, version, ops in drawn]
        expected = self.model.entry(stamp, made)
        writes = [
            write(
                *frame.operations,
                session=frame.session,
                low=frame.low,
                issued_at=frame.issued_at,
                version=frame.version,
            )
            for frame in made
        ]
        results = self.machine.entry(*writes, stamp=stamp)
        assert [list(map(plain, one)) for one in results] == expected

    @rule()
    def restart(self) -> None:
        self.machine.reload()

    @rule()
    def install(self) -> None:
        """What a snapshot carries, loaded on another replica."""
        self.machine.flush()
        self.machine.store = self.machine.store.copy()
        self.machine.reload()

    @rule(
        start=bounds,
        end=bounds,
        limit=st.integers(1, 5),
        bytes_max=st.sampled_from((1, 60, 600, 100_000)),
        reverse=st.booleans(),
    )
    def scan(self, start: bytes, end: bytes, limit: int, bytes_max: int, reverse: bool) -> None:
        """Pages agree, and following the cursors gives the whole range once."""
        operation = Scan(0, start, end, limit, bytes_max, reverse)
        if not self.model.inside(operation):
            assert self.machine.state.check_keys(1, [operation]) is not None
            return
        whole = self.model.scan(Scan(0, start, end, 1_000, 1_000_000, reverse))
        seen = []
        while True:
            assert self.machine.state.check_keys(1, [operation]) is None
            page = self.machine.state.scan(operation)
            assert page == self.model.scan(operation)
            assert len(page.items) <= limit
            seen += page.items
            if page.cursor is None:
                break
            if reverse:
                operation = Scan(0, start, page.cursor, limit, bytes_max, reverse)
            else:
                operation = Scan(0, page.cursor, end, limit, bytes_max, reverse)
        assert seen == whole.items

    @invariant()
    def same_data(self) -> None:
        records = self.machine.store.records
        found = {
            key[len(PREFIX) :]: Found(r.value, r.mod_revision, r.create_revision, r.version)
            for key, r in records.items()
        }
        assert found == self.model.data
        state = self.machine.state
        assert (state.revision, state.floor, state.stamp) == (self.model.revision, self.model.floor, self.model.stamp)
        assert state.data_bytes == sum(len(key) + len(record.value) for key, record in records.items())
        for key in KEYS[:3]:
            assert state.get(key) == self.model.data.get(key)

    @invariant()
    def same_sessions(self) -> None:
        self.machine.flush()
        stored = {key: decode_session(data) for key, data in self.machine.store.sessions(GROUP).items()}
        model = self.model
        assert {key: (one.low, one.newest) for key, one in stored.items()} == {
            key: (model.lows[key], model.newest[key]) for key in model.newest
        }
        answers = {(key, seq): answer for key, one in stored.items() for seq, answer in one.answers.items()}
        assert answers == model.answers
        state = self.machine.state
        assert (state.session_count, state.answer_count) == (len(model.newest), len(model.answers))
        assert state.answer_bytes == model.weight()
        assert state.session_count + state.answer_count <= LIMITS.answers_max


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
