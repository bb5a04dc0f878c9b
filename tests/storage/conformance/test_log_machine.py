"""Goal: whatever is done in whatever order, and wherever it crashes, the log is what a list says.

Method: hypothesis drives a store and a model. The model keeps what the log was after each submission; what is found
after a crash must be one of those, and none before the last that was told durable.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from kvstore.storage.log_store import EnvLogStore
from kvstore.storage.protocol import LogWrite, ReplicaIdentity
from raft.types import Entry, EntryKind, HardState
from tests.storage.conformance.machine import SETTINGS, StoreMachine

GROUPS = (1, 2, 3)
groups = st.sampled_from(GROUPS)


@dataclass
class GroupModel:
    identity: ReplicaIdentity = field(default_factory=lambda: ReplicaIdentity(0))
    hard_state: HardState = field(default_factory=HardState)
    start: int = 0
    start_term: int = 0
    entries: tuple[Entry, ...] = ()

    @property
    def last(self) -> int:
        return self.start + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.start_term


Model = dict[int, GroupModel]


class LogMachine(StoreMachine):
    @initialize(cache=st.sampled_from((1, 500, 1 << 20)))
    def start(self, cache: int) -> None:
        self.cache = cache
        self.model: Model = {group: GroupModel() for group in GROUPS}
        self.history: list[Model] = [dict(self.model)]  # after each submission
        self.open()

    def open(self) -> None:
        self.store: EnvLogStore = self.backend.log(cache_bytes_max=self.cache)
        for group in GROUPS:
            self.store.open_group(group, verify_from=0)

    def submit(self, group: int, model: GroupModel, **fields: Any) -> None:
        self.model[group] = model
        self.store.submit([LogWrite(group, **fields)], self.done())
        self.history.append(dict(self.model))

    @rule(group=groups, back=st.integers(0, 4), count=st.integers(1, 5), size=st.integers(0, 300), hard=st.booleans())
    def append(self, group: int, back: int, count: int, size: int, hard: bool) -> None:
        model = self.model[group]
        # What is committed is never replaced; a hard state never says more than there is.
        first = max(model.last + 1 - back, model.hard_state.commit + 1, model.start + 1)
        if first > model.last + 1:
            return
        kept = model.entries[: first - 1 - model.start]
        term = model.last_term + (1 if first <= model.last or not model.last else 0)
        new = tuple(
            Entry(term, index, EntryKind.NORMAL, b"%d" % index + bytes(size)) for index in range(first, first + count)
        )
        fields: dict[str, Any] = {"entries": new}
        changed = replace(model, entries=kept + new)
        if hard:
            changed.hard_state = fields["hard_state"] = HardState(term, 1, max(model.hard_state.commit, first))
        self.submit(group, changed, **fields)

    @rule(group=groups, ahead=st.integers(-3, 6))
    def reset(self, group: int, ahead: int) -> None:
        model = self.model[group]
        index = max(model.last + ahead, model.hard_state.commit, model.start, 1)
        term = model.last_term + 1
        changed = replace(model, start=index, start_term=term, entries=())
        changed.hard_state = HardState(term, 0, index)
        self.submit(group, changed, reset=(index, term), hard_state=changed.hard_state)

    @rule(group=groups, keep=st.integers(0, 4))
    def compact(self, group: int, keep: int) -> None:
        model = self.model[group]
        index = model.last - keep
        if index <= model.start:
            return
        dropped = model.entries[: index - model.start]
        changed = replace(model, start=index, start_term=dropped[-1].term, entries=model.entries[len(dropped) :])
        self.submit(group, changed, compact_to=index)

    @rule(group=groups, replica_id=st.integers(1, 9))
    def destroy(self, group: int, replica_id: int) -> None:
        identity = ReplicaIdentity(replica_id, tombstone=True)
        self.submit(group, GroupModel(identity=identity), identity=identity, destroy=True)

    @rule(group=groups, replica_id=st.integers(1, 9), fresh=st.booleans())
    def admit(self, group: int, replica_id: int, fresh: bool) -> None:
        identity = ReplicaIdentity(replica_id)
        model = self.model[group]
        if fresh and model.hard_state == HardState():
            self.submit(group, GroupModel(identity=identity), identity=identity, reset=(0, 0))
        else:
            self.submit(group, replace(model, identity=identity), identity=identity)

    @rule()
    def barrier(self) -> None:
        self.store.submit([], self.done())
        self.history.append(dict(self.model))

    @rule(steps=st.integers(0, 3))
    def let_time_pass(self, steps: int) -> None:
        self.run_loop(steps * 0.0003)

    @rule()
    def wait_for_all(self) -> None:
        self.wait()

    @rule(crash=st.booleans(), seed=st.integers(0, 1 << 16))
    def begin_anew(self, crash: bool, seed: int) -> None:
        self.restart(crash=crash, seed=seed)
        self.open()
        possible = self.history[self.told :]
        found = next((model for model in possible if all(self.shows(group, model[group]) for group in GROUPS)), None)
        assert found is not None, f"none of the {len(possible)} states that may have survived"
        self.model = dict(found)
        self.history = [dict(found)]
        self.submitted = self.told = 0

    def shows(self, group: int, model: GroupModel) -> bool:
        log = self.store.open_group(group, verify_from=0)
        return (
            (log.first_index(), log.last_index()) == (model.start + 1, model.last)
            and log.identity == model.identity
            and log.initial_state()[0] == model.hard_state
            and log.term(model.start) == model.start_term
            and log.term(model.last) == model.last_term
            and self.read(group) == model.entries
        )

    def read(self, group: int) -> tuple[Entry, ...]:
        log = self.store.open_group(group, verify_from=0)
        low, high = log.first_index(), log.last_index() + 1
        return tuple(log.entries(low=low, high=high, bytes_max=1 << 30)) if low < high else ()

    @invariant()
    def the_log_is_the_model(self) -> None:
        for group, model in self.model.items():
            assert self.shows(group, model), (group, model)
            assert self.store.groups().get(group, ReplicaIdentity(0)) == model.identity


class LmdbLogMachine(LogMachine):
    kind = "lmdb"


class MemoryLogMachine(LogMachine):
    kind = "memory"


TestLmdb = LmdbLogMachine.TestCase
TestLmdb.settings = SETTINGS["lmdb"]
TestMemory = MemoryLogMachine.TestCase
TestMemory.settings = SETTINGS["memory"]
