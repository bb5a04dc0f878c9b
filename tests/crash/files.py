"""What is in the files of a node, and damage to those of one that does not run.

LMDB copies pages on write, so a value may lie in several places of its file, most of them free pages: all are damaged.
"""

from __future__ import annotations

from pathlib import Path

import lmdb


def holds(environment: Path, value: bytes) -> bool:
    """Whether a committed record of this LMDB environment holds `value`; a node may have it open. In the bytes of its
    file a record may be found before it is committed."""
    with lmdb.open(str(environment), readonly=True) as env, env.begin() as txn:
        return any(value in record for _, record in txn.cursor())


def flip(path: Path, value: bytes) -> int:
    """Flip one bit inside every place of the file that holds `value`; how many there were (at least one)."""
    content = path.read_bytes()
    places = []
    at = content.find(value)
    while at >= 0:
        places.append(at)
        at = content.find(value, at + 1)
    assert places, f"{value!r} is nowhere in {path}"
    with path.open("r+b") as file:
        for place in places:
            file.seek(place + len(value) // 2)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes((byte ^ 0x10,)))
    return len(places)


def truncate(path: Path, fraction: float) -> None:
    """Cut the file to a part of its length, at a page's edge."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(max(4_096, int(size * fraction) // 4_096 * 4_096))
