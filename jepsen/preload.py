"""A library that is loaded into nodes: it moves their wall clock and makes their syncs slow, while they run.

No root is needed, only a C compiler; preload.c is built anew for each run. What it is told lies in one file a node,
which both sides map.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from importlib import resources
from pathlib import Path

FIELDS = ("clock_offset", "clock_drift", "drift_from", "sync_seconds", "sync_fails")
"""Of `struct faults`: doubles, in this order."""
COMPILER = "cc"
BUILD_SECONDS_MAX = 60
_DOUBLE = struct.Struct("=d")


def lacking() -> str | None:
    """Why it can't be had."""
    return None if shutil.which(COMPILER) else f"there is no C compiler ({COMPILER}; Debian: gcc)"


class Preload:
    def __init__(self, folder: Path) -> None:
        """Builds the library. Raises CalledProcessError."""
        self._folder = folder
        self._library = folder / "preload.so"
        self._maps: dict[str, mmap.mmap] = {}
        folder.mkdir(parents=True, exist_ok=True)
        with resources.as_file(resources.files("jepsen").joinpath("preload.c")) as source:
            command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source), "-ldl"]
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS_MAX)

    def environment(self, node: str) -> dict[str, str]:
        """Of the node's process; without a fault so far."""
        file = self._folder / f"{node}.faults"
        if node not in self._maps:
            file.write_bytes(bytes(_DOUBLE.size * len(FIELDS)))
            with file.open("r+b") as opened:
                self._maps[node] = mmap.mmap(opened.fileno(), 0)
        return {"LD_PRELOAD": str(self._library.resolve()), "JEPSEN_FAULTS": str(file.resolve())}

    @property
    def nodes(self) -> list[str]:
        return list(self._maps)

    def set(self, node: str, field: str, value: float) -> None:
        _DOUBLE.pack_into(self._maps[node], _DOUBLE.size * FIELDS.index(field), value)

    def close(self) -> None:
        for opened in self._maps.values():
            opened.close()
        self._maps.clear()
