"""The simulation: the same seed is the same run, good seeds are good, and bugs that are put back are found.

Method: a bug is put back by a patch of the one function that keeps it out; seeds are run until one of them is judged
wrong. The nemeses are those that the bug needs, and the first seed is one shortly before that which has shown it, so
that a test takes seconds; the bound lies far behind it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from jepsen.commands import jepsen
from jepsen.sim.simulation import Result
from jepsen.simulate_command import SIMULATED, run_seed
from kvstore.replica.reads import Reads, Round
from kvstore.state.session import Session
from kvstore.state.sessions import Sessions
from kvstore.storage.memory import MemoryLogStore
from kvstore.storage.protocol import Done, LogWrite
from raft import RawNode

ALL = ("kill", "kill-all", "pause", "partition-one", "partition-leader", "flapping", "split", "transfer", "restart")
ROOT = Path(__file__).parent.parent.parent


def digest(result: Result) -> str:
    return hashlib.sha256(b"".join(result.histories.values())).hexdigest()


def test_a_seed_is_one_history_in_any_process() -> None:
    """To the byte: in this process, and in another one with another hash seed, where another seed has run before."""
    code = (
        "from jepsen.simulate_command import run_seed, SIMULATED; from tests.jepsen.test_simulate import ALL, digest\n"
        "print(*[digest(run_seed(seed, SIMULATED, ALL)) for seed in (23, 8, 7)])"
    )
    env = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    here = {seed: run_seed(seed, SIMULATED, ALL) for seed in (7, 8, 23)}
    assert said.stdout.split() == [digest(here[seed]) for seed in (23, 8, 7)]
    assert len({digest(one) for one in here.values()}) == 3
    assert all(one.faults and one.operations > 20 for one in here.values())


@pytest.mark.parametrize("workload", SIMULATED)
def test_good_seeds_are_good(workload: str) -> None:
    for seed in (1, 2):
        result = run_seed(seed, (workload,), ALL)
        assert result.valid is True, result.problems
        assert result.operations > 20


@pytest.mark.parametrize("seed", [2, 3])
def test_founders_whose_clocks_are_far_apart_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A founder's clock must not be a part of the state: one replica refused as too old what others did."""
    from jepsen import simulate_command
    from jepsen.sim import swarm

    drawn = swarm.draw

    def skewed(*arguments: object) -> swarm.Swarm:
        return dataclasses.replace(drawn(*arguments), skew_ms=60_000)  # type: ignore[arg-type]

    monkeypatch.setattr(simulate_command.swarm, "draw", skewed)
    result = run_seed(seed, ("stale",), ())
    assert result.valid is True, result.problems


# -- bugs that are put back


def found(seeds: range, workload: str, nemeses: Sequence[str]) -> int:
    """The first seed that shows it; fails if there is none."""
    for seed in seeds:
        if run_seed(seed, (workload,), tuple(nemeses)).valid is False:
            return seed
    pytest.fail(f"not found by {len(seeds)} seeds")


def test_an_answer_before_the_fsync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = MemoryLogStore.submit

    def too_early(self: MemoryLogStore, writes: Sequence[LogWrite], done: Done) -> None:
        submit(self, writes, lambda: None)
        asyncio.get_running_loop().call_soon(done)

    monkeypatch.setattr(MemoryLogStore, "submit", too_early)
    found(range(16, 216), "register", ("kill-all", "slow-disk"))


def test_a_read_that_asks_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever believes that it leads answers from its own state."""

    def at_once(self: Reads, raw: RawNode, now_ms: int) -> None:
        if self.waiting:
            requests, self.waiting = self.waiting, []
            self.confirmed.append(Round(b"", raw.term, now_ms, requests))

    monkeypatch.setattr(Reads, "begin_round", at_once)
    found(range(38, 238), "register", ("pause", "partition-leader", "partition-one"))


def test_a_lost_table_of_sessions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutation that is sent again is done again."""

    def forgetful(self: Sessions, session_id: bytes, low: int) -> tuple[Session, list[int]]:
        return enter(self, session_id + b"%d" % len(self.table), low)

    enter = Sessions.enter
    monkeypatch.setattr(Sessions, "enter", forgetful)
    found(range(3, 203), "append", ("lossy", "partition-leader", "pause", "kill"))


# -- the command


def test_the_command_tells_and_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["simulate", "--seeds", "3..4", "--workload", "register,idempotence", "--nemesis", "kill,partition"]
    good = CliRunner().invoke(jepsen, arguments)
    assert good.exit_code == 0, good.output
    report = orjson.loads(good.output.splitlines()[-1])
    assert report["valid"] is True
    assert report["seeds"] == 2
    assert report["ops"] > 40
    assert "idempotence is skipped" in good.output
    monkeypatch.setattr(Reads, "begin_round", _answer_nothing)
    bad = CliRunner().invoke(jepsen, [*arguments[:2], "3", *arguments[3:], "--out", str(tmp_path)])
    assert bad.exit_code == 1, bad.output
    assert "SEED 3 is not valid" in bad.output
    assert "--seeds 3 --workload register --nemesis kill,partition-one," in bad.output
    assert (tmp_path / "seed-3-register.jsonl").exists()
    assert CliRunner().invoke(jepsen, ["simulate", "--seeds", "4..3"]).exit_code == 2


def _answer_nothing(self: Reads, raw: RawNode, now_ms: int) -> None:
    """No read is ever answered: the demand for progress sees it."""
