"""Rounds of read indexes: who joins which, what a lost one means, and what a stale read may claim."""

from __future__ import annotations

from typing import cast

from kvstore.base.errors import Code
from kvstore.base.limits import PENDING_READS_MAX
from kvstore.base.stream import Refused, Results
from kvstore.replica.reads import ROUND_RETRY_MS, ROUNDS_MAX, Reads
from kvstore.replica.requests import Answer, ReadRequest
from raft import NotLeader, RawNode, ReadState
from tests.replica.test_requests import read_request


class Core:
    def __init__(self) -> None:
        self.term = 1
        self.contexts: list[bytes] = []
        self.has_leader = True

    def read_index(self, context: bytes) -> None:
        if not self.has_leader:
            raise NotLeader(0)
        assert context not in self.contexts, "a context is used twice"
        self.contexts.append(context)


class Bench:
    """Reads at one replica with a core that answers when it is told."""

    def __init__(self) -> None:
        self.core = Core()
        self.reads = Reads(prefix=b"1.boot.")

    def add(self) -> ReadRequest:
        request = read_request([])
        assert self.reads.add(request)
        return request

    def begin(self, now_ms: int = 0) -> None:
        self.reads.begin_round(cast(RawNode, self.core), now_ms)

    def retry(self, now_ms: int) -> None:
        self.reads.retry_lost(cast(RawNode, self.core), now_ms)

    def confirm(self, number: int, *, index: int, term: int | None = None) -> None:
        self.reads.on_read_state(ReadState(self.core.contexts[number], index, self.core.term if term is None else term))


def test_read_joins_only_a_round_that_begins_after_it() -> None:
    bench = Bench()
    first = bench.add()
    bench.begin()
    second = bench.add()
    bench.confirm(0, index=5)
    assert bench.reads.take_served(5) == [first]
    bench.begin()
    bench.confirm(1, index=5)
    assert bench.reads.take_served(5) == [second]


def test_served_once_the_index_is_applied() -> None:
    bench = Bench()
    request = bench.add()
    bench.begin()
    bench.confirm(0, index=5)
    assert bench.reads.take_served(4) == []
    assert bench.reads.take_served(5) == [request]
    assert bench.reads.take_served(9) == []


def test_rounds_under_way_are_bounded_and_shared() -> None:
    bench = Bench()
    requests = []
    for _ in range(ROUNDS_MAX + 3):
        requests.append(bench.add())
        bench.begin()
    assert len(bench.core.contexts) == ROUNDS_MAX
    bench.confirm(0, index=1)
    bench.begin()
    assert len(bench.core.contexts) == ROUNDS_MAX + 1
    assert bench.reads.take_served(1) == requests[:1]
    bench.confirm(ROUNDS_MAX, index=1)
    assert bench.reads.take_served(1) == requests[ROUNDS_MAX:]


def test_answer_of_another_term_does_not_count() -> None:
    bench = Bench()
    request = bench.add()
    bench.begin()
    bench.confirm(0, index=5, term=2)
    assert bench.reads.take_served(100) == []
    assert bench.reads.waiting == [request]


def test_lost_round_is_asked_again_with_a_new_context() -> None:
    bench = Bench()
    request = bench.add()
    bench.begin(now_ms=0)
    bench.retry(ROUND_RETRY_MS)
    assert not bench.reads.waiting
    bench.retry(ROUND_RETRY_MS + 1)
    bench.begin(now_ms=ROUND_RETRY_MS + 1)
    bench.confirm(0, index=5)  # the old answer comes after all: of no use any more
    assert bench.reads.take_served(100) == []
    bench.confirm(1, index=6)
    assert bench.reads.take_served(6) == [request]


def test_new_term_asks_again_at_once_and_forgets_who_was_answered() -> None:
    bench = Bench()
    expired, waiting = bench.add(), bench.add()
    bench.begin()
    expired.expire()
    bench.core.term = 2
    bench.retry(1)
    assert bench.reads.waiting == [waiting]


def test_without_a_leader_everything_is_refused_definitely() -> None:
    bench = Bench()
    bench.core.has_leader = False
    answers: list[Answer] = []
    request = bench.add()
    request.reply = answers.append
    bench.begin()
    (answer,) = answers
    assert isinstance(answer, Refused)
    assert (answer.code, answer.definite) == (Code.NOT_LEADER, True)


def test_freshness_is_when_the_newest_served_round_began() -> None:
    bench = Bench()
    assert bench.reads.fresh_at_ms == -1
    bench.add()
    bench.begin(now_ms=1_000)
    bench.confirm(0, index=5)
    assert bench.reads.fresh_at_ms == -1  # confirmed, but not applied here
    bench.reads.take_served(5)
    assert bench.reads.fresh_at_ms == 1_000


def test_waiting_reads_are_bounded() -> None:
    reads = Reads(prefix=b"")
    request = read_request([])
    for _ in range(PENDING_READS_MAX):
        assert reads.add(request)
    assert not reads.add(request)


def test_end_refuses_in_every_stage() -> None:
    bench = Bench()
    answers: list[Answer] = []
    for stage in range(3):
        bench.add().reply = answers.append
        if stage < 2:
            bench.begin()
    bench.confirm(0, index=5)
    bench.reads.refuse_all(Code.UNAVAILABLE, "end")
    assert len(answers) == 3
    assert not any(isinstance(answer, Results) for answer in answers)
