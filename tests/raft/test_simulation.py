"""Goal: nothing that the seeded simulation can do to a group makes it break a promise. Method: run very many seeds.

The first SEEDS seeds pass in every test run; `python -m tests.raft.sim --seeds A..B` runs any others. A seed that fails
prints the command that replays it. A seed means another run as soon as anything is drawn differently, so what keeps a
mended bug mended is not its seed but a mutation that brings it back (sim/mutations.py), found anew in each test run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.raft.sim.mutations import MUTATIONS
from tests.raft.sim.profiles import PROFILES
from tests.raft.sim.runner import Summary, run_many, run_seeds, run_world, tail_of
from tests.raft.sim.swarm import options_of
from tests.raft.sim.violation import EXIT_LIVENESS, EXIT_SAFETY

ROOT = Path(__file__).parents[2]
SEEDS = 1_000

HAPPENS = (
    "elections",
    "crashes",
    "restarts",
    "pauses",
    "partitions",
    "one-way cuts",
    "truncated",
    "snapshots",
    "snapshots sent",
    "conf changes",
    "destroyed",
    "transfers",
    "evidence",
    "sleeps",
    "asleep",
    "index reads",
    "lease reads",
    "final reads",
    "damages",
    "healed damage",
)


def explain(summary: Summary) -> str:
    return "\n\n".join(
        "\n".join((f"seed {failure.seed}: {failure.violation}", *tail_of(failure), f"replay: {failure.command()}"))
        for failure in summary.failures
    )


@pytest.fixture(scope="module")
def swarm() -> Summary:
    total = Summary()
    for summary in run_many(1, SEEDS):
        total.add(summary)
        if total.failures:
            break
    return total


@pytest.mark.timeout(900)
def test_all_seeds_pass(swarm: Summary) -> None:
    assert not swarm.failures, explain(swarm)
    assert swarm.runs == SEEDS
    print(f"{swarm.runs} seeds, {swarm.events} events: {dict(sorted(swarm.marks.items()))}")


@pytest.mark.parametrize("mark", HAPPENS)
def test_runs_are_not_idle(swarm: Summary, mark: str) -> None:
    assert swarm.marks[mark] >= 20


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_passes(profile: str) -> None:
    """The regions of the option space, of which the swarm only dips into each now and then."""
    summary = run_seeds(10_001, 10_025, profile)
    assert not summary.failures, explain(summary)


def test_options_depend_on_the_seed_alone() -> None:
    assert options_of(5, "lease") == options_of(5, "lease")
    assert options_of(5) != options_of(6)


def test_a_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    outputs = set()
    for hash_seed in ("0", "1", "4242"):
        command = [sys.executable, "-m", "tests.raft.sim", "--seeds", "1..25", "--digest"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_a_run_does_not_depend_on_the_ones_before_it() -> None:
    run_world(3, "swarm")
    first = run_world(7, "swarm")[0].digest()
    run_world(4, "elections")
    assert run_world(7, "swarm")[0].digest() == first


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.raft.sim", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_a_failing_seed_tells_how_to_replay_it() -> None:
    found = replay("--seeds", "1..25", "--jobs", "1", "--profile", "elections", "--mutation", "two-votes")
    assert found.returncode == EXIT_SAFETY
    line = next(line for line in found.stdout.splitlines() if line.startswith("replay: "))
    arguments = line.removeprefix("replay: python -m tests.raft.sim ").split()
    again = replay(*arguments)
    assert again.returncode == EXIT_SAFETY
    assert "one-vote" in found.stdout
    assert "one-vote" in again.stdout
    assert "VOTE_REPLY" in again.stdout  # the conversation is there


def test_no_progress_is_told_from_a_broken_promise() -> None:
    """A group that never campaigns is safe, and useless."""
    mutation = MUTATIONS["refusal-tells-nothing"]
    edit = type(mutation.edits[0])("raft.election:maybe_campaign", "if core.role == Role.LEADER", "if True")
    with edit.applied():
        _, violation = run_world(1, "swarm")
    assert violation is not None
    assert violation.invariant == "liveness"
    assert violation.exit_code == EXIT_LIVENESS
