"""Goal: the promise of exactly-once. First the order of the rules as a table, then any traffic that a network can make
of a client's mutations, then what bounds the table. docs/state.md, "Exactly once".
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.base.errors import Code
from kvstore.base.operations import Cas, Failure, Mismatch, Put, Result
from kvstore.state.command import Write
from kvstore.state.sessions import SLICE_MS
from kvstore.state.shard import ISSUED_AHEAD, SESSION_EXPIRED
from kvstore.state.shard_meta import StateLimits
from tests.state.machine import GROUP, OTHER, SESSION, STAMP, Machine, codes, descriptor, write

WINDOW = 600_000
AHEAD = 5_000
OK = None


@dataclass
class Case:
    """A mutation at `stamp`, after one with seq 5 was answered (revision 1) and the client's low was 3."""

    name: str
    expected: int | Code | None  # a revision, or a refusal
    seq: int = 6
    low: int = 3
    issued_at: int = STAMP
    version: int = 1
    key: bytes = b"k"
    floor: int = 0
    stamp: int = STAMP


CASES = [
    Case("first attempt", 2),
    Case("answer known", 1, seq=5),
    Case("answer known, whatever else is wrong", 1, seq=5, issued_at=1, version=9, key=b"zz", floor=STAMP + 9),
    Case("answer known, from far ahead", 1, seq=5, issued_at=STAMP + AHEAD + 1),
    Case("at the floor", Code.SESSION_EXPIRED, floor=STAMP),
    Case("above the floor", 2, floor=STAMP - 1),
    Case("at the end of the window", Code.SESSION_EXPIRED, issued_at=STAMP + 9 - WINDOW, stamp=STAMP + 9),
    Case("inside the window", 2, issued_at=STAMP + 10 - WINDOW, stamp=STAMP + 9),
    Case("below low", Code.SESSION_EXPIRED, seq=2),
    Case("below the low of this very frame", Code.SESSION_EXPIRED, seq=6, low=7),
    Case("at low", 2, seq=6, low=6),
    Case("known, but low has passed it", Code.SESSION_EXPIRED, seq=5, low=6),
    Case("a low that goes back", Code.SESSION_EXPIRED, seq=2, low=0),
    Case("as far ahead as allowed", 2, issued_at=STAMP + AHEAD),
    Case("too far ahead", Code.INVALID, issued_at=STAMP + AHEAD + 1),
    Case("low before too far ahead", Code.SESSION_EXPIRED, seq=2, issued_at=STAMP + AHEAD + 1),
    Case("floor before range and epoch", Code.SESSION_EXPIRED, floor=STAMP, version=9, key=b"zz"),
    Case("low before range and epoch", Code.SESSION_EXPIRED, seq=2, version=9, key=b"zz"),
    Case("too far ahead before range and epoch", Code.INVALID, issued_at=STAMP + AHEAD + 1, version=9, key=b"zz"),
    Case("another epoch", Code.STALE_ROUTE, version=9),
    Case("outside the range", Code.STALE_ROUTE, key=b"zz"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_order_of_the_rules(case: Case) -> None:
    machine = Machine(shard=descriptor(b"", b"z"))
    assert machine.do(Put(5, b"k", b"1"), low=3) == [1]
    machine.state._sessions.floor = case.floor
    (result,) = machine.do(
        Put(case.seq, case.key, b"2"),
        low=case.low,
        issued_at=case.issued_at,
        stamp=case.stamp,
        version=case.version,
    )
    if isinstance(case.expected, Code):
        assert isinstance(result, Failure)
        assert (result.code, result.definite) == (case.expected, True)
        assert machine.state.revision == 1
    else:
        assert result == case.expected
    # A second attempt gets the same answer, unless the answer was a refusal that time or a new route can lift.
    again = machine.do(
        Put(case.seq, case.key, b"2"),
        low=case.low,
        issued_at=case.issued_at,
        stamp=case.stamp,
        version=case.version,
    )
    assert again == [result]


def test_a_refusal_is_not_remembered() -> None:
    """STALE_ROUTE, and too far ahead, leave the mutation free to be done later."""
    machine = Machine()
    assert machine.do(Put(1, b"k", b""), version=9) != [1]
    assert machine.do(Put(1, b"k", b""), issued_at=STAMP + AHEAD + 1) == [ISSUED_AHEAD]
    assert machine.state.session_count == 0
    assert machine.do(Put(1, b"k", b"")) == [1]


def test_the_answer_of_a_failed_condition_is_remembered() -> None:
    """It was executed: when the value changes, the answer of that attempt does not."""
    machine = Machine()
    cas = Cas(1, b"k", b"x", revision=7)
    assert machine.do(cas) == [Mismatch(0, None)]
    machine.plain(*[Put(0, b"k", b"") for _ in range(7)])
    assert machine.do(cas) == [Mismatch(0, None)]


def test_sessions_are_apart() -> None:
    machine = Machine()
    results = machine.entry(
        write(Put(1, b"k", b"")),
        write(Put(1, b"k", b""), session=OTHER),
        write(Put(1, b"k", b"")),
        write(Put(1, b"k", b"")),
    )
    assert results == [[1], [2], [1], [1]]


def test_a_known_answer_that_is_too_large_now_is_not_called_definite() -> None:
    machine = Machine(StateLimits(result_bytes_max=50))
    machine.plain(Put(0, b"k", b"v" * 60))
    cas = Cas(1, b"k", b"", revision=9)
    (first, again) = machine.entry(write(cas), write(cas))
    assert isinstance(first[0], Mismatch)
    assert isinstance(again[0], Failure)
    assert (again[0].code, again[0].definite) == (Code.OVERLOADED, False)
    assert machine.do(cas) == first


# -- any traffic


@dataclass
class Mutator:
    """A client as the library is: it numbers, stamps at the first sending, repeats, regroups, and moves low on."""

    session: bytes
    rng: random.Random
    next_seq: int = 1
    waiting: dict[int, int] = field(default_factory=dict)  # seq -> issued_at, 0 = to be stamped
    sent: Counter[int] = field(default_factory=Counter)  # seq -> copies on the network, ever
    answers: dict[int, set[int]] = field(default_factory=dict)  # seq -> revisions heard of

    def frame(self, stamp: int) -> Write:
        """Some of what waits. A frame has one issued_at, and a mutation has the same in all its frames."""
        for _ in range(self.rng.randrange(3)):
            self.waiting[self.next_seq] = 0
            self.next_seq += 1
        issued_at = self.rng.choice([*self.waiting.values(), 0])
        chosen = [seq for seq, at in self.waiting.items() if at == issued_at and self.rng.random() < 0.7]
        self.rng.shuffle(chosen)
        if issued_at == 0:
            issued_at = stamp // 3_000 * 3_000 + self.rng.choice((0, 3_000))  # coarse, so that frames can be regrouped
            self.waiting.update(dict.fromkeys(chosen, issued_at))
        puts = [Put(seq, self.key(seq), b"") for seq in chosen]
        low = min(self.waiting, default=self.next_seq)
        return write(*puts, session=self.session, low=low, issued_at=issued_at)

    def key(self, seq: int) -> bytes:
        return b"%s/%d" % (self.session, seq)

    def hear(self, seq: int, value: Result) -> None:
        """An answer, if it is not lost. A first and only attempt that was refused is stamped anew or given up."""
        if isinstance(value, int):
            self.answers.setdefault(seq, set()).add(value)
        if seq not in self.waiting or self.rng.random() < 0.3:
            return
        if isinstance(value, Failure) and self.sent[seq] == 1 and self.rng.random() < 0.8:
            self.sent[seq] = 0
            self.waiting[seq] = 0
        else:
            del self.waiting[seq]


def operations_of(one: Write) -> list[Put]:
    return msgspec.msgpack.decode(one.operations, type=list[Put])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), answers_max=st.sampled_from((24, 24, 60, 1_000)))
