"""Is an LMDB data file as long as its own pages say? Asked by plain reads, before LMDB maps the file.

A page behind the end of the file is SIGBUS in a mapped read, which ends the process without a word. So the file is
looked at first: the newer meta page names the last page. A file can soundly be shorter than that (LMDB does not write
pages that were taken and given back in one transaction), so a short file is decided by walking its trees: every page
that is reachable must lie inside.

Layout: LMDB 0.9 (`lmdb.h`, `mdb.c`: MDB_meta, MDB_db, MDB_page, MDB_node), 64-bit, the machine's own byte order.
Invariant: nothing here maps the file or hands it to LMDB.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from kvstore.storage.errors import DirectoryLost

DATA_FILE = "data.mdb"

_MAGIC = 0xBEEFC0DE
_FORMAT_0_9 = 1
_PAGE_HEAD = struct.Struct("=QHHHH")  # pgno, pad, flags, lower, upper (or, in 4 bytes, the number of overflow pages)
_DB = struct.Struct(
    "=IHHQQQQQ"
)  # pad (of the free tree: the page size), flags, depth, branch, leaf, overflow, entries, root
_META_HEAD = struct.Struct("=IIQQ")  # magic, version, address, map size
_META_TAIL = struct.Struct("=QQ")  # last page, transaction
_NODE = struct.Struct("=HHHH")  # low and high half of the data size or child page, flags, key size
_META_BYTES = _PAGE_HEAD.size + _META_HEAD.size + 2 * _DB.size + _META_TAIL.size

_P_BRANCH, _P_LEAF, _P_META = 0x01, 0x02, 0x08
_F_BIGDATA = 0x01
_NO_PAGE = (1 << 64) - 1
_DEPTH_MAX = 32


@dataclass(frozen=True, slots=True)
class _Tree:
    depth: int
    overflow_pages: int
    root: int


@dataclass(frozen=True, slots=True)
class _Meta:
    page_bytes: int
    trees: tuple[_Tree, _Tree]  # free pages, main
    last_page: int
    transaction: int


def check_data_file(folder: Path) -> None:
    """Raises DirectoryLost when the folder's data file is cut off or is no LMDB file. A missing file is fine: new."""
    path = folder / DATA_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        file_bytes = os.fstat(descriptor).st_size
        if file_bytes == 0:
            return  # created, and the process died before LMDB wrote its first pages
        meta = _newest_meta(descriptor, file_bytes)
        if meta is None:
            raise DirectoryLost(f"{path} has no sound LMDB meta page; its data is lost")
        if file_bytes < (meta.last_page + 1) * meta.page_bytes and not _all_pages_inside(descriptor, meta, file_bytes):
            raise DirectoryLost(
                f"{path} is cut off: it has {file_bytes} bytes, its pages go up to byte "
                f"{(meta.last_page + 1) * meta.page_bytes}; its data is lost"
            )
    finally:
        os.close(descriptor)


def _newest_meta(descriptor: int, file_bytes: int) -> _Meta | None:
    first = _parse_meta(os.pread(descriptor, _META_BYTES, 0))
    metas = [first]
    # The second meta page lies behind the first; when the first is unreadable its size is not known, so try them all.
    for page_bytes in [first.page_bytes] if first else [1 << shift for shift in range(9, 17)]:
        second = _parse_meta(os.pread(descriptor, _META_BYTES, page_bytes))
        if second is not None and second.page_bytes == page_bytes:
            metas.append(second)
    found = [meta for meta in metas if meta is not None]
    if not found:
        return None
    newest = max(found, key=lambda meta: meta.transaction)
    return newest if file_bytes >= 2 * newest.page_bytes else None


def _parse_meta(raw: bytes) -> _Meta | None:
    if len(raw) < _META_BYTES:
        return None
    _, _, flags, _, _ = _PAGE_HEAD.unpack_from(raw)
    magic, version, _, _ = _META_HEAD.unpack_from(raw, _PAGE_HEAD.size)
    if not flags & _P_META or magic != _MAGIC or version != _FORMAT_0_9:
        return None
    at = _PAGE_HEAD.size + _META_HEAD.size
    free, main = (_DB.unpack_from(raw, at + number * _DB.size) for number in range(2))
    last_page, transaction = _META_TAIL.unpack_from(raw, at + 2 * _DB.size)
    page_bytes = free[0]
    if page_bytes < 512 or page_bytes > 65536 or page_bytes & (page_bytes - 1):
        return None
    trees = (_Tree(free[2], free[5], free[7]), _Tree(main[2], main[5], main[7]))
    return _Meta(page_bytes, trees, last_page, transaction)


def _all_pages_inside(descriptor: int, meta: _Meta, file_bytes: int) -> bool:
    pages = file_bytes // meta.page_bytes
    return all(_tree_inside(descriptor, meta.page_bytes, pages, tree) for tree in meta.trees)


def _tree_inside(descriptor: int, page_bytes: int, pages: int, tree: _Tree) -> bool:
    """Walks the branch pages, and the leaves where values lie on pages of their own."""
    if tree.root == _NO_PAGE:
        return True
    if tree.depth > _DEPTH_MAX:
        return False
    level = [tree.root]
    for _ in range(tree.depth - 1):
        if any(page >= pages for page in level):
            return False
        children: list[int] = []
        for page in level:
            found = _children(os.pread(descriptor, page_bytes, page * page_bytes))
            if found is None:
                return False
            children.extend(found)
        level = children
    if any(page >= pages for page in level):
        return False
    if tree.overflow_pages == 0:
        return True
    return all(_overflow_inside(descriptor, page_bytes, pages, page) for page in level)


def _nodes(raw: bytes, kind: int) -> list[int] | None:
    """Offsets of the page's nodes, or None when it is not a page of that kind."""
    if len(raw) < _PAGE_HEAD.size:
        return None
    _, _, flags, lower, _ = _PAGE_HEAD.unpack_from(raw)
    if not flags & kind or lower < _PAGE_HEAD.size or lower > len(raw):
        return None
    count = (lower - _PAGE_HEAD.size) // 2
    offsets = list(struct.unpack_from(f"={count}H", raw, _PAGE_HEAD.size))
    return offsets if all(offset + _NODE.size <= len(raw) for offset in offsets) else None


def _children(raw: bytes) -> list[int] | None:
    offsets = _nodes(raw, _P_BRANCH)
    if offsets is None:
        return None
    children = []
    for offset in offsets:
        low, high, top, _ = _NODE.unpack_from(raw, offset)
        children.append(low | high << 16 | top << 32)
    return children


def _overflow_inside(descriptor: int, page_bytes: int, pages: int, page: int) -> bool:
    raw = os.pread(descriptor, page_bytes, page * page_bytes)
    offsets = _nodes(raw, _P_LEAF)
    if offsets is None:
        return False
    for offset in offsets:
        low, high, flags, key_bytes = _NODE.unpack_from(raw, offset)
        if not flags & _F_BIGDATA:
            continue
        (first,) = struct.unpack_from("=Q", raw, offset + _NODE.size + key_bytes)
        value_bytes = low | high << 16
        last = first + (_PAGE_HEAD.size + value_bytes - 1) // page_bytes
        if last >= pages:
            return False
    return True
