"""A node's directory: who may use it, what format it has, and whether both its environments are still the ones it had.

    LOCK        held (flock) by the process that runs the node
    FORMAT      the format's version and the directory's stamp; written last, so without it nothing was ever served
    log/        LMDB: the durable logs                           carries the stamp
    state/      LMDB: the data of all shards                     carries the stamp
    reserve     space that is given up when the disk is full (`disk_watch`)

Invariant: no two processes (or two nodes of one process) have the directory open.
Invariant: a directory with a FORMAT has both environments of the same stamp; else it is lost, not new: its replicas may
           have voted. It never serves under its old ids; `set_aside` keeps it for people to look at.
Called by: the node, before it opens the stores.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from pathlib import Path

import lmdb

from kvstore.base.errors import DamagedRecord, StartRefused
from kvstore.base.limits import FORMAT_VERSION, LMDB_MAP_BYTES
from kvstore.storage import records
from kvstore.storage.disk_watch import RESERVE, DiskWatch
from kvstore.storage.errors import DirectoryLost
from kvstore.storage.keys import NODE, STAMP, LogKind, log_key
from kvstore.storage.lmdb_env import open_environment
from kvstore.storage.lmdb_file import DATA_FILE

__all__ = ["DataDirectory", "DiskWatch"]

LOCK = "LOCK"
FORMAT = "FORMAT"
LOG = "log"
STATE = "state"
LOST_PREFIX = "lost-"
_FORMAT_NEW = "FORMAT.new"
_FORMAT_TEXT = re.compile(r"kvstore format (\d+)\nstamp ([0-9a-f]{32})\n")

_STAMP_KEYS = {LOG: log_key(NODE, LogKind.STAMP), STATE: STAMP}


class DataDirectory:
    """An open (locked, checked) directory."""

    def __init__(self, path: Path, lock: int, stamp: str) -> None:
        self.path = path
        self.stamp = stamp
        self.log_path = path / LOG
        self.state_path = path / STATE
        self._lock = lock

    @classmethod
    def open(cls, path: Path | str, *, map_bytes: int = LMDB_MAP_BYTES) -> DataDirectory:
        """Lock the directory, make it when it is new, check it when it is not.

        Raises StartRefused; DirectoryLost when the node has to join anew (after `set_aside`).
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise StartRefused(f"can't use the directory {path}: {error}") from error
        try:
            return cls(path, lock, _check(path, map_bytes))
        except OSError as error:
            os.close(lock)
            raise StartRefused(f"can't use the directory {path}: {error}") from error
        except BaseException:
            os.close(lock)
            raise

    @staticmethod
    def set_aside(path: Path | str, reason: str) -> Path:
        """Move what a lost directory holds out of the way; gives where it is now. The directory must not be open.

        It goes beside the directory, or into it where that can't be (a mount point). Raises StartRefused.
        """
        path = Path(path)
        name = LOST_PREFIX + time.strftime("%Y%m%dT%H%M%S") + "-" + secrets.token_hex(2)
        try:
            lock = _lock(path)
            try:
                (path / "REASON").write_text(reason + "\n")
                return _move(path, name)
            finally:
                os.close(lock)
        except OSError as error:
            raise StartRefused(f"can't move the lost directory {path} aside: {error}") from error

    def close(self) -> None:
        """Let others have the directory. The stores are closed before."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _lock(path: Path) -> int:
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StartRefused(
            f"the directory {path} is in use by process {owner}: stop it, or choose another --data"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _check(path: Path, map_bytes: int) -> str:
    """The stamp of a sound or new directory."""
    names = {name for name in os.listdir(path) if not name.startswith(LOST_PREFIX)}
    names -= {LOCK, RESERVE, "lost+found"}
    if FORMAT in names:
        stamp = _read_format(path / FORMAT)
        for part in (LOG, STATE):
            _check_stamp(path / part, stamp, part, map_bytes)
        return stamp
    foreign = names - {LOG, STATE, _FORMAT_NEW, "REASON"}
    if foreign:
        raise StartRefused(f"{path} is no directory of kvstore: it holds {sorted(foreign)[0]!r}; choose another --data")
    for part in (LOG, STATE):
        _remove_unfinished(path / part, map_bytes)
    return _create(path, map_bytes)


def _read_format(path: Path) -> str:
    found = _FORMAT_TEXT.fullmatch(path.read_bytes().decode("ascii", "replace"))
    if found is None:
        raise StartRefused(f"{path} is damaged: restore it from a copy, or move the directory aside and join anew")
    version = int(found[1])
    if version != FORMAT_VERSION:
        raise StartRefused(
            f"{path.parent} has format {version}, this program reads and writes format {FORMAT_VERSION}: "
            "start it with the program that wrote it"
        )
    return found[2]


def _check_stamp(folder: Path, stamp: str, part: str, map_bytes: int) -> None:
    if not (folder / DATA_FILE).exists():
        raise DirectoryLost(f"{folder / DATA_FILE} is missing: the directory has lost its {part}")
    environment = open_environment(folder, map_bytes=map_bytes)
    key = _STAMP_KEYS[part]
    try:
        with environment.begin() as txn:
            raw = txn.get(key)
        found = records.unseal(key, raw).decode() if raw is not None else "none"
    except (lmdb.Error, DamagedRecord) as error:
        raise DirectoryLost(f"{folder / DATA_FILE} can't be read: {error}") from error
    finally:
        environment.close()
    if found != stamp:
        raise DirectoryLost(
            f"{folder / DATA_FILE} does not belong to this directory (stamp {found}, not {stamp}): its {part} is lost"
        )


def _remove_unfinished(folder: Path, map_bytes: int) -> None:
    """A creation that was cut off has left an environment with nothing but its stamp; anything else is no leftover."""
    if not folder.exists():
        return
    if (folder / DATA_FILE).exists():
        environment = open_environment(folder, map_bytes=map_bytes)
        entries = environment.stat()["entries"]
        environment.close()
        if entries > 1:
            raise DirectoryLost(
                f"{folder.parent / FORMAT} is missing beside an environment with data: it was wiped in part"
            )
    shutil.rmtree(folder)


def _create(path: Path, map_bytes: int) -> str:
    stamp = secrets.token_hex(16)
    for part in (LOG, STATE):
        environment = open_environment(path / part, map_bytes=map_bytes)
        key = _STAMP_KEYS[part]
        with environment.begin(write=True) as txn:
            txn.put(key, records.seal(key, stamp.encode()))
        environment.close()
        _sync(path / part)
    new = path / _FORMAT_NEW
    new.write_text(f"kvstore format {FORMAT_VERSION}\nstamp {stamp}\n")
    _sync(new)
    new.rename(path / FORMAT)
    _sync(path)
    _sync(path.parent)
    return stamp


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(path: Path, name: str) -> Path:
    (path / RESERVE).unlink(missing_ok=True)
    beside = path.parent / f"{path.name}.{name}"
    try:
        path.rename(beside)
    except OSError:
        inside = path / name
        inside.mkdir()
        for entry in os.listdir(path):
            if entry not in (LOCK, "lost+found") and not entry.startswith(LOST_PREFIX):
                (path / entry).rename(inside / entry)
        _sync(path)
        return inside
    _sync(path.parent)
    return beside
