"""A FUSE folder that passes everything on to another folder, and fails as a control file says while it runs.

    python -m tests.storage.fuse_process ROOT MOUNT CONTROL

CONTROL holds words like `fsync=EIO`, `write=ENOSPC`; with the word `once` before them the first call that fails
empties the file.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import mfusepy as fuse  # type: ignore[import-not-found,unused-ignore]


class PassThrough(fuse.Operations):  # type: ignore[misc,unused-ignore]
    use_ns = True

    def __init__(self, root: str, control: str) -> None:
        self._root = root
        self._control = Path(control)

    def _check(self, call: str) -> None:
        try:
            words = self._control.read_text().split()
        except OSError:
            return
        for word in words:
            name, _, code = word.partition("=")
            if name == call:
                if "once" in words:
                    self._control.write_text("")
                raise fuse.FuseOSError(getattr(errno, code))

    def _path(self, path: str) -> str:
        return self._root + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._path(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino", "st_blocks")
        times = {"st_atime": found.st_atime_ns, "st_mtime": found.st_mtime_ns, "st_ctime": found.st_ctime_ns}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._path(path))]

    def open(self, path: str, flags: int) -> int:
        return os.open(self._path(path), flags & ~os.O_DIRECT)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._path(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._check("write")
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._path(path), length)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._check("fsync")
        os.fsync(fh)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._path(path), mode)


if __name__ == "__main__":
    fuse.FUSE(PassThrough(os.path.realpath(sys.argv[1]), sys.argv[3]), sys.argv[2], foreground=True, nothreads=False)
