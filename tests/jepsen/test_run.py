"""Goal: a run on real processes ends with a verdict, its folder tells what happened, and what goes wrong is told.
Method: the command itself, for a few seconds, with faults that come often."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from jepsen.cluster import Cluster
from jepsen.nemeses import NEMESES
from jepsen.workloads import WORKLOADS

RUN_SECONDS_MAX = 120


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jepsen", "run", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)


def summary(text: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(text.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_all_workloads_are_valid_under_faults(tmp_path: Path) -> None:
    done = run(
        "--workload", "all", "--nemesis", "kill,pause,partition,transfer", "--time", "12", "--seed", "3",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = summary(done.stdout)
    assert said["valid"] is True
    assert said["ops"] > 100
    verdict = orjson.loads((tmp_path / "out" / "verdict.json").read_bytes())
    assert set(verdict["workloads"]) == set(WORKLOADS)
    assert sum(verdict["faults"].values()) > 0
    assert verdict["recovery_seconds"] is not None
    index = (tmp_path / "out" / "index.html").read_text()
    for name, workload in verdict["workloads"].items():
        assert f'href="{name}.html"' in index
        assert (tmp_path / "out" / f"{name}.html").exists()
        assert workload["valid"] is True
        assert any(what.endswith(" ok") and count for what, count in workload["operations"].items()), name
        assert (tmp_path / "out" / f"{name}.jsonl").stat().st_size > 0
    assert all((tmp_path / "out" / f"n{number}.log").exists() for number in (1, 2, 3))


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_nothing_is_lost_though_disks_and_clocks_fail(tmp_path: Path) -> None:
    done = run(
        "--workload", "register,append,set", "--nemesis", "disk,clock,merge", "--time", "12", "--seed", "5",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = orjson.loads((tmp_path / "out" / "verdict.json").read_bytes())
    assert sum(verdict["faults"].values()) > 0
    assert "merge is skipped" in done.stdout, "what is left out is told"
    assert not (tmp_path / "out" / "data").exists(), "what nobody will look at is removed"
    assert not (tmp_path / "out" / "disks").exists(), "a disk is left mounted"


def test_a_folder_with_an_old_run_is_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "register.jsonl").write_text("old")
    done = run("--time", "1", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "is not empty" in done.stderr


def test_unknown_names_are_told_with_the_known_ones() -> None:
    done = run("--workload", "registr")
    assert done.returncode == 2
    assert all(name in done.stderr for name in WORKLOADS)
    done = run("--nemesis", "kill,earthquake")
    assert done.returncode == 2
    assert all(name in done.stderr for name in NEMESES)


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command("--time", "60", "--nemesis", "none", "--out", str(out)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "begins" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=RUN_SECONDS_MAX)[0]
    assert process.returncode == 130, "".join(lines) + rest
    assert "interrupted" in rest
    assert not _processes_of(out), "nodes are left behind"


def _processes_of(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


@pytest.mark.slow
async def test_a_node_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 1, rng=random.Random(7)) as cluster:
        assert cluster.crashed() == []
        cluster.nodes["n1"].send(signal.SIGKILL)  # by nobody's order
        await cluster.nodes["n1"].ended()
        (told,) = cluster.crashed()
        assert told.startswith("n1: ")
