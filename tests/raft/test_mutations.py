"""Goal: the simulation finds safety bugs. Method: break one rule of raft/ at a time, and see that a run goes wrong.

A simulation that passes says nothing by itself: it may look away, or never come near. Each mutation takes one rule away
(sim/mutations.py); it must be found within a bounded number of seeds, and the seed that shows it must pass without it.
`python -m tests.raft.sim --judge` prints the table.
"""

from __future__ import annotations

import pytest

import raft.election
from tests.raft.sim.mutations import MUTATIONS
from tests.raft.sim.runner import Verdict, judge_all
from tests.raft.sim.source_patch import Edit, StalePatch


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    # The longest searches first, so that the cores end together.
    names = sorted(MUTATIONS, key=lambda name: -MUTATIONS[name].seeds)
    return {verdict.mutation: verdict for verdict in judge_all(names)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_found(verdicts: dict[str, Verdict], name: str) -> None:
    verdict = verdicts[name]
    mutation = MUTATIONS[name]
    assert verdict.found is not None, f"not found in {mutation.seeds} seeds: {mutation.rule}"
    print(f"{name}: seed {verdict.found.seed} of {mutation.profile}, {verdict.found.violation}")
    assert not verdict.clean.failures, verdict.clean.failures[0].command()


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) >= 12


def test_a_patch_leaves_nothing_behind() -> None:
    before = raft.election.on_vote_request
    for mutation in MUTATIONS.values():
        with mutation.applied():
            pass
    assert raft.election.on_vote_request is before


def test_a_patch_of_code_that_has_moved_on_fails_loudly() -> None:
    edit = Edit("raft.election:on_vote_request", "this is not there", "")
    with pytest.raises(StalePatch), edit.applied():
        pass
