"""Goal: quorums are right. Method: every recorded case, and random cases against a second, dumb implementation."""

from __future__ import annotations

import random
from itertools import chain, combinations
from pathlib import Path

import pytest

from raft.quorum import INDEX_INFINITE, VoteResult, joint_index, joint_vote, majority_index, majority_vote

from .recorded import CASES, Case, parse_ids, parse_words, read_cases

PATHS = sorted((CASES / "quorum").glob("*.txt"))
RESULTS = {"VoteWon": VoteResult.WON, "VoteLost": VoteResult.LOST, "VotePending": VoteResult.PENDING}


def _halves(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    options = case.options()
    second = options.get("cfgj", "zero")
    return parse_ids(options.get("cfg", "")), () if second == "zero" else parse_ids(second)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recorded(path: Path) -> None:
    cases = read_cases(path)
    assert len(cases) > 5
    for case in cases:
        incoming, outgoing = _halves(case)
        voters = sorted({*incoming, *outgoing})
        where = f"{path.name}:{case.line}"
        if case.command == "committed":
            words = parse_words(case.options().get("idx", ""))
            match = {voter: 0 if word == "_" else int(word) for voter, word in zip(voters, words, strict=True)}
            found = joint_index([match[voter] for voter in incoming], [match[voter] for voter in outgoing])
            expected = case.output[-1]
            assert found == (INDEX_INFINITE if "∞" in expected else int(expected)), where
        else:
            assert case.command == "vote"
            words = parse_words(case.options().get("votes", ""))
            votes = {voter: word == "y" for voter, word in zip(voters, words, strict=True) if word != "_"}
            assert joint_vote(incoming, outgoing, votes) == RESULTS[case.output[-1]], where


def _majorities(voters: tuple[int, ...]) -> list[tuple[int, ...]]:
    size = len(voters) // 2 + 1
    return list(chain.from_iterable(combinations(voters, count) for count in range(size, len(voters) + 1)))


def _slow_index(voters: tuple[int, ...], match: dict[int, int]) -> int:
    """The highest index for which some majority exists that has all of it."""
    if not voters:
        return INDEX_INFINITE
    return max(min(match[voter] for voter in majority) for majority in _majorities(voters))


def _slow_vote(voters: tuple[int, ...], votes: dict[int, bool]) -> VoteResult:
    """Won if some majority has agreed; lost if none can any more."""
    if not voters:
        return VoteResult.WON
    majorities = _majorities(voters)
    if any(all(votes.get(voter) is True for voter in majority) for majority in majorities):
        return VoteResult.WON
    if any(all(votes.get(voter) is not False for voter in majority) for majority in majorities):
        return VoteResult.PENDING
    return VoteResult.LOST


def test_index_against_brute_force() -> None:
    rng = random.Random(1)
    for _ in range(3_000):
        incoming = tuple(sorted(rng.sample(range(1, 10), rng.randrange(0, 8))))
        outgoing = tuple(sorted(rng.sample(range(1, 10), rng.choice((0, 0, 1, 3, 5)))))
        match = {voter: rng.randrange(rng.choice((2, 5, 1_000))) for voter in range(1, 10)}
        first, second = _slow_index(incoming, match), _slow_index(outgoing, match)
        assert majority_index([match[voter] for voter in incoming]) == first
        assert joint_index([match[v] for v in incoming], [match[v] for v in outgoing]) == min(first, second)


def test_vote_against_brute_force() -> None:
    rng = random.Random(2)
    for _ in range(3_000):
        incoming = tuple(sorted(rng.sample(range(1, 10), rng.randrange(0, 8))))
        outgoing = tuple(sorted(rng.sample(range(1, 10), rng.choice((0, 0, 1, 3, 5)))))
        votes = {voter: rng.random() < 0.5 for voter in range(1, 12) if rng.random() < 0.7}
        first, second = _slow_vote(incoming, votes), _slow_vote(outgoing, votes)
        assert majority_vote(incoming, votes) == first
        both = {first, second}
        expected = first if len(both) == 1 else VoteResult.LOST if VoteResult.LOST in both else VoteResult.PENDING
        assert joint_vote(incoming, outgoing, votes) == expected


def test_two_quorums_of_one_configuration_meet() -> None:
    """What everything rests on, for all configurations of up to five voters, simple and joint (thesis, 4.3)."""
    ids = range(1, 6)
    halves = list(chain.from_iterable(combinations(ids, count) for count in range(1, 4)))
    groups = list(chain.from_iterable(combinations(ids, count) for count in range(6)))
    for incoming in halves:
        for outgoing in [(), *halves]:
            quorums = [
                set(group)
                for group in groups
                if joint_vote(incoming, outgoing, dict.fromkeys(ids, False) | dict.fromkeys(group, True))
                == VoteResult.WON
            ]
            assert quorums
            assert all(first & second for first, second in combinations(quorums, 2))
