"""One replica of the simulated group: the driver around a RawNode, with its process, clock and disk.

It does what the contract of the package asks of a driver, in the order in which a real one would: step, take a Ready,
send what may leave, give the rest to the disk, apply. Everything between two events of the world is one turn of its
loop: a crash falls between turns, and so loses any suffix of (send, write, apply).

Invariant: `view` is the log as the core has it, `disk.log` the durable part of it.
Invariant: nothing of a process survives its crash but `disk` and the clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raft.confchange import decode_change
from raft.config import Config
from raft.errors import StepRefused
from raft.raw_node import RawNode
from raft.types import AppendAck, Entry, EntryKind, HardState, Message, MessageType, Ready, Role

from .checker import Checker
from .disk import Disk, Write
from .healing import Healing
from .machine import MachineState, applied
from .options import TICK_MS
from .reads import Reads
from .violation import Violation

if TYPE_CHECKING:
    from .world import World

_READYS_MAX = 20_000  # in one turn; more would be a Ready that never empties


class Replica:
    def __init__(self, world: World, replica_id: int, founding: MachineState, hard_state: HardState) -> None:
        self.world = world
        self.id = replica_id
        self.disk = Disk(founding, hard_state)
        self.incarnation = 0
        self.alive = False
        self.destroyed = False
        self.durable_term = hard_state.term  # the checker's record
        self.rate = 1.0
        self.clock_offset_ms = 0
        self.last_tick_ms = 0
        self.disk_slow_until_us = 0
        self.damaged = False  # durable: it has lost log records and is not whole again
        self.damaged_in = 0  # incarnation; what older ones have sent is dropped

    def __str__(self) -> str:
        return f"replica {self.id}"

    # -- life

    def start(self) -> None:
        """A new process, from what is durable. A machine that was off starts its clock anew now and then."""
        world = self.world
        options = world.options
        rng = world.rng
        self.alive = True
        self.view = self.disk.log.copy()
        self.machine = self.disk.flushed
        self.paused_until_us = 0
        self.deferred: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.requests: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.pump_due = False
        self.apply_due = False
        self.apply_queue: deque[Entry | MachineState] = deque()
        self.applied_told = self.machine.index
        self.staged: dict[tuple[int, int], MachineState] = {}  # snapshots whose bytes are here
        self.reads = Reads(self)
        self.healing = Healing(self)
        self.asleep_under: tuple[int, int] | None = None
        self.term = self.disk.hard_state.term
        self.role = Role.FOLLOWER
        self.clock_offset_ms = rng.randrange(1 << 20)
        now_ms = self.clock_ms()
        self.turn_ms = now_ms
        self.last_tick_ms = 0
        world.checker.check_state(self, self.machine)
        self.node = RawNode(
            self.config(),
            self.disk,
            random.Random(rng.getrandbits(32)),
            applied=self.machine.index,
            now_ms=now_ms,
            campaign_barred=self.damaged,
        )
        self.commit = self.node.commit
        world.note(self, "start", self.term, self.commit, self.view.last)
        world.later(rng.randrange(self.tick_us(options.late_tick)), self, self._tick, ())

    def config(self) -> Config:
        options = self.world.options
        return Config(
            replica_id=self.id,
            election_ticks=options.election_ticks,
            heartbeat_ticks=options.heartbeat_ticks,
            tick_ms=TICK_MS,
            pre_vote=options.pre_vote,
            check_quorum=options.check_quorum,
            lease_reads=options.lease_reads,
            append_bytes_max=options.append_bytes_max,
            inflight_messages_max=options.inflight_messages_max,
            inflight_bytes_max=options.inflight_bytes_max,
            uncommitted_bytes_max=options.uncommitted_bytes_max,
            committed_bytes_max=options.committed_bytes_max,
        )

    def crash(self) -> None:
        """The process ends now. Of the sync under way, the disk may have all, nothing, or the first Readys."""
        assert self.alive
        self.alive = False
        self.incarnation += 1
        rng = self.world.rng
        options = self.world.options.disk
        disk = self.disk
        count = 0
        if disk.syncing:
            if rng.random() < options.synced_at_crash:
                count = len(disk.syncing)
            elif rng.random() < options.torn_at_crash:
                count = rng.randrange(len(disk.syncing))
        for write in disk.syncing[:count]:
            disk.make_durable(write)
            self.world.checker.on_durable(self)
        self.world.note(self, "crash", count, len(disk.syncing) - count, len(disk.queue))
        disk.syncing = []
        disk.queue.clear()
        self.deferred.clear()
        self.requests.clear()

    def lose_records(self, count: int) -> None:
        """While it is down, its disk loses the last records, and the next start finds out."""
        assert not self.alive
        before = self.disk.log.copy()
        if self.disk.damage(count):
            self.damaged = True
            self.damaged_in = self.incarnation
            self.world.checker.on_damage(self, before)
            self.world.note(self, "damage", before.last, self.disk.log.last)

    def destroy(self) -> None:
        """The driver removes a replica that is no member any more; its id never comes back."""
        if self.alive:
            self.crash()
        self.destroyed = True
        self.world.note(self, "destroyed")

    # -- time

    def clock_ms(self) -> int:
        return self.clock_offset_ms + int(self.world.now_us * self.rate / 1_000)

    def tick_us(self, late: float) -> int:
        rng = self.world.rng
        interval = int(TICK_MS * 1_000 / self.rate) + 1_000
        if late and rng.random() < late:
            interval += rng.randrange(3 * interval)
        return interval

    def _tick(self) -> None:
        """Two ticks are never closer than a tick by the replica's own clock, however late the first was."""
        node = self.node
        self.turn_ms = now_ms = self.clock_ms()
        assert not self.last_tick_ms or now_ms >= self.last_tick_ms + TICK_MS
        self.last_tick_ms = now_ms
        if node.asleep:
            self.world.checker.marks["asleep"] += 1
            self._watch_sleep()
        else:
            self.asleep_under = None
            node.tick(now_ms)
            self.healing.tick()
            self.turn_over()
        world = self.world
        world.later(self.tick_us(world.options.late_tick), self, self._tick, ())

    def _watch_sleep(self) -> None:
        """A sleeping group is watched from outside: the leader's node must be there, the same process as before."""
        world = self.world
        node = self.node
        leader = world.replicas.get(node.leader_id)
        if leader is self:
            return
        if leader is None or not leader.alive:
            gone = True
        else:
            under = (leader.id, leader.incarnation)
            if self.asleep_under is None:
                self.asleep_under = under
            cut = (leader.id, self.id) in world.network.cuts
            gone = under != self.asleep_under or cut or not leader.node.asleep
        if gone and world.rng.random() < 0.3:
            world.note(self, "wake")
            if world.rng.random() < 0.5:
                node.leader_silent(node.leader_id)
            else:
                node.wake()
            self.turn_over()

    # -- turns

    def step(self, message: Message, state: MachineState | None) -> None:
        if message.snapshot is not None:
            assert state is not None
            self.staged[message.snapshot.index, message.snapshot.term] = state
        try:
            self.node.step(message)
        except StepRefused:
            return
        self.turn_over()

    def turn_over(self) -> None:
        """Events have changed the core: take Readys now, or soon, when others have gathered."""
        node = self.node
        if node.commit != self.commit and node.role is Role.LEADER:
            # Looked at now: before the next Ready it may lead no more, or count with another membership.
            self._observe_commit(self.world.checker)
        pump_us = self.world.options.pump_us
        if not pump_us:
            self.pump()
        elif not self.pump_due:
            self.pump_due = True
            self.world.later(self.world.rng.randrange(pump_us), self, self.pump, ())

    def pump(self) -> None:
        self.pump_due = False
        node = self.node
        for _ in range(_READYS_MAX):
            if node.has_ready():
                self._take(node.ready())
            elif not self._apply_some():
                return
        raise Violation("ready-endless", f"{self} always has a Ready")

    def _take(self, ready: Ready) -> None:
        checker = self.world.checker
        state = None
        if ready.snapshot is not None:
            state = self.staged[ready.snapshot.index, ready.snapshot.term]
            checker.on_snapshot(self, state)
            checker.marks["snapshots"] += 1
            self.view.restart_at(state.index, state.term)
            self.apply_queue.append(state)
        if ready.entries:
            checker.on_append(self, ready.entries)
            self.view.write(ready.entries)
        self.observe(checker)
        for message in ready.messages:
            self._send(message)
        if ready.ack is not None or ready.after_append:
            self._submit(Write(ready, state))
        if ready.committed:
            self.apply_queue.extend(ready.committed)
            self._schedule_apply()
        for read_state in ready.read_states:
            if not self.healing.on_read_state(read_state):
                self.reads.on_read_state(read_state)

    def observe(self, checker: Checker) -> None:
        """Compare role, term and commit index with those of the last look."""
        node = self.node
        term = node.term
        role = node.role
        if term != self.term or role is not self.role:
            if term < self.term:
                raise Violation("term-monotone", f"{self} goes back from term {self.term} to {term}")
            self.world.note(self, role.name.lower(), term, node.commit, self.view.last)
            if role is Role.LEADER:
                checker.on_leader(self, term, node.conf_state)
                self.world.leader_seen(self, term)
            self.term = term
            self.role = role
        if node.commit != self.commit:
            self._observe_commit(checker)

    def _observe_commit(self, checker: Checker) -> None:
        node = self.node
        commit = node.commit
        role = node.role
        self.world.note(self, "commit", commit)
        checker.on_commit(self, self.commit, commit, role, node.term, node.conf_state)
        self.commit = commit
        if role is Role.LEADER and self.world.options.lease_reads:
            self.world.check_leases(self, node.term)

    def _send(self, message: Message) -> None:
        world = self.world
        world.checker.on_send(self, message)
        if message.type is MessageType.SNAPSHOT:
            world.send_snapshot(self, message)
        else:
            world.send(self, message)

    # -- disk

    def _submit(self, write: Write) -> None:
        disk = self.disk
        disk.queue.append(write)
        if disk.syncing:
            return
        if write.ready.ack is None:
            # Nothing to store and nothing before it on its way: its messages need not wait.
            self.sync_done()
        else:
            self._begin_sync()

    def _begin_sync(self) -> None:
        self.disk.begin_sync()
        self.world.disk_later(self)

    def sync_done(self) -> None:
        """The platter has it. This happens in the disk, whatever the process does (it may be paused)."""
        disk = self.disk
        if not disk.syncing:
            disk.begin_sync()
        done = disk.syncing
        disk.syncing = []
        checker = self.world.checker
        for write in done:
            disk.make_durable(write)
            checker.on_durable(self)
            for message in write.ready.after_append:
                checker.on_send(self, message)
        self.world.now_or_after_pause(self, self._on_synced, (done,))
        if disk.queue and not disk.syncing:
            self._begin_sync()

    def _on_synced(self, done: list[Write]) -> None:
        for write in done:
            for message in write.ready.after_append:
                self.world.send(self, message)
            ack = write.ready.ack
            if ack is not None:
                self._acknowledge(ack, write)
        self.turn_over()

    def _acknowledge(self, ack: AppendAck, write: Write) -> None:
        if write.state is not None:
            self._install(write.state)
        self.node.on_durable(ack)
        newer = any(isinstance(item, MachineState) for item in self.apply_queue)
        if write.state is not None and not newer and self.node.conf_state != self.machine.conf_state:
            raise Violation("conf-differs", f"{self} counts with {self.node.conf_state} at {self.machine}")

    def flush(self) -> None:
        if self.disk.flush(self.machine):
            self.world.note(self, "flush", self.machine.index)

    # -- applying

    def _install(self, state: MachineState) -> None:
        """The snapshot is durable: the state machine starts from it. What waits before it in the queue is in it."""
        queue = self.apply_queue
        while queue:
            head = queue.popleft()
            if head is state:
                break
        else:
            raise AssertionError("the snapshot was not in the queue")
        self.machine = state
        self.world.note(self, "install", state.index)
        self._told_applied(state.index)
        if queue:
            self._schedule_apply()

    def _schedule_apply(self) -> None:
        apply_us = self.world.options.apply_us
        if apply_us and not self.apply_due:
            self.apply_due = True
            self.world.later(self.world.rng.randrange(apply_us), self, self._apply_turn, ())

    def _apply_turn(self) -> None:
        self.apply_due = False
        # The last Ready before a change of membership must be looked at under the membership it was made under.
        self.pump()
        self._apply_chunk()
        self.turn_over()
        if self.apply_queue and not isinstance(self.apply_queue[0], MachineState):
            self._schedule_apply()

    def _apply_some(self) -> bool:
        """False when there is nothing to apply now."""
        queue = self.apply_queue
        if self.world.options.apply_us or not queue or isinstance(queue[0], MachineState):
            return False
        self._apply_chunk()
        return True

    def _apply_chunk(self) -> None:
        """Up to a change of membership, a snapshot that is not durable yet, or the end of the queue."""
        queue = self.apply_queue
        checker = self.world.checker
        machine = self.machine
        conf_changed = False
        while queue and not conf_changed:
            entry = queue[0]
            if isinstance(entry, MachineState):
                break
            queue.popleft()
            if entry.index != machine.index + 1:
                raise Violation("apply-order", f"{self} is handed {entry.index} after {machine.index}")
            conf_state = machine.conf_state
            if entry.kind is EntryKind.CONF_CHANGE:
                conf_state = self.node.apply_conf_change(decode_change(entry.data))
                conf_changed = True
                self.world.note(self, "conf", entry.index, conf_state)
                checker.marks["conf changes"] += 1
            machine = applied(machine, entry, conf_state)
            checker.on_apply(self, entry, machine)
        if machine is not self.machine:
            self.machine = machine
            self._told_applied(machine.index)

    def _told_applied(self, index: int) -> None:
        self.node.applied_to(index)
        self.reads.on_applied(index)
