"""Opening an LMDB environment of the store, and making its map larger while it runs.

Invariant: the file is checked against its own last page before LMDB reads it (`lmdb_file`).
Invariant: the map grows only while no transaction of this process is open; whoever owns readers closes them first.
Called by: log_store, state_store, directory.
"""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from kvstore.base.errors import StartRefused, StorageFault
from kvstore.base.limits import MIB
from kvstore.storage.errors import DirectoryLost
from kvstore.storage.lmdb_file import DATA_FILE, check_data_file

READERS_MAX = 128  # one of the loop, some snapshots under way, diagnosis from outside
_GROW_BYTES_MIN = 1 * MIB


def open_environment(folder: Path, *, map_bytes: int) -> lmdb.Environment:
    """Open or create. Raises StartRefused; DirectoryLost when the file is cut off or no LMDB file any more."""
    folder.mkdir(parents=True, exist_ok=True)
    check_data_file(folder)
    try:
        return lmdb.open(
            str(folder),
            map_size=map_bytes,
            max_dbs=0,
            max_readers=READERS_MAX,
            readahead=False,  # random access; reading ahead would throw useful pages out
            meminit=False,  # pages need no zeroing: whoever may read the file may read the data
            sync=True,
            metasync=True,
            writemap=False,  # a writable map would let a stray pointer write into the file
        )
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
        raise DirectoryLost(f"{folder / DATA_FILE} is not a sound LMDB file: {error}") from error
    except (lmdb.Error, OSError) as error:
        raise StartRefused(f"can't open {folder / DATA_FILE}: {error}") from error


def grow_map(environment: lmdb.Environment) -> int:
    """Double the map; the new size in bytes. The caller has closed this process's transactions."""
    map_bytes = max(2 * int(environment.info()["map_size"]), _GROW_BYTES_MIN)
    environment.set_mapsize(map_bytes)
    return map_bytes


def write_failure(where: object, error: lmdb.Error) -> StorageFault:
    """What to end the process with. LMDB tells a full disk as an input/output error, so the free space is named."""
    space = ""
    if isinstance(where, Path):
        try:
            found = os.statvfs(where)
            space = f" ({found.f_bavail * found.f_frsize} bytes are free on its disk)"
        except OSError as lost:
            space = f" ({lost})"
    return StorageFault(f"{where}: a write transaction failed: {error}{space}")


def sizes(environment: lmdb.Environment, folder: Path) -> dict[str, int]:
    """file_bytes, used_bytes (up to the last page ever used), free_bytes (left in the map)."""
    info = environment.info()
    used = (int(info["last_pgno"]) + 1) * int(environment.stat()["psize"])
    return {
        "file_bytes": os.stat(folder / DATA_FILE).st_size,
        "used_bytes": used,
        "free_bytes": int(info["map_size"]) - used,
    }
