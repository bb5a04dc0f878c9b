"""Goal: what was told durable is there after SIGKILL and after a power cut, at whatever moment.

Method: a process writes and says what it was told; it is ended at a random moment, and its directory is opened here.
"""

from __future__ import annotations

import asyncio
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.base.limits import MIB
from kvstore.storage.directory import DataDirectory
from kvstore.storage.log_store import LmdbLogStore
from kvstore.storage.state_store import LmdbStateStore
from tests.storage.backends import image
from tests.storage.small_fs import small_file_system
from tests.storage.writer_process import GROUP, entry_at, key_of

ROOT = Path(__file__).resolve().parents[2]


def fail(error: BaseException) -> None:
    raise AssertionError(error)


class Told:
    """What the process has said."""

    def __init__(self) -> None:
        self.log = 0
        self.flush = 0

    def read(self, output: bytes) -> None:
        for line in output.split(b"\n")[:-1]:
            what, _, number = line.partition(b" ")
            if what == b"log":
                self.log = max(self.log, int(number))
            elif what == b"flush":
                self.flush = max(self.flush, int(number))


def spawn(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.storage.writer_process", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )


def start(folder: Path) -> subprocess.Popen[bytes]:
    process = spawn(folder)
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], 60)
    assert readable, "the process did not get ready"
    return process


def listen(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """What it says meanwhile."""
    assert process.stdout is not None
    heard = b""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        readable, _, _ = select.select([process.stdout], [], [], left)
        if readable:
            piece = process.stdout.read(1 << 16)
            if not piece:
                break
            heard += piece
    return heard


def end(process: subprocess.Popen[bytes]) -> bytes:
    process.kill()
    assert process.stdout is not None
    rest = process.stdout.read()
    process.stdout.close()
    process.wait(30)
    return rest


async def check(folder: Path, told: Told) -> None:
    """All that was told is there, the log has no gap, and state and log fit."""
    directory = DataDirectory.open(folder, map_bytes=256 * MIB)
    loop = asyncio.get_running_loop()
    log = LmdbLogStore(directory.log_path, loop=loop, on_fatal=fail, map_bytes=256 * MIB)
    state = LmdbStateStore(directory.state_path, loop=loop, on_fatal=fail, map_bytes=256 * MIB)
    try:
        found = state.shards().get(GROUP)
        flushed = found.applied_index if found is not None else 0
        assert flushed >= told.flush
        assert found is None or found == image(flushed)
        view = log.open_group(GROUP, verify_from=0)
        assert view.identity.damaged_at == 0
        assert view.last_index() >= told.log
        assert view.last_index() >= flushed  # a flush is written only once the log holds it
        assert view.initial_state()[0].commit <= view.last_index()
        low, high = view.first_index(), view.last_index() + 1
        assert low <= flushed + 1
        if low < high:
            assert list(view.entries(low=low, high=high, bytes_max=1 << 30)) == [entry_at(i) for i in range(low, high)]
        # The flushed state is exactly that of its index.
        expected: dict[bytes, int] = {}
        for index in range(1, flushed + 1):
            expected[key_of(index)] = index
        pairs, more = state.scan(b"k", b"l", limit=100_000, bytes_max=1 << 30)
        assert not more
        assert {key: record.mod_revision for key, record in pairs} == expected
        assert flushed == 0 or flushed.to_bytes(16, "big") in state.sessions(GROUP)
        told.log, told.flush = view.last_index(), flushed
    finally:
        log.close()
        state.close()
        directory.close()


async def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(20)
    told = Told()
    for _ in range(8):
        process = start(tmp_path / "data")
        heard = listen(process, rng.uniform(0.0, 0.4))
        told.read(heard + end(process))
        await check(tmp_path / "data", told)
    assert told.log > 1_000
    assert told.flush > 300


async def test_power_cuts_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(30)
    told = Told()
    with small_file_system(tmp_path / "fs", mebibytes=192) as disk:
        for _ in range(4):
            process = start(disk.mount_point / "data")
            heard = listen(process, rng.uniform(0.05, 0.4))
            disk.cut_power()
            told.read(heard + end(process))
            disk.unmount()
            disk.mount()
            await check(disk.mount_point / "data", told)
    assert told.log > 100


@pytest.mark.slow
async def test_sigkill_of_a_process_that_is_just_starting(tmp_path: Path) -> None:
    """The directory's creation, too, may be cut off anywhere."""
    rng = random.Random(40)
    told = Told()
    for _ in range(10):
        process = spawn(tmp_path / "data")
        heard = listen(process, rng.uniform(0.1, 0.4))
        told.read(heard + end(process))
        await check(tmp_path / "data", told)
