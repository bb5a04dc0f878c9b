"""Goal: a cut-off LMDB file is told by plain reads, and a sound one that is short is not mistaken for it.

Method: real LMDB files of several shapes, cut at every place that matters.
"""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import pytest

from kvstore.storage.errors import DirectoryLost
from kvstore.storage.lmdb_file import DATA_FILE, check_data_file

PAGE = os.sysconf("SC_PAGE_SIZE")


def build(folder: Path, *, keys: int, value_bytes: int) -> Path:
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for number in range(keys):
            txn.put(b"%09d" % number, bytes(value_bytes))
    return folder / DATA_FILE


def test_a_missing_or_empty_file_is_new(tmp_path: Path) -> None:
    check_data_file(tmp_path)
    (tmp_path / DATA_FILE).touch()
    check_data_file(tmp_path)


@pytest.mark.parametrize(("keys", "value_bytes"), [(0, 0), (1, 10), (30_000, 100), (30, 100_000)])
def test_every_cut_is_seen(tmp_path: Path, keys: int, value_bytes: int) -> None:
    path = build(tmp_path / "env", keys=keys, value_bytes=value_bytes)
    check_data_file(path.parent)
    pages = path.stat().st_size // PAGE
    for left in sorted({pages - 1, pages // 2, 2, 1}, reverse=True):
        if left >= pages:
            continue
        os.truncate(path, left * PAGE)
        with pytest.raises(DirectoryLost, match=r"cut off|no sound"):
            check_data_file(path.parent)
    os.truncate(path, 100)
    with pytest.raises(DirectoryLost, match="no sound"):
        check_data_file(path.parent)


def test_a_file_that_is_soundly_short(tmp_path: Path) -> None:
    """Pages behind the end that no tree reaches (LMDB need not write them) are no loss."""
    path = build(tmp_path / "env", keys=20_000, value_bytes=100)
    with lmdb.open(str(path.parent), map_size=1 << 28) as env:
        for _ in range(3):
            with env.begin(write=True) as txn:
                cursor = txn.cursor()
                cursor.set_range(b"%09d" % 5_000)
                while cursor.key():
                    cursor.delete()
            with env.begin(write=True) as txn:
                txn.put(b"%09d" % 1, b"again")
        root_pages = env.stat()
    # Cut off the tail page by page for as long as the check finds every reachable page inside; LMDB must agree.
    content = path.read_bytes()
    size = len(content)
    while True:
        os.truncate(path, size - PAGE)
        try:
            check_data_file(path.parent)
        except DirectoryLost:
            break
        size -= PAGE
    assert size < len(content)
    path.write_bytes(content[:size])
    with lmdb.open(str(path.parent), map_size=1 << 28) as env:
        assert env.stat() == root_pages
        with env.begin() as txn:
            assert [key for key, _ in txn.cursor()] == [b"%09d" % number for number in range(5_000)]
    assert size < (root_pages["leaf_pages"] + 20_000 * 130 // PAGE) * PAGE


def test_the_other_meta_page_serves_when_one_is_unreadable(tmp_path: Path) -> None:
    path = build(tmp_path / "env", keys=10, value_bytes=10)
    with path.open("r+b") as file:
        file.write(bytes(PAGE))
    check_data_file(path.parent)
    with path.open("r+b") as file:
        file.write(bytes(2 * PAGE))
    with pytest.raises(DirectoryLost, match="no sound"):
        check_data_file(path.parent)


def test_a_foreign_file(tmp_path: Path) -> None:
    (tmp_path / DATA_FILE).write_bytes(b"not a database" * 10_000)
    with pytest.raises(DirectoryLost, match="no sound"):
        check_data_file(tmp_path)
