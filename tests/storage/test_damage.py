"""Goal: a flipped byte, a cut-off file, a lost environment are told, and nothing damaged is ever served or voted with.

Method: write with the stores, damage the file with ordinary writes while it is closed, and open again.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from kvstore.base.errors import DamagedRecord, StartRefused
from kvstore.base.limits import MIB
from kvstore.storage.errors import DirectoryLost
from kvstore.storage.lmdb_file import DATA_FILE
from kvstore.storage.log_store import LmdbLogStore
from kvstore.storage.memory import MemoryDisk, MemoryLogStore
from kvstore.storage.protocol import LogWrite, NodeIdentity, Record, ReplicaIdentity, ShardChange
from kvstore.storage.state_store import LmdbStateStore
from raft.types import Entry, EntryKind, HardState
from tests.storage.backends import durable, image

GROUP = 7


def fail(error: BaseException) -> None:
    raise AssertionError(error)


def open_log(folder: Path, **options: Any) -> LmdbLogStore:
    return LmdbLogStore(folder, loop=asyncio.get_running_loop(), on_fatal=fail, map_bytes=64 * MIB, **options)


def open_state(folder: Path) -> LmdbStateStore:
    return LmdbStateStore(folder, loop=asyncio.get_running_loop(), on_fatal=fail, map_bytes=64 * MIB)


def flip(folder: Path, marker: bytes, offset: int = 0) -> None:
    """Flip a byte at `offset` of every copy of the marker (LMDB keeps old versions of pages)."""
    path = folder / DATA_FILE
    content = bytearray(path.read_bytes())
    at = content.find(marker)
    assert at >= 0
    while at >= 0:
        content[at + offset] ^= 0x01
        at = content.find(marker, at + 1)
    path.write_bytes(content)


def entry(index: int, term: int = 1) -> Entry:
    return Entry(term, index, EntryKind.NORMAL, b"entry<%06d>" % index + bytes(50))


async def written_log(folder: Path, count: int = 20, **fields: object) -> None:
    store = open_log(folder)
    write = LogWrite(GROUP, entries=[entry(index) for index in range(1, count + 1)], **fields)  # type: ignore[arg-type]
    other = LogWrite(GROUP + 1, entries=[Entry(1, 1, EntryKind.NORMAL, b"another group")])
    await durable(lambda done: store.submit([write, other], done))
    store.close()


# -- the log


@pytest.mark.parametrize("bad", [1, 12, 20])
@pytest.mark.parametrize("offset", [0, 6, 40])
async def test_a_flipped_log_record_ends_the_log_before_it(tmp_path: Path, bad: int, offset: int) -> None:
    await written_log(tmp_path, identity=ReplicaIdentity(3), hard_state=HardState(1, 2, 20))
    flip(tmp_path, b"entry<%06d>" % bad, offset)
    for _ in range(2):  # the damage is persisted
        store = open_log(tmp_path)
        log = store.open_group(GROUP, verify_from=0)
        assert log.last_index() == bad - 1
        assert log.identity == ReplicaIdentity(3, damaged_at=20)
        assert store.groups()[GROUP] == ReplicaIdentity(3, damaged_at=20)
        assert log.initial_state()[0] == HardState(1, 2, 20)
        assert store.open_group(GROUP + 1, verify_from=0).identity.damaged_at == 0
        store.close()
    # Healed: the leader fills it up again, and the mark goes.
    store = open_log(tmp_path)
    store.open_group(GROUP, verify_from=0)
    healed = LogWrite(GROUP, entries=[entry(index, 2) for index in range(bad, 25)], identity=ReplicaIdentity(3))
    await durable(lambda done: store.submit([healed], done))
    store.close()
    store = open_log(tmp_path)
    log = store.open_group(GROUP, verify_from=0)
    assert (log.last_index(), log.term(24), log.identity) == (24, 2, ReplicaIdentity(3))
    store.close()


async def test_a_flipped_term_is_seen_too(tmp_path: Path) -> None:
    await written_log(tmp_path, identity=ReplicaIdentity(3))
    flip(tmp_path, b"\x01\x00entry<000009>", 0)  # the term's last byte
    store = open_log(tmp_path)
    assert store.open_group(GROUP, verify_from=0).last_index() == 8
    store.close()


async def test_a_record_under_a_wrong_key_is_damage(tmp_path: Path) -> None:
    """Two whole records that have changed places are sound by themselves."""
    await written_log(tmp_path, identity=ReplicaIdentity(3))
    path = tmp_path / DATA_FILE
    content = path.read_bytes()
    first, second = b"entry<000004>" + bytes(50), b"entry<000005>" + bytes(50)
    # Head, data and checksum of both, exchanged.
    a, b = content.rindex(first) - 9, content.rindex(second) - 9
    size = 9 + len(first) + 4
    swapped = bytearray(content)
    swapped[a : a + size], swapped[b : b + size] = content[b : b + size], content[a : a + size]
    path.write_bytes(swapped)
    store = open_log(tmp_path)
    assert store.open_group(GROUP, verify_from=0).last_index() == 3
    store.close()


async def test_damage_below_the_flushed_index_is_found_when_it_is_read(tmp_path: Path) -> None:
    await written_log(tmp_path, identity=ReplicaIdentity(3), hard_state=HardState(1, 2, 20))
    flip(tmp_path, b"entry<000005>", 6)
    store = open_log(tmp_path)
    log = store.open_group(GROUP, verify_from=10)
    assert (log.last_index(), log.identity.damaged_at) == (20, 0)
    assert len(log.entries(low=6, high=21, bytes_max=1 << 20)) == 15
    with pytest.raises(DamagedRecord):
        log.entries(low=4, high=8, bytes_max=1 << 20)
    with pytest.raises(DamagedRecord):
        log.term(5)
    store.close()


@pytest.mark.parametrize("what", ["hard", "identity", "node", "start"])
async def test_a_flipped_fixed_record_loses_the_directory(tmp_path: Path, what: str) -> None:
    """A vote that is not known any more can't be healed: the node must join as a new one."""
    store = open_log(tmp_path)
    store.set_node_identity(NodeIdentity(1, "ab" * 16, "the-node-name"))
    write = LogWrite(
        GROUP,
        identity=ReplicaIdentity(0x11223344),
        reset=(0x21222324, 5),
        hard_state=HardState(0x31323334, 1, 0x21222324),
    )
    await durable(lambda done: store.submit([write], done))
    store.close()
    marker = {
        "hard": b"\xce\x31\x32\x33\x34",
        "identity": b"\xce\x11\x22\x33\x44",
        "node": b"the-node-name",
        "start": b"\x92\xce\x21\x22\x23\x24",
    }
    flip(tmp_path, marker[what], 3)
    with pytest.raises(DirectoryLost, match=r"damaged|read"):
        store = open_log(tmp_path)
        try:
            store.node_identity()
            store.open_group(GROUP, verify_from=0)
        finally:
            store.close()


