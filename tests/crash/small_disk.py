"""The disk of its own that the harness gives to nodes, filled to the last byte, and skipped where it can't be had."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepsen.disk import Disk, lacking


class SmallDisk(Disk):
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill_up(self, *, leave_bytes: int) -> Path:
        """Reserve all space but so much; remove the file that is given to have it back."""
        number = len(list(self.path.glob("ballast-*")))
        ballast = self.path / f"ballast-{number}"
        descriptor = os.open(ballast, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.free_bytes() - leave_bytes)
        except OSError:
            if leave_bytes:
                raise
            # The blocks that say where the space is were missing; what is left goes to a file of data.
            self._write_until_full(ballast)
        finally:
            os.close(descriptor)
        return ballast

    def _write_until_full(self, ballast: Path) -> None:
        for size in (1 << 16, 1 << 12):
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(size))
                    os.fsync(file.fileno())


@contextlib.contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """A mounted disk. Skips the test, with the reason, where there is none to be had."""
    why = lacking()
    if why is not None:
        pytest.skip(why)
    try:
        disk = SmallDisk(folder / "disk.img", folder / "disk", size_bytes=size_bytes)
    except (subprocess.CalledProcessError, OSError) as error:
        (folder / "disk.img").unlink(missing_ok=True)
        pytest.skip(f"no disk of its own can be mounted here: {error}")
    try:
        yield disk
    finally:
        disk.close()
