"""Goal: the disk counts as full below the bound, recovers by itself, does not flap, and the reserve comes and goes.

Method: a told amount of free space, poll by poll.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvstore.base.limits import GIB, MIB
from kvstore.storage.disk_watch import RESERVE, DiskWatch, disk_space


@dataclass
class Disk:
    path: Path
    total: int = 100 * GIB
    free: int = 50 * GIB

    def space(self, path: Path) -> tuple[int, int]:
        assert path == self.path
        return self.free, self.total


def watch_of(disk: Disk, **options: int) -> DiskWatch:
    return DiskWatch(disk, space=disk.space, **{"reserve_bytes": MIB, **options})


def test_bounds(tmp_path: Path) -> None:
    for total, bound in ((100 * GIB, 5 * GIB), (4 * GIB, GIB)):
        disk = Disk(tmp_path, total)
        watch = watch_of(disk)
        for free, full in (
            (bound + 1, False),
            (bound, False),
            (bound - 1, True),
            (bound + 1, True),  # within the margin: as it was
            (int(bound * 1.09), True),
            (int(bound * 1.11), False),
            (bound + 1, False),
        ):
            disk.free = free
            assert watch.poll() is full
            assert watch.full is full
            assert watch.free_bytes == free


def test_the_reserve(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    watch = watch_of(disk)
    reserve = tmp_path / RESERVE
    watch.poll()
    assert reserve.stat().st_size == MIB
    assert reserve.stat().st_blocks * 512 >= MIB  # really taken
    disk.free = 2 * MIB
    assert watch.poll()
    assert reserve.exists()  # there is still room for what must go on
    disk.free = MIB - 1
    assert watch.poll()
    assert not reserve.exists()
    watch.poll()
    disk.free = 5 * GIB + MIB
    watch.poll()
    assert not reserve.exists()  # it would make the disk full again
    disk.free = 6 * GIB
    assert not watch.poll()
    assert reserve.exists()


def test_no_reserve_where_none_is_wanted(tmp_path: Path) -> None:
    watch = watch_of(Disk(tmp_path), reserve_bytes=0)
    watch.poll()
    assert not (tmp_path / RESERVE).exists()


def test_the_real_disk(tmp_path: Path) -> None:
    free, total = disk_space(tmp_path)
    assert 0 <= free <= total
