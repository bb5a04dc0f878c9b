"""Goal: a directory is used by one process, in one format, whole, or the node says in one line why not.

Method: make directories, break them in every way that a person or a disk would, and open them.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.base.errors import StartRefused
from kvstore.base.limits import FORMAT_VERSION, MIB
from kvstore.storage.directory import DataDirectory
from kvstore.storage.errors import DirectoryLost
from kvstore.storage.log_store import LmdbLogStore
from kvstore.storage.protocol import NodeIdentity
from kvstore.storage.state_store import LmdbStateStore

MAP_BYTES = 16 * MIB


def open_directory(path: Path) -> DataDirectory:
    return DataDirectory.open(path, map_bytes=MAP_BYTES)


def made(path: Path) -> str:
    directory = open_directory(path)
    directory.close()
    return directory.stamp


def fail(error: BaseException) -> None:
    raise AssertionError(error)


async def with_identity(path: Path) -> None:
    directory = open_directory(path)
    log = LmdbLogStore(directory.log_path, loop=asyncio.get_running_loop(), on_fatal=fail, map_bytes=MAP_BYTES)
    log.set_node_identity(NodeIdentity(FORMAT_VERSION, "ab" * 16, "n1"))
    log.close()
    directory.close()


def refusal(path: Path) -> StartRefused:
    with pytest.raises(StartRefused) as caught:
        open_directory(path)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_a_new_directory_holds_both_stores(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "deep" / "data")
    loop = asyncio.get_running_loop()
    log = LmdbLogStore(directory.log_path, loop=loop, on_fatal=fail, map_bytes=MAP_BYTES)
    state = LmdbStateStore(directory.state_path, loop=loop, on_fatal=fail, map_bytes=MAP_BYTES)
    assert log.node_identity() is None
    assert dict(log.groups()) == {}
    assert dict(state.shards()) == {}
    assert state.scan(b"\0", b"\xff", limit=10, bytes_max=100) == ([], False)
    log.close()
    state.close()
    directory.close()
    directory.close()
    assert made(tmp_path / "deep" / "data") == directory.stamp


def test_a_second_user_is_refused(tmp_path: Path) -> None:
    directory = open_directory(tmp_path)
    assert "in use by process" in str(refusal(tmp_path))  # the same process
    script = (
        "import sys; from pathlib import Path; from kvstore.storage.directory import DataDirectory\n"
        f"try: DataDirectory.open(Path(sys.argv[1]), map_bytes={MAP_BYTES})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.startswith("StartRefused")
    assert "in use by process" in found.stdout
    directory.close()
    made(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "FORMAT"
    path.write_text(path.read_text().replace(f"format {FORMAT_VERSION}", "format 99"))
    error = refusal(tmp_path)
    assert "format 99" in str(error)
    assert not isinstance(error, DirectoryLost)
    path.write_text("nonsense")
    assert "damaged" in str(refusal(tmp_path))


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    assert "thesis.txt" in str(refusal(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal(tmp_path / "file")
    refusal(tmp_path / "file" / "below")


async def test_a_wiped_directory_is_a_new_node(tmp_path: Path) -> None:
    await with_identity(tmp_path / "data")
    old = made(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    assert made(tmp_path / "data") != old


@pytest.mark.parametrize("part", ["log", "state"])
async def test_a_half_wiped_directory_is_lost(tmp_path: Path, part: str) -> None:
    await with_identity(tmp_path)
    shutil.rmtree(tmp_path / part)
    error = refusal(tmp_path)
    assert isinstance(error, DirectoryLost)
    assert f"lost its {part}" in str(error)


async def test_a_directory_without_its_format_is_lost(tmp_path: Path) -> None:
    await with_identity(tmp_path)
    (tmp_path / "FORMAT").unlink()
    assert isinstance(refusal(tmp_path), DirectoryLost)


async def test_an_environment_of_another_directory_is_told(tmp_path: Path) -> None:
    await with_identity(tmp_path / "a")
    await with_identity(tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "state")
    shutil.copytree(tmp_path / "b" / "state", tmp_path / "a" / "state")
    error = refusal(tmp_path / "a")
    assert isinstance(error, DirectoryLost)
    assert "does not belong" in str(error)


@pytest.mark.parametrize("leftover", [("log",), ("log", "state"), ("log", "state", "FORMAT.new")])
def test_a_creation_that_was_cut_off_is_begun_anew(tmp_path: Path, leftover: tuple[str, ...]) -> None:
    made(tmp_path)
    for name in ("FORMAT", "log", "state"):
        if name not in leftover:
            path = tmp_path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if "FORMAT.new" in leftover:
        (tmp_path / "FORMAT.new").write_text("kvsto")
    stamp = made(tmp_path)
    assert made(tmp_path) == stamp


async def test_set_aside_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "data"
    await with_identity(path)
    shutil.rmtree(path / "state")
    reason = str(refusal(path))
    where = DataDirectory.set_aside(path, reason)
    assert where.parent == tmp_path
    assert (where / "log" / "data.mdb").exists()
    assert (where / "REASON").read_text() == reason + "\n"
    assert not path.exists()
    made(path)


async def test_set_aside_goes_inside_where_the_directory_can_not_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is a mount point."""
    await with_identity(tmp_path / "data")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == tmp_path / "data":
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    where = DataDirectory.set_aside(tmp_path / "data", "why")
    assert where.parent == tmp_path / "data"
    assert (where / "log" / "data.mdb").exists()
    stamp = made(tmp_path / "data")
    assert made(tmp_path / "data") == stamp


def test_set_aside_of_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    directory = open_directory(tmp_path)
    with pytest.raises(StartRefused, match="in use"):
        DataDirectory.set_aside(tmp_path, "why")
    directory.close()
