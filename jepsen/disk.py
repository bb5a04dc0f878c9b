"""A small ext4 of a node's own on a loop device: it can be filled up and cut off from power. Needs root.

Invariant: it is unmounted at the end, whatever happens; processes that use it are ended before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

SIZE_BYTES = 4 << 30
"""Sparse. A smaller one would count as nearly full from the beginning."""
COMMAND_SECONDS_MAX = 30
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2  # not even the journal reaches the disk: what was not synced is lost


class Disk:
    def __init__(self, image: Path, path: Path, *, size_bytes: int = SIZE_BYTES) -> None:
        """Makes and mounts it; the image is sparse. Raises CalledProcessError."""
        self._image = image
        self.path = path
        path.mkdir(parents=True)
        image.touch()
        os.truncate(image, size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Its users have ended."""
        _run("umount", str(self.path))

    def cut_power(self) -> None:
        """Nothing that is not on the disk yet will ever be; every later write fails."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def fill(self, leave_bytes: int) -> None:
        """Reserve all space but so much. Raises OSError."""
        found = os.statvfs(self.path)
        size = found.f_bavail * found.f_frsize - leave_bytes
        if size > 0:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    def close(self) -> None:
        if os.path.ismount(self.path):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.unmount()
        if os.path.ismount(self.path):
            _run("umount", "-l", str(self.path))
        self._image.unlink(missing_ok=True)


def lacking() -> str | None:
    """Why it can't be had."""
    if os.geteuid() != 0:
        return "a disk of its own for a node needs root"
    return None if shutil.which("mkfs.ext4") else "there is no mkfs.ext4 (Debian: e2fsprogs)"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_SECONDS_MAX)
