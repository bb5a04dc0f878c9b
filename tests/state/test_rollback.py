"""Goal: an entry that the store fails in the middle of (a damaged record) has no effect at all.

Method: apply a random log; before each entry, let every one of the store's reads fail in turn, and compare every byte.
"""

from __future__ import annotations

import pytest

from kvstore.base.errors import DamagedRecord
from kvstore.storage.protocol import Record
from tests.state.fake_store import FakeStore
from tests.state.machine import Machine, descriptor
from tests.state.random_log import LIMITS, random_log


class FailingStore(FakeStore):
    """Fails at the given number of reads from now; a negative number = never."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_left = -1

    def _read(self) -> None:
        self.reads_left -= 1
        if self.reads_left == -1:
            self.reads_left = -2
            raise DamagedRecord("as the test wants it")

    def get(self, key: bytes) -> Record | None:
        self._read()
        return super().get(key)

    def scan(
        self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
    ) -> tuple[list[tuple[bytes, Record]], bool]:
        self._read()
        return super().scan(start, end, limit=limit, bytes_max=bytes_max, reverse=reverse)


@pytest.mark.parametrize("seed", range(3))
def test_an_entry_is_applied_as_a_whole_or_not_at_all(seed: int) -> None:
    store = FailingStore()
    machine = Machine(LIMITS, store=store, shard=descriptor(b"k05", b"k55"))
    failures = 0
    for data in random_log(seed, 40):
        before = machine.dump()
        index = machine.state.applied_index
        reads = 0
        while True:
            store.reads_left = reads
            try:
                machine.entry_of(data)
            except DamagedRecord:
                failures += 1
                reads += 1
                assert machine.state.applied_index == index
                assert machine.dump() == before
                continue
            break
        store.reads_left = -1
    assert failures > 100
    sound = Machine(LIMITS, shard=descriptor(b"k05", b"k55"))
    for data in random_log(seed, 40):
        sound.entry_of(data)
    assert machine.dump() == sound.dump(), "what was taken back left no trace in what followed"
