"""Is the disk nearly full? Looked at each second by the node.

Below max(5 %, 1 GiB) of free space the disk counts as full: writes are refused, while deletes and configuration
changes go on. When even that is nearly used up, the reserve file is given up, so that a flush and a compaction still
find room. Both come back by themselves, the reserve last.

Invariant: the answer does not flap: it turns only when the free space has passed the bound by a margin.
Called by: the node.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kvstore.base.limits import DISK_FREE_BYTES_MIN, DISK_FREE_FRACTION_MIN, DISK_RESERVE_BYTES

logger = logging.getLogger(__name__)

RESERVE = "reserve"
_MARGIN_FRACTION = 0.1  # of the bound


class _HasPath(Protocol):
    @property
    def path(self) -> Path: ...


def disk_space(path: Path) -> tuple[int, int]:
    """(free for this user, total) bytes of the file system."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


class DiskWatch:
    def __init__(
        self,
        directory: _HasPath,
        *,
        free_bytes_min: int = DISK_FREE_BYTES_MIN,
        free_fraction_min: float = DISK_FREE_FRACTION_MIN,
        reserve_bytes: int = DISK_RESERVE_BYTES,
        space: Callable[[Path], tuple[int, int]] = disk_space,
    ) -> None:
        self._path = directory.path
        self._free_bytes_min = free_bytes_min
        self._free_fraction_min = free_fraction_min
        self._reserve_bytes = reserve_bytes
        self._space = space
        self._reserve = self._path / RESERVE
        self.full = False
        self.free_bytes = 0  # as of the last poll

    def poll(self) -> bool:
        """Look at the disk; whether writes are to be refused. Raises OSError when the directory is gone."""
        self.free_bytes, total = self._space(self._path)
        bound = max(self._free_bytes_min, int(total * self._free_fraction_min))
        margin = int(bound * _MARGIN_FRACTION)
        if self.free_bytes < bound:
            self.full = True
        elif self.free_bytes >= bound + margin:
            self.full = False
        if self.free_bytes < min(self._reserve_bytes, bound):
            if self._reserve.exists():
                logger.warning("the disk is full: the reserve of %d bytes is given up", self._reserve_bytes)
                self._reserve.unlink()
        elif self.free_bytes >= bound + margin + self._reserve_bytes and not self._reserve.exists():
            self._make_reserve()
        return self.full

    def _make_reserve(self) -> None:
        if self._reserve_bytes == 0:
            return
        descriptor = os.open(self._reserve, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, self._reserve_bytes)
        except OSError as error:  # somebody else was quicker; the next poll tries again
            logger.warning("can't keep a reserve of %d bytes: %s", self._reserve_bytes, error)
            self._reserve.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
