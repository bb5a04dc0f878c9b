"""A small ext4 of its own on a loop device, which can be filled up and cut off from power. Needs root.

Invariant: it is unmounted and its image removed at the end, whatever happens; processes that use it are ended before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2  # not even the journal reaches the disk: what was not synced is lost
COMMAND_SECONDS_MAX = 30


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_SECONDS_MAX)


class SmallDisk:
    def __init__(self, image: Path, mount_point: Path) -> None:
        self._image = image
        self.path = mount_point

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def cut_power(self) -> None:
        """Nothing that is not on the disk yet will ever be; every later write fails."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, *, leave_bytes: int) -> Path:
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
    """A mounted disk; the image is sparse. Skips the test, with the reason, where there is none to be had."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk of its own needs root")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    image, mount_point = folder / "disk.img", folder / "disk"
    mount_point.mkdir()
    image.touch()
    os.truncate(image, size_bytes)
    disk = SmallDisk(image, mount_point)
    try:
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        disk.mount()
    except (subprocess.CalledProcessError, OSError) as error:
        image.unlink()
        pytest.skip(f"no disk of its own can be mounted here: {error}")
    try:
        yield disk
    finally:
        if os.path.ismount(mount_point):
            with contextlib.suppress(subprocess.CalledProcessError):
                disk.unmount()
        if os.path.ismount(mount_point):
            _run("umount", "-l", str(mount_point))
        image.unlink(missing_ok=True)
