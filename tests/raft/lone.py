"""One replica whose messages are written by hand: for tests of what it answers to a single message."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from raft import (
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MemoryLog,
    Message,
    MessageType,
    RawNode,
    Ready,
    Role,
    SnapshotMeta,
    decode_change,
)

CONFIG = {field.name for field in fields(Config)}


def entries_of(terms: Sequence[int], *, first: int = 1) -> list[Entry]:
    """Entries with these terms, one after the other."""
    return [Entry(term, index, EntryKind.NORMAL, b"%d/%d" % (index, term)) for index, term in enumerate(terms, first)]


class Lone:
    """Replica 1 of a group. Its disk is done with everything at the end of each call, unless `slow_disk`."""

    def __init__(
        self,
        *,
        voters: tuple[int, ...] = (1, 2, 3),
        learners: tuple[int, ...] = (),
        terms: Sequence[int] = (),
        term: int | None = None,
        vote: int = 0,
        commit: int = 0,
        compacted: int = 0,
        seed: int = 1,
        barred: bool = False,
        **settings: Any,
    ) -> None:
        self.config = Config(**({"replica_id": 1, "election_ticks": 10, "heartbeat_ticks": 1} | settings))
        self.log = MemoryLog(conf_state=ConfState(voters=voters, learners=learners))
        self.log.append(entries_of(terms))
        self.log.set_hard_state(HardState(max([0, *terms]) if term is None else term, vote, commit))
        if compacted:
            self.log.offered = SnapshotMeta(compacted, self.log.term(compacted), ConfState(voters, learners))
            self.log.compact(compacted)
        self.now_ms = 0
        self.slow_disk = False
        self.writes: list[Ready] = []
        self.committed: list[Entry] = []
        self.readys: list[Ready] = []
        self.node = RawNode(self.config, self.log, random.Random(seed), applied=compacted, campaign_barred=barred)
        self.drain()

    # -- input

    def step(self, kind: MessageType, from_id: int = 2, *, term: int | None = None, **rest: Any) -> list[Message]:
        """One message to it; what it sends in return. `term`: default is its own."""
        message = Message(kind, to_id=1, from_id=from_id, term=self.node.term if term is None else term, **rest)
        self.node.step(message)
        return self.drain()

    def tick(self, count: int = 1) -> list[Message]:
        sent = []
        for _ in range(count):
            self.now_ms += self.config.tick_ms
            self.node.tick(self.now_ms)
            sent += self.drain()
        return sent

    def append(
        self, terms: Sequence[int], *, index: int, log_term: int, commit: int = 0, term: int | None = None
    ) -> list[Message]:
        """Entries of these terms from leader 2."""
        entries = tuple(entries_of(terms, first=index + 1))
        return self.step(MessageType.APPEND, term=term, index=index, log_term=log_term, entries=entries, commit=commit)

    # -- output

    def drain(self) -> list[Message]:
        sent: list[Message] = []
        while self.node.has_ready() or (self.writes and not self.slow_disk):
            while self.node.has_ready():
                ready = self.node.ready()
                self.readys.append(ready)
                sent += ready.messages
                if ready.ack is not None:
                    self.writes.append(ready)
                self._apply(ready)
            if not self.slow_disk:
                sent += self.finish_writes()
        return sent

    def finish_writes(self, count: int | None = None) -> list[Message]:
        """The oldest writes are durable: what leaves now."""
        sent: list[Message] = []
        for ready in self.writes[:count]:
            if ready.snapshot is not None:
                self.log.apply_snapshot(ready.snapshot)
            self.log.append(ready.entries)
            if ready.hard_state is not None:
                self.log.set_hard_state(ready.hard_state)
            assert ready.ack is not None
            sent += ready.after_append
            self.node.on_durable(ready.ack)
        del self.writes[:count]
        return sent

    def _apply(self, ready: Ready) -> None:
        for entry in ready.committed:
            if entry.kind == EntryKind.CONF_CHANGE:
                self.node.apply_conf_change(decode_change(entry.data))
            self.committed.append(entry)
            self.node.applied_to(entry.index)

    # -- short cuts

    def become_candidate(self) -> list[Message]:
        assert self.node.campaign_without_prevote()
        return self.drain()

    def become_leader(self) -> list[Message]:
        """By the votes of everybody; what it sends as a leader."""
        self.become_candidate()
        sent: list[Message] = []
        for voter in self.node.conf_state.voters:
            if voter != 1 and self.node.role != Role.LEADER:
                sent += self.step(MessageType.VOTE_REPLY, voter)
        assert self.node.role == Role.LEADER
        return sent

    def acknowledge(self, from_id: int, index: int | None = None) -> list[Message]:
        """A peer has everything up to `index`; default: all there is."""
        return self.step(MessageType.APPEND_REPLY, from_id, index=self.node.last_index if index is None else index)

    def lead_with_commit(self) -> None:
        """Leader whose no-op is committed and which has all peers replicating."""
        self.become_leader()
        for member in (*self.node.conf_state.voters, *self.node.conf_state.learners):
            if member != 1:
                self.acknowledge(member)
        assert self.node.commit == self.node.last_index

    def terms(self) -> list[int]:
        """Of the entries in the log, durable or not; the log must not be compacted."""
        log = self.node._core.log
        return [log.term(index) for index in range(1, log.last_index + 1)]


def only(messages: list[Message], kind: MessageType) -> list[Message]:
    return [message for message in messages if message.type == kind]
