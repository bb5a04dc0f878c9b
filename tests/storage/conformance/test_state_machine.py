"""Goal: whatever is done in whatever order, and wherever it crashes, the state is what two dicts say.

Method: hypothesis drives a store and a model of two shards. The model keeps what the disk may hold after each step of
each job; what is found after a crash must be one of those, and none before the last that was told durable. What lies
in an incomplete range is anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from kvstore.storage.protocol import Record, ShardChange, ShardImage, SnapshotHeader
from kvstore.storage.state_store import EnvStateStore
from tests.storage.backends import image
from tests.storage.conformance.machine import SETTINGS, StoreMachine

RANGES = {2: (b"a", b"m"), 3: (b"m", b"z")}
KEYS = [bytes((letter,)) * length for letter in b"abclmnxy" for length in (1, 3)]
keys = st.sampled_from(KEYS)
shards = st.sampled_from(sorted(RANGES))
sessions = st.sampled_from([bytes((number,)) * 16 for number in range(3)])


def inside(group: int, key: bytes) -> bool:
    start, end = RANGES[group]
    return start <= key < end


@dataclass
class Disk:
    """What is flushed."""

    data: dict[bytes, Record] = field(default_factory=dict)
    images: dict[int, ShardImage] = field(default_factory=dict)
    sessions: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    incomplete: frozenset[int] = frozenset()

    def without(self, group: int) -> Disk:
        return Disk(
            {key: record for key, record in self.data.items() if not inside(group, key)},
            {other: found for other, found in self.images.items() if other != group},
            {name: answers for name, answers in self.sessions.items() if name[0] != group},
            self.incomplete | {group},
        )


@dataclass
class Snapshot:
    header: SnapshotHeader
    chunks: list[bytes]
    data: dict[bytes, Record]
    sessions: dict[tuple[int, bytes], bytes]


class StateMachine(StoreMachine):
    @initialize()
    def start(self) -> None:
        self.disk = Disk()  # once all that is submitted is durable
        self.history: list[tuple[int, Disk]] = [(0, self.disk)]  # (number of the submission that leads to it, state)
        self.table: dict[bytes, Record | None] = {}
        self.frozen: dict[bytes, Record | None] | None = None
        self.dirty: dict[int, dict[bytes, bytes | None]] = {}  # changed sessions of loaded shards
        self.live: set[int] = set()  # shards that run: their range may be read and written
        self.snapshots: dict[int, Snapshot] = {}
        self.revision = 0
        self.store: EnvStateStore = self.backend.state()

    def moved(self, *steps: Disk) -> Callable[[], None]:
        """The next submission takes the disk through these states."""
        done = self.done()
        self.history += [(self.submitted, step) for step in steps]
        self.disk = steps[-1]
        return done

    def visible(self) -> dict[bytes, Record]:
        found: dict[bytes, Record | None] = {**self.disk.data, **(self.frozen or {}), **self.table}
        return {
            key: record
            for key, record in found.items()
            if record is not None and any(inside(group, key) for group in self.live)
        }

    def next_image(self) -> ShardImage:
        self.revision += 1
        return image(self.revision)

    # -- the data

    @rule(key=keys, size=st.integers(0, 50))
    def put(self, key: bytes, size: int) -> None:
        if not any(inside(group, key) for group in self.live):
            return
        self.revision += 1
        record = Record(bytes(size), self.revision, 1, 1)
        self.store.put(key, record)
        self.table[key] = record

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        if any(inside(group, key) for group in self.live):
            self.store.delete(key)
            self.table[key] = None

    @rule(group=shards, session=sessions, answers=st.one_of(st.none(), st.binary(max_size=20)))
    def change_session(self, group: int, session: bytes, answers: bytes | None) -> None:
        if group in self.live:
            self.dirty.setdefault(group, {})[session] = answers

    # -- shards

    @rule(group=shards)
    def create(self, group: int) -> None:
        self.wait()  # a destruction must have ended
        if group in self.disk.images or group in self.disk.incomplete or self.frozen is not None:
            return
        first = self.next_image()
        done = self.moved(replace(self.disk, images={**self.disk.images, group: first}))
        self.store.create_shard(group, first, done)
        self.wait()
        self.live.add(group)

    @rule(hold=st.booleans())
    def flush(self, hold: bool) -> None:
        if self.frozen is not None:
            return
        if self.store.flushing:
            self.wait()
        self.store.freeze()
        self.frozen, self.table = self.table, {}
        self.frozen_changes = {group: ShardChange(self.next_image(), self.dirty.pop(group, {})) for group in self.live}
        if not hold:
            self.write()

    @rule()
    def write(self) -> None:
        """The log holds what was frozen; the flush may be written."""
        if self.frozen is None:
            return
        merged = {**self.disk.data, **self.frozen}
        data = {key: record for key, record in merged.items() if record is not None}
        flushed = replace(self.disk, data=data, images=dict(self.disk.images), sessions=dict(self.disk.sessions))
        for group, change in self.frozen_changes.items():
            flushed.images[group] = change.image
            for session, answers in change.sessions.items():
                if answers is None:
                    flushed.sessions.pop((group, session), None)
                else:
                    flushed.sessions[group, session] = answers
        self.frozen = None
        given = dict(self.frozen_changes)
        given.update(self.given_up_changes)
        self.given_up_changes: dict[int, ShardChange] = {}
        self.store.write_frozen(given, self.moved(flushed))

    given_up_changes: dict[int, ShardChange] = {}  # noqa: RUF012 - replaced, never changed

    def give_up(self, group: int) -> None:
        """The shard's install or destruction begins: what of it is in the tables is gone."""
        self.live.discard(group)
        self.dirty.pop(group, None)
        self.table = {key: record for key, record in self.table.items() if not inside(group, key)}
        if self.frozen is not None:
            self.frozen = {key: record for key, record in self.frozen.items() if not inside(group, key)}
            if group in self.frozen_changes:
                # The host still hands it over: the store must leave it out.
                self.given_up_changes = {**self.given_up_changes, group: self.frozen_changes.pop(group)}

    @rule(group=shards)
    def take_snapshot(self, group: int) -> None:
        if self.frozen is not None:
            return
        self.wait()
        reader = self.store.open_snapshot(group, *RANGES[group])
        assert (reader is None) == (group not in self.disk.images)
        if reader is None:
            return
        chunks: list[bytes] = []
        while (chunk := reader.chunk(len(chunks))) is not None:
            chunks.append(chunk)
        reader.close()
        assert reader.header.image == self.disk.images[group]
        self.snapshots[group] = Snapshot(
            reader.header,
            chunks,
            {key: record for key, record in self.disk.data.items() if inside(group, key)},
            {name: answers for name, answers in self.disk.sessions.items() if name[0] == group},
        )

    @rule(group=shards, finish=st.booleans(), wait=st.booleans())
    def install(self, group: int, finish: bool, wait: bool) -> None:
        snapshot = self.snapshots.get(group)
        if snapshot is None:
            return
        self.give_up(group)
        self.store.install_begin(snapshot.header, self.moved(self.disk.without(group)))
        if wait:
            self.wait()
        for chunk in snapshot.chunks:
            self.store.install_chunk(group, chunk, self.moved(self.disk))
        if not finish:
            return
        installed = replace(
            self.disk,
            data={**self.disk.data, **snapshot.data},
            images={**self.disk.images, group: snapshot.header.image},
            sessions={**self.disk.sessions, **snapshot.sessions},
            incomplete=self.disk.incomplete - {group},
        )
        self.store.install_finish(snapshot.header, self.moved(installed))
        self.wait()
        self.live.add(group)

    @rule(group=shards, wait=st.booleans())
    def destroy(self, group: int, wait: bool) -> None:
        self.give_up(group)
        marked = self.disk.without(group)
        gone = replace(marked, incomplete=marked.incomplete - {group})
        self.store.destroy_shard(group, *RANGES[group], self.moved(marked, gone))
        if wait:
            self.wait()

    # -- time

    @rule(steps=st.integers(0, 3))
    def let_time_pass(self, steps: int) -> None:
        self.run_loop(steps * 0.0004)

    @rule(crash=st.booleans(), seed=st.integers(0, 1 << 16))
    def begin_anew(self, crash: bool, seed: int) -> None:
        told = self.told
        self.restart(crash=crash, seed=seed)
        self.store = self.backend.state()
        sure = max(at for at, (number, _) in enumerate(self.history) if number <= told)
        possible = [step for _, step in (self.history[sure:] if crash else self.history[-1:])]
        found = next((disk for disk in possible if self.holds(disk)), None)
        assert found is not None, f"none of the {len(possible)} states that may have survived"
        self.disk = found
        self.history = [(0, found)]
        self.submitted = self.told = 0
        self.table, self.frozen, self.dirty, self.given_up_changes = {}, None, {}, {}
        self.live = set(found.images)

    def holds(self, disk: Disk) -> bool:
        def keep(key: bytes) -> bool:
            return not any(inside(group, key) for group in disk.incomplete)

        pairs, _ = self.store.scan(b"\0", b"\xff", limit=1_000, bytes_max=1 << 20)
        return (
            set(self.store.incomplete()) == disk.incomplete
            and dict(self.store.shards()) == {g: i for g, i in disk.images.items() if g not in disk.incomplete}
            and {key: record for key, record in pairs if keep(key)} == {k: r for k, r in disk.data.items() if keep(k)}
            and all(
                dict(self.store.sessions(group))
                == {session: answers for (owner, session), answers in disk.sessions.items() if owner == group}
                for group in RANGES
                if group not in disk.incomplete
            )
        )

    @invariant()
    def reads_are_the_model(self) -> None:
        visible = self.visible()
        for group in self.live:
            start, end = RANGES[group]
            wanted = sorted(pair for pair in visible.items() if inside(group, pair[0]))
            for reverse in (False, True):
                wanted_now = wanted[::-1] if reverse else wanted
                for limit in (3, 100):
                    got = self.store.scan(start, end, limit=limit, bytes_max=1 << 20, reverse=reverse)
                    assert got == (wanted_now[:limit], len(wanted) > limit)
            for key in KEYS:
                if inside(group, key):
                    assert self.store.get(key) == visible.get(key)


class LmdbStateMachine(StateMachine):
    kind = "lmdb"


class MemoryStateMachine(StateMachine):
    kind = "memory"


TestLmdb = LmdbStateMachine.TestCase
TestLmdb.settings = SETTINGS["lmdb"]
TestMemory = MemoryStateMachine.TestCase
TestMemory.settings = SETTINGS["memory"]
