"""A process that writes with the real stores and says what it was told durable, until somebody ends it.

    python -m tests.storage.writer_process FOLDER

Lines on stdout: `log N` (all entries up to N are durable), `flush N` (the state is flushed at index N). The index goes
on from what is found. It acts like a replica: each entry is also applied as a put, and flushes are behind a barrier.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from kvstore.base.limits import MIB
from kvstore.storage.directory import DataDirectory
from kvstore.storage.log_store import LmdbLogStore
from kvstore.storage.protocol import LogWrite, Record, ReplicaIdentity, ShardChange
from kvstore.storage.state_store import LmdbStateStore
from raft.types import Entry, EntryKind, HardState
from tests.storage.backends import image

GROUP = 2
KEYS = 5_000
ENTRIES_PER_SUBMISSION = 3
FLUSH_EVERY = 300


def say(what: str, index: int) -> None:
    """One write, so that a line is whole or not there."""
    os.write(1, f"{what} {index}\n".encode())


def give_up(error: BaseException) -> None:
    os.write(2, f"fatal: {error}\n".encode())
    os._exit(3)


def key_of(index: int) -> bytes:
    return b"k%05d" % (index * 7919 % KEYS)


def entry_at(index: int) -> Entry:
    return Entry(1, index, EntryKind.NORMAL, b"entry %d " % index + bytes(index % 700))


class WriterProcess:
    def __init__(self, folder: Path) -> None:
        directory = DataDirectory.open(folder, map_bytes=256 * MIB)
        loop = asyncio.get_running_loop()
        self.log = LmdbLogStore(directory.log_path, loop=loop, on_fatal=give_up, map_bytes=256 * MIB)
        self.state = LmdbStateStore(directory.state_path, loop=loop, on_fatal=give_up, map_bytes=256 * MIB)
        image_found = self.state.shards().get(GROUP)
        self.applied = image_found.applied_index if image_found is not None else 0
        view = self.log.open_group(GROUP, verify_from=self.applied)
        self.last = view.last_index()
        self.in_flight = 0
        for index in range(self.applied + 1, self.last + 1):  # replay
            self.apply(index)
        self.flushed = self.applied

    def apply(self, index: int) -> None:
        self.state.put(key_of(index), Record(b"%d" % index, index, 1, 1))
        self.applied = index

    def append(self) -> None:
        first = self.last + 1
        self.last += ENTRIES_PER_SUBMISSION
        new = [entry_at(index) for index in range(first, self.last + 1)]
        last = self.last

        def durable() -> None:
            self.in_flight -= 1
            say("log", last)

        self.in_flight += 1
        write = LogWrite(GROUP, identity=ReplicaIdentity(1), entries=new, hard_state=HardState(1, 1, first - 1))
        self.log.submit([write], durable)
        for one in new:
            self.apply(one.index)

    def flush(self) -> None:
        self.flushed = index = self.applied
        self.state.freeze()
        changes = {GROUP: ShardChange(image(index), {index.to_bytes(16, "big"): b"answers"})}

        def written() -> None:
            say("flush", index)
            if index > 2_000:
                self.log.submit([LogWrite(GROUP, compact_to=index - 1_000)], lambda: None)

        self.log.submit([], lambda: self.state.write_frozen(changes, written))

    async def run(self) -> None:
        say("ready", self.last)
        while True:
            for _ in range(4):
                self.append()
            if self.applied - self.flushed >= FLUSH_EVERY and not self.state.flushing:
                self.flush()
            await asyncio.sleep(0)
            while self.in_flight > 20:  # noqa: ASYNC110 - what is waited for is one of many
                await asyncio.sleep(0.0001)


async def main() -> None:
    await WriterProcess(Path(sys.argv[1])).run()


if __name__ == "__main__":
    asyncio.run(main())