async def test_the_memory_log_finds_damage_like_the_real_one() -> None:
    disk = MemoryDisk(latency=lambda: 0.0)
    store = MemoryLogStore(disk, loop=asyncio.get_running_loop(), on_fatal=fail)
    write = LogWrite(GROUP, identity=ReplicaIdentity(3), entries=[entry(index) for index in range(1, 21)])
    await durable(lambda done: store.submit([write], done))
    key = next(key for key, value in disk.log_env.current.data.items() if b"entry<000012>" in value)
    disk.log_env.flip(key, 15)
    disk.crash()
    store = MemoryLogStore(disk, loop=asyncio.get_running_loop(), on_fatal=fail)
    log = store.open_group(GROUP, verify_from=0)
    assert (log.last_index(), log.identity.damaged_at) == (11, 20)


# -- the state


async def written_state(folder: Path) -> LmdbStateStore:
    store = open_state(folder)
    await durable(lambda done: store.create_shard(2, image(1), done))
    for number in range(200):
        store.put(b"k%05d" % number, Record(b"value<%05d>" % number, 5, 5, 1))
    store.freeze()
    changes = {2: ShardChange(image(7, meta=b"the-meta"), {b"s" * 16: b"the-answers"})}
    await durable(lambda done: store.write_frozen(changes, done))
    return store


async def test_a_flipped_data_record_is_not_served(tmp_path: Path) -> None:
    (await written_state(tmp_path)).close()
    flip(tmp_path, b"value<00100>", 8)
    store = open_state(tmp_path)
    with pytest.raises(DamagedRecord):
        store.get(b"k00100")
    assert store.get(b"k00101") is not None
    with pytest.raises(DamagedRecord):
        store.scan(b"k", b"l", limit=1_000, bytes_max=1 << 20)
    assert len(store.scan(b"k", b"k00100", limit=1_000, bytes_max=1 << 20)[0]) == 100
    store.close()


async def test_a_flipped_record_is_not_sent_in_a_snapshot(tmp_path: Path) -> None:
    (await written_state(tmp_path)).close()
    flip(tmp_path, b"value<00100>", 8)
    store = open_state(tmp_path)
    reader = store.open_snapshot(2, b"k", b"l")
    assert reader is not None
    with pytest.raises(DamagedRecord):
        reader.chunk(0)
    store.close()


async def test_a_flipped_session_or_image(tmp_path: Path) -> None:
    (await written_state(tmp_path)).close()
    flip(tmp_path, b"the-answers", 2)
    store = open_state(tmp_path)
    with pytest.raises(DamagedRecord):
        store.sessions(2)
    store.close()
    flip(tmp_path, b"the-meta", 2)
    with pytest.raises(DirectoryLost):
        open_state(tmp_path)


async def test_cut_off_files_are_refused_before_they_are_mapped(tmp_path: Path) -> None:
    (await written_state(tmp_path / "state")).close()
    await written_log(tmp_path / "log", count=500)
    for folder, opener in ((tmp_path / "state", open_state), (tmp_path / "log", open_log)):
        path = folder / DATA_FILE
        os.truncate(path, path.stat().st_size * 2 // 3 // 4096 * 4096)
        with pytest.raises(StartRefused, match="cut off"):
            opener(folder)


async def test_flips_anywhere_in_the_leaf_records_never_give_wrong_data(tmp_path: Path) -> None:
    """Whatever byte of the records is hit: what is served is what was written, or it is DamagedRecord."""
    (await written_state(tmp_path)).close()
    path = tmp_path / DATA_FILE
    sound = path.read_bytes()
    rng = random.Random(1)
    caught = 0
    for _ in range(40):
        number = rng.randrange(200)
        marker = b"value<%05d>" % number
        # 24 bytes of revisions before the value, 4 of checksum behind it.
        offset = rng.randrange(-24, len(marker) + 4)
        content = bytearray(sound)
        at = content.find(marker)
        while at >= 0:
            content[at + offset] ^= 1 << rng.randrange(8)
            at = content.find(marker, at + len(marker))
        path.write_bytes(content)
        store = open_state(tmp_path)
        with pytest.raises(DamagedRecord):
            store.get(b"k%05d" % number)
        caught += 1
        store.close()
    assert caught == 40
