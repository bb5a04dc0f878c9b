"""A small ext4 of its own, for faults that no other test may feel: full, read-only, without power.

Needs root and loop devices; a test that asks for it is skipped, with the reason, where they are not to be had.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2  # not even the journal is written: what was not synced is gone


class SmallFileSystem:
    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.image = folder / "image"
        self.mount_point = folder / "mount"
        self.mount_point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mebibytes << 20)
        _run("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.mount_point))

    def unmount(self) -> None:
        _run("umount", str(self.mount_point))

    def cut_power(self) -> None:
        descriptor = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def fill(self, *, leave_bytes: int) -> Path:
        """Ballast until at most `leave_bytes` are free."""
        ballast = self.mount_point / "ballast"
        with ballast.open("wb") as file:
            while (free := os.statvfs(self.mount_point).f_bavail * 4096) > leave_bytes:
                file.write(bytes(min(free - leave_bytes, 1 << 20) or 4096))
                file.flush()
                os.fsync(file.fileno())
        return ballast


@contextmanager
def small_file_system(folder: Path, *, mebibytes: int) -> Iterator[SmallFileSystem]:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    folder.mkdir(exist_ok=True)
    try:
        made = SmallFileSystem(folder, mebibytes)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield made
    finally:
        # Lazy, so that a test that failed with files open leaves no mount behind either.
        subprocess.run(["umount", "-l", str(made.mount_point)], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)
