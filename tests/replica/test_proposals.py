"""Writes between arrival and applied entry: each is answered once, and definitely only where that is certain.

Method: a stand-in for the Raft core that gives indexes as it is told; and a random game in which a leader loses the end
of its log, leads again, and entries of any term are applied.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

import pytest

from kvstore.base.errors import Code
from kvstore.base.limits import ENTRY_BYTES_MAX, STAGED_BYTES_MAX
from kvstore.base.stream import Refused, Results
from kvstore.replica.proposals import Proposals
from kvstore.replica.requests import Answer
from kvstore.state.command import decode_payload
from raft import NotLeader, ProposalDropped, RawNode, TransferInProgress, UncommittedLimit
from tests.replica.test_requests import write_request


class Log:
    """Where the core would append."""

    def __init__(self, *, term: int = 1, last_index: int = 0) -> None:
        self.term = term
        self.last_index = last_index
        self.refuses: ProposalDropped | None = None
        self.payloads: list[bytes] = []

    def propose_many(self, payloads: Sequence[bytes]) -> tuple[int, int]:
        if self.refuses is not None:
            raise self.refuses
        first = self.last_index + 1
        self.last_index += len(payloads)
        self.payloads += payloads
        return self.term, first


def propose(proposals: Proposals, log: Log) -> int:
    return proposals.propose(cast(RawNode, log), stamp=5, now=0.0)


def the(answers: list[Answer]) -> Refused:
    (answer,) = answers
    assert isinstance(answer, Refused)
    return answer


def test_staged_writes_become_one_entry_in_order() -> None:
    proposals, log = Proposals(), Log()
    requests = [write_request([], frame_id=number) for number in range(3)]
    assert all(map(proposals.stage, requests))
    assert propose(proposals, log) == 1
    assert len(decode_payload(log.payloads[0]).commands) == 3
    own = proposals.take(index=1, term=1)
    assert own is not None
    assert own.requests == requests
    assert all(request.proposed for request in requests)
    assert not proposals.staged_bytes


def test_large_frames_are_cut_into_entries() -> None:
    proposals, log = Proposals(), Log()
    for _ in range(5):
        proposals.stage(write_request([], size=ENTRY_BYTES_MAX // 2))
    assert propose(proposals, log) == 3
    assert [len(one.requests) for one in proposals.proposed] == [2, 2, 1]


def test_staging_is_bounded() -> None:
    proposals = Proposals()
    assert proposals.stage(write_request([], size=STAGED_BYTES_MAX))
    assert not proposals.stage(write_request([], size=1))


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (UncommittedLimit("full"), Code.OVERLOADED),
        (NotLeader(0), Code.NOT_LEADER),
        (TransferInProgress("moving"), Code.NOT_LEADER),
    ],
)
def test_what_the_core_refuses_is_refused_definitely(refusal: ProposalDropped, code: Code) -> None:
    proposals, log = Proposals(), Log()
    log.refuses = refusal
    answers: list[Answer] = []
    proposals.stage(write_request(answers))
    assert propose(proposals, log) == 0
    assert (the(answers).code, the(answers).definite) == (code, True)
    assert not proposals.proposed


def test_expired_before_its_proposal_is_never_proposed() -> None:
    proposals, log = Proposals(), Log()
    answers: list[Answer] = []
    request = write_request(answers)
    proposals.stage(request)
    request.expire()
    assert the(answers).definite
    assert propose(proposals, log) == 0
    assert not log.payloads


def test_another_terms_entry_at_the_index_is_a_definite_refusal() -> None:
    proposals, log = Proposals(), Log()
    answers: list[Answer] = []
    proposals.stage(write_request(answers))
    propose(proposals, log)
    assert proposals.take(index=1, term=2) is None
    assert (the(answers).code, the(answers).definite) == (Code.NOT_LEADER, True)


def test_role_change_refuses_only_what_is_staged() -> None:
    proposals, log = Proposals(), Log()
    staged: list[Answer] = []
    proposed: list[Answer] = []
    proposals.stage(write_request(proposed))
    propose(proposals, log)
    proposals.stage(write_request(staged))
    proposals.refuse_staged(Code.NOT_LEADER, "moved")
    assert the(staged).definite
    assert not proposed


def test_snapshot_or_end_leaves_proposed_writes_unknown() -> None:
    proposals, log = Proposals(), Log()
    passed: list[Answer] = []
    ended: list[Answer] = []
    staged: list[Answer] = []
    for answers in (passed, ended):
        proposals.stage(write_request(answers))
        propose(proposals, log)
    proposals.skip_to(1)
    assert (the(passed).code, the(passed).definite) == (Code.TIMEOUT, False)
    assert not ended
    proposals.stage(write_request(staged))
    proposals.abandon()
    assert (the(ended).code, the(ended).definite) == (Code.TIMEOUT, False)
    assert the(staged).definite


def test_leader_that_lost_its_log_and_leads_again_uses_indexes_twice() -> None:
    """Both entries at an index may still become the committed one; only the applied entry tells which."""
    proposals, log = Proposals(), Log(term=1)
    first: list[list[Answer]] = [[], [], []]
    for answers in first:
        proposals.stage(write_request(answers))
        propose(proposals, log)  # 1, 2, 3 in term 1
    log.term, log.last_index = 3, 1  # another leader's entry stands at 1; this one begins term 3 behind it
    again: list[Answer] = []
    proposals.stage(write_request(again))
    propose(proposals, log)  # 2 in term 3
    assert [(one.index, one.term) for one in proposals.proposed] == [(1, 1), (2, 1), (2, 3), (3, 1)]
    assert proposals.take(index=1, term=2) is None
    assert the(first[0]).definite
    own = proposals.take(index=2, term=3)
    assert own is not None
    assert own.term == 3
    assert the(first[1]).definite
    assert not first[2]
    assert proposals.take(index=3, term=3) is None
    assert the(first[2]).definite
    assert not proposals.proposed


@pytest.mark.parametrize("seed", range(20))
def test_every_write_is_answered_once_and_by_its_own_entry_only(seed: int) -> None:
    rng = random.Random(seed)
    proposals, log = Proposals(), Log()
    answers: dict[tuple[int, int], list[Answer]] = {}  # by (index, term)
    applied = 0
    for _ in range(200):
        action = rng.random()
        if action < 0.5:
            mine: list[Answer] = []
            proposals.stage(write_request(mine))
            propose(proposals, log)
            answers[log.last_index, log.term] = mine
        elif action < 0.6:  # deposed, the end of the log lost, and elected again: a no-op begins the term
            log.term += 1
            log.last_index = rng.randint(applied, log.last_index) + 1
        elif applied < log.last_index:
            applied += 1
            terms = [term for index, term in answers if index == applied]
            term = rng.choice([*terms, log.term])
            own = proposals.take(index=applied, term=term)
            assert (own is not None) == (term in terms)
            if own is not None:
                for request in own.requests:
                    request.answer(Results(1, 0, [applied]))
    proposals.skip_to(log.last_index + 1_000)
    for (index, _), mine in answers.items():
        assert len(mine) == 1, index
        assert isinstance(mine[0], Results) or mine[0].definite == (index <= applied)