def test_any_traffic_has_one_effect_and_one_answer(seed: int, answers_max: int) -> None:
    """Frames are duplicated, delayed over minutes, reordered and regrouped; replicas restart; answers are evicted.

    Each mutation writes a key of its own, so its effects are that key's version. All answers of one mutation that are
    not refusals are equal, and are the revision of its one effect.
    """
    rng = random.Random(seed)
    machine = Machine(StateLimits(window_ms=60_000, answers_max=answers_max))
    clients = {session: Mutator(session, rng) for session in (b"session-%08d" % number for number in range(4))}
    network: list[Write] = []

    def send(frame: Write) -> None:
        network.append(frame)
        clients[frame.session].sent.update([operation.seq for operation in operations_of(frame)])

    stamp = STAMP
    for _ in range(150):
        stamp += rng.choice((0, 1, 100, 1_000, 1_000, 20_000))
        frame = rng.choice(list(clients.values())).frame(stamp)
        for _ in range(rng.choice((1, 1, 2))):
            send(frame)
        taken = [network.pop(rng.randrange(len(network))) for _ in range(min(len(network), rng.choice((1, 1, 2, 3))))]
        for repeated in taken:
            if rng.random() < 0.2:
                send(repeated)  # arrives again, much later
        for one, values in zip(taken, machine.entry(*taken, stamp=stamp), strict=True):
            for operation, value in zip(operations_of(one), values, strict=True):
                clients[one.session].hear(operation.seq, value)
        if rng.random() < 0.1:
            machine.reload()
    for client in clients.values():
        for seq, revisions in client.answers.items():
            assert len(revisions) == 1
            found = machine.state.get(client.key(seq))
            assert found is not None
            assert (found.mod_revision, found.version) == (revisions.pop(), 1)
    assert all(record.version == 1 for record in machine.store.records.values())
    assert machine.state.revision == len(machine.store.records)


# -- bounds


def test_low_frees_answers() -> None:
    machine = Machine()
    machine.do(*[Put(seq, b"k", b"") for seq in range(1, 9)])
    assert machine.state.answer_count == 8
    machine.do(Put(9, b"k", b""), low=5)
    assert machine.state.answer_count == 5
    machine.do(Put(10**15, b"k", b""), low=10**15)  # no walk over all numbers between
    assert (machine.state.answer_count, machine.state.session_count) == (1, 1)


