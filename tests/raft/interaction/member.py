"""One replica in the environment, with the queue of its disk and the queue of what it applies.

Invariant: `log` holds what is durable; writes that are asked for and not done are in `writes`, in order.
Invariant: a crash loses `writes`, `applies` and what was applied after the last flush.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from raft import (
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MemoryLog,
    Message,
    RawNode,
    Ready,
    Role,
    SnapshotMeta,
    decode_change,
)

from . import describe


class FixedRandom(random.Random):
    """Lower ids come first: replica 1 waits for exactly the election timeout, 2 for one tick more, ..."""

    def __init__(self, replica_id: int) -> None:
        super().__init__(0)
        self._offset = replica_id - 1

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        low, high = (0, start) if stop is None else (start, stop)
        return low + self._offset % (high - low)


@dataclass(slots=True)
class Apply:
    """A step of the state machine: entries, or a snapshot that takes the place of everything."""

    entries: list[Entry] = field(default_factory=list)
    snapshot: SnapshotMeta | None = None


class Member:
    def __init__(self, config: Config, conf_state: ConfState, founded: int) -> None:
        """`founded`: what the group starts from (its membership too) is a snapshot at this index. A replica that is
        added later begins with nothing, so it gets that snapshot, and not a log that does not tell of the founders."""
        self.config = config
        self.log = MemoryLog(conf_state=conf_state)
        if founded:
            self.log.offered = SnapshotMeta(founded, 1, conf_state)
            self.log.apply_snapshot(self.log.offered)
            self.log.set_hard_state(HardState(term=1, commit=founded))
        self.node = self._start(barred=False, now_ms=0)

    def _start(self, *, barred: bool, now_ms: int) -> RawNode:
        self.now_ms = now_ms
        self.writes: deque[Ready] = deque()
        self.applies: deque[list[Entry]] = deque()
        self.machine: list[str] = []  # what was applied since the flushed state, for the eye
        self.flushed = self.log.first_index() - 1
        return RawNode(
            self.config,
            self.log,
            FixedRandom(self.config.replica_id),
            applied=self.flushed,
            now_ms=now_ms,
            campaign_barred=barred,
        )

    @property
    def role(self) -> str:
        node = self.node
        leader = f" leader={node.leader_id}" if node.role == Role.FOLLOWER else ""
        return f"{node.role.name} at term {node.term}{leader}"

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.now_ms += self.config.tick_ms
            self.node.tick(self.now_ms)

    def take_ready(self) -> tuple[list[str], list[Message]]:
        """What it says, and the messages that may leave at once."""
        ready = self.node.ready()
        lines = describe.ready(ready, role=self.role)
        if ready.ack is not None:
            self.writes.append(ready)
        if ready.committed:
            self.applies.append(ready.committed)
        return lines, ready.messages

    def persist(self) -> list[Message]:
        """The oldest write becomes durable: what may leave now."""
        ready = self.writes.popleft()
        if ready.snapshot is not None:
            assert not self.applies, "apply what came before the snapshot first"
            self.log.apply_snapshot(ready.snapshot)
            self.flushed = ready.snapshot.index
            self.machine = [f"snapshot at {ready.snapshot.index}"]
        self.log.append(ready.entries)
        if ready.hard_state is not None:
            self.log.set_hard_state(ready.hard_state)
        assert ready.ack is not None
        self.node.on_durable(ready.ack)
        return ready.after_append

    def apply(self) -> list[str]:
        """The oldest batch: what changed in the membership."""
        lines = []
        for entry in self.applies.popleft():
            if entry.kind == EntryKind.CONF_CHANGE:
                lines.append(f"membership {describe.conf(self.node.apply_conf_change(decode_change(entry.data)))}")
            elif entry.data:
                self.machine.append(entry.data.decode())
            self.node.applied_to(entry.index)
        return lines

    def compact(self, index: int) -> None:
        """Make the state durable, offer it as a snapshot at the applied index, and drop the log up to `index`."""
        node = self.node
        applied = node.applied
        self.log.set_conf_state(node.conf_state)
        self.log.offered = SnapshotMeta(applied, self.log.term(applied), node.conf_state)
        self.flushed = applied
        self.log.compact(index)

    def crash(self) -> None:
        self.writes.clear()
        self.applies.clear()

    def lose_after(self, index: int) -> None:
        """Damage: durable records are gone."""
        log = self.log
        del log._entries[index + 1 - log.first_index() :]

    def restart(self, *, barred: bool) -> None:
        self.node = self._start(barred=barred, now_ms=self.now_ms)
