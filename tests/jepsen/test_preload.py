"""Goal: what is loaded into a node moves its wall clock, and only that one, and slows or fails its syncs, all while it
runs. Method: a child process that says what it sees."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jepsen import preload
from jepsen.preload import Preload

pytestmark = pytest.mark.skipif(preload.lacking() is not None, reason=str(preload.lacking()))
HOUR = 3_600.0
CHILD = """
import os, sys, time
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
for line in sys.stdin:
    wall, began = time.time(), time.monotonic()
    try:
        os.fdatasync(file)
        failed = 0
    except OSError as error:
        failed = error.errno
    print(wall, began, time.monotonic() - began, failed, flush=True)
"""


class Child:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self) -> tuple[float, float, float, int]:
        """(wall clock, monotonic clock, seconds of a sync, its errno)"""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wall, monotonic, took, failed = self._process.stdout.readline().split()
        return float(wall), float(monotonic), float(took), int(failed)


@contextmanager
def child(folder: Path, library: Preload) -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder / "file")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | library.environment("n1"),
    ) as process:  # fmt: skip
        yield Child(process)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Preload]:
    built = Preload(tmp_path / "preload")
    yield built
    built.close()


def test_the_wall_clock_jumps_and_the_monotonic_one_does_not(tmp_path: Path, library: Preload) -> None:
    with child(tmp_path, library) as one:
        assert abs(one.ask()[0] - time.time()) < 60
        for offset in (HOUR, -HOUR, 0.25):
            library.set("n1", "clock_offset", offset)
            before = time.time(), time.monotonic()
            wall, monotonic, _, _ = one.ask()
            after = time.time(), time.monotonic()
            assert before[0] - 1e-3 <= wall - offset <= after[0] + 1e-3
            assert before[1] <= monotonic <= after[1]


def test_the_wall_clock_runs_fast(tmp_path: Path, library: Preload) -> None:
    with child(tmp_path, library) as one:
        library.set("n1", "drift_from", time.time() - 100.0)
        library.set("n1", "clock_drift", 0.5)
        before = time.time()
        assert one.ask()[0] >= before + 50.0 - 1e-3


def test_syncs_are_slow_and_fail(tmp_path: Path, library: Preload) -> None:
    with child(tmp_path, library) as one:
        library.set("n1", "sync_seconds", 0.05)
        assert one.ask()[2] >= 0.05
        library.set("n1", "sync_seconds", 0.0)
        library.set("n1", "sync_fails", 1.0)
        assert one.ask()[3] == 5  # EIO
        library.set("n1", "sync_fails", 0.0)
        assert one.ask()[3] == 0