def test_time_frees_answers_and_sessions() -> None:
    machine = Machine(stamp=STAMP)
    machine.do(Put(1, b"k", b""))
    machine.entry(write(Put(1, b"k", b""), session=OTHER, issued_at=STAMP + 1_500), stamp=STAMP + 1_500)
    machine.plain(Put(0, b"x", b""))
    machine.entry(stamp=STAMP + WINDOW + SLICE_MS - 1)
    assert machine.state.answer_count == 2
    machine.entry(stamp=STAMP + WINDOW + SLICE_MS)
    assert (machine.state.answer_count, machine.state.session_count) == (1, 1)
    assert machine.do(Put(1, b"k", b""), issued_at=STAMP) == [SESSION_EXPIRED]
    machine.entry(stamp=STAMP + 10 * WINDOW)
    assert (machine.state.answer_count, machine.state.session_count, machine.state.floor) == (0, 0, 0)
    machine.flush()
    assert machine.store.sessions(GROUP) == {}


def test_a_session_stays_while_its_low_protects() -> None:
    """Its answers are gone by low; a late duplicate of one of them would be taken for new if `low` were forgotten."""
    machine = Machine()
    late = write(Put(1, b"k", b""), issued_at=STAMP + 400)
    machine.entry(late, stamp=STAMP + 400)
    machine.do(Put(2, b"k", b""), low=2, issued_at=STAMP)
    machine.do(Put(2, b"k", b""), low=3, issued_at=STAMP)
    assert machine.state.answer_count == 0
    for _ in range(2):
        assert codes(machine.entry(late, stamp=STAMP + 1_000)[0]) == [Code.SESSION_EXPIRED]
        machine.reload()


def test_size_evicts_the_oldest_and_raises_the_floor() -> None:
    machine = Machine(StateLimits(answers_max=64))
    for number in range(63):
        machine.entry(write(Put(number, b"k", b""), issued_at=STAMP + number), stamp=STAMP + number)
    assert (machine.state.answer_count, machine.state.floor) == (63, 0)
    machine.entry(write(Put(63, b"k", b""), issued_at=STAMP + 63), stamp=STAMP + 63)
    assert (machine.state.answer_count, machine.state.floor) == (61, STAMP + 2)
    assert machine.do(Put(2, b"k", b""), issued_at=STAMP + 2) == [SESSION_EXPIRED]
    assert machine.do(Put(3, b"k", b""), issued_at=STAMP + 3) == [4]
    assert machine.do(Put(99, b"k", b""), issued_at=STAMP + 2) == [SESSION_EXPIRED], "its answer may have gone too"


def test_an_evicted_session_stays_while_its_low_protects() -> None:
    """Eviction takes its last answer, but the floor is not yet as high as one that its low has freed."""
    machine = Machine(StateLimits(answers_max=8))
    late = write(Put(5, b"k", b""), issued_at=STAMP + 1_000)
    machine.entry(late, stamp=STAMP)
    machine.do(Put(6, b"k", b""), low=6, issued_at=STAMP)
    for number in range(6):
        machine.entry(write(Put(number, b"k", b""), session=OTHER, issued_at=STAMP + 10 + number), stamp=STAMP)
    assert (machine.state.floor, machine.state.answer_count) == (STAMP, 6)
    machine.reload()
    assert codes(machine.entry(late, stamp=STAMP)[0]) == [Code.SESSION_EXPIRED]
    assert machine.state.session_count == 2
    # It goes when its turn comes, as an item of that age.
    machine.entry(write(Put(9, b"k", b""), session=OTHER, low=9, issued_at=STAMP + 1_001), stamp=STAMP)
    for number in range(10, 16):
        machine.entry(write(Put(number, b"k", b""), session=OTHER, issued_at=STAMP + 1_001), stamp=STAMP)
    assert (machine.state.floor, machine.state.session_count) == (STAMP + 1_000, 1)
    assert codes(machine.entry(late, stamp=STAMP)[0]) == [Code.SESSION_EXPIRED]


def test_bytes_evict_too() -> None:
    machine = Machine(StateLimits(answer_bytes_max=2_000))
    machine.plain(Put(0, b"k", b"v" * 500))
    for number in range(4):
        machine.entry(
            write(Cas(number, b"k", b"", revision=99), Put(100 + number, b"x", b""), issued_at=STAMP + number),
            stamp=STAMP + number,
        )
    assert machine.state.answer_bytes <= 2_000
    assert machine.state.floor >= STAMP
    assert SESSION in machine.state._sessions.table


def test_a_flood_of_sessions_is_bounded() -> None:
    machine = Machine(StateLimits(answers_max=100))
    for number in range(300):
        session = b"%016d" % number
        machine.entry(write(Put(1, b"k", b""), session=session, issued_at=STAMP + number), stamp=STAMP + number)
        machine.entry(write(Put(2, b"k", b""), session=session, low=9, issued_at=STAMP + number), stamp=STAMP + number)
    assert machine.state.answer_count + machine.state.session_count <= 100
    assert machine.state.revision == 300
