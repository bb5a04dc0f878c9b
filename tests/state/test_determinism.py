"""Goal: one log gives one state, to the last byte, on every replica - whatever its process, its hash seed, when it
flushed, restarted or was installed from a snapshot. Method: replay a random log and compare digests of data, images and
sessions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.storage.protocol import ShardImage
from tests.state.machine import GROUP
from tests.state.random_log import digest, random_log, replay

ROOT = Path(__file__).parents[2]


def replica(seed: int, *, entries: int, flush_every: int, reload: int, hash_seed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.state.random_log", *map(str, (seed, entries, flush_every, reload))]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_replicas_in_processes_of_their_own_agree() -> None:
    processes = [
        replica(7, entries=400, flush_every=1_000, reload=0, hash_seed="0"),
        replica(7, entries=400, flush_every=7, reload=0, hash_seed="1"),
        replica(7, entries=400, flush_every=13, reload=1, hash_seed="2"),
        replica(7, entries=400, flush_every=30, reload=2, hash_seed="random"),
    ]
    digests = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert len(digests[0]) == 64
    assert len(set(digests)) == 1


@pytest.mark.parametrize("seed", range(12))
def test_flushes_restarts_and_snapshots_change_nothing(seed: int) -> None:
    log = random_log(seed, 120)
    whole = replay(log, flush_every=1_000, reload=0)
    assert whole.state.floor > 0, "the log must be one that evicts"
    for flush_every, reload in ((1, 1), (3, 0), (5, 2), (50, 1)):
        assert digest(replay(log, flush_every=flush_every, reload=reload)) == digest(whole)


def test_a_crash_is_made_good_by_replaying_the_log() -> None:
    """What was flushed, and the entries behind it: the state of a replica that never stopped."""
    log = random_log(99, 150)
    whole = digest(replay(log, flush_every=1_000, reload=0))
    for crash in (1, 60, 149):
        machine = replay(log[:crash], flush_every=1_000, reload=0)
        machine.reload()
        for data in log[crash:]:
            machine.entry_of(data)
        assert digest(machine) == whole


def test_the_digest_sees_every_part() -> None:
    """The comparison is only as good as what it compares."""
    machine = replay(random_log(3, 60), flush_every=1_000, reload=0)
    before = digest(machine)
    session = min(machine.store.stored_sessions[GROUP])
    kept = machine.store.stored_sessions[GROUP].pop(session)
    assert digest(machine) != before
    machine.store.stored_sessions[GROUP][session] = kept
    assert digest(machine) == before
    key = machine.store.keys[0]
    machine.store.delete(key)
    assert digest(machine) != before
    assert isinstance(machine.store.images[GROUP], ShardImage)
