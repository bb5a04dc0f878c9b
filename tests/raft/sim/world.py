"""The simulated world: virtual time, the replicas, the network between them, and the order in which things happen.

Invariant: everything follows from the options (and so from the seed): one source of randomness, one queue of events
           ordered by (time, number), no iteration over sets, no clock but `now_us`.
Invariant: an event of a process does not outlive it; it waits while the process is paused.

Read first: run(). Faults are in nemesis.py, requests in workload.py, the end of a run in finale.py, the rules in
checker.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from raft.types import ConfState, HardState, Message, MessageType, Role

from .checker import Checker, quorum_holds
from .finale import Finale
from .machine import MachineState
from .nemesis import Nemesis
from .network import Network
from .options import TICK_MS, Options
from .replica import Replica
from .trace import Trace
from .violation import EXIT_CRASH, Violation
from .workload import Workload

FOUNDING_INDEX = 5
"""The founders start here, with a state that only a snapshot can bring to others."""
FOUNDING_TERM = 1
_EVENTS_MAX = 120_000  # of one run; more is a storm of messages

Action = Callable[..., object]


class World:
    def __init__(self, options: Options, trace: Trace | None = None) -> None:
        self.options = options
        self.trace = trace
        self.rng = random.Random(options.seed)
        self.now_us = 0
        self.events = 0
        self._sequence = 0
        self._queue: list[tuple[int, int, Replica | None, int, Action, tuple[Any, ...]]] = []
        self.network = Network(options.network, self.rng)
        ids = tuple(range(1, options.voters + options.learners + 1))
        self.next_id = len(ids) + 1
        conf = ConfState(voters=ids[: options.voters], learners=ids[options.voters :])
        founding = MachineState(FOUNDING_INDEX, FOUNDING_TERM, 0, conf)
        self._empty = MachineState(0, 0, 0, ConfState())
        self.checker = Checker(founding, ids)
        self.checker.states[0] = self._empty
        self.replicas: dict[int, Replica] = {}
        self._newest: Replica | None = None
        for replica_id in ids:
            self._add(replica_id, founding, HardState(FOUNDING_TERM, 0, FOUNDING_INDEX))
        self.nemesis = Nemesis(self)
        self.workload = Workload(self)
        self.finale = Finale(self)

    # -- the run

    def run(self) -> None:
        """Raises Violation. What raft/ itself raises (a failed assertion, say) becomes one."""
        try:
            for replica in self.replicas.values():
                replica.start()
            self.nemesis.begin()
            self.workload.begin()
            self._run_until(self.options.fault_ticks * TICK_MS * 1_000)
            self.finale.begin()
            while not self.finale.done:
                self._run_one()
            self.finale.check_end()
        except Violation:
            raise
        except Exception as error:
            raise Violation("exception", f"{type(error).__name__}: {error}", exit_code=EXIT_CRASH) from error

    def _run_until(self, end_us: int) -> None:
        queue = self._queue
        while queue and queue[0][0] <= end_us:
            self._run_one()
        self.now_us = end_us

    def _run_one(self) -> None:
        self.now_us, _, replica, incarnation, action, arguments = heappop(self._queue)
        self.events += 1
        if self.events > _EVENTS_MAX:
            raise Violation("storm", f"more than {_EVENTS_MAX} events")
        if replica is not None:
            if replica.incarnation != incarnation or not replica.alive:
                return
            if replica.paused_until_us:
                replica.deferred.append((action, arguments))
                return
        action(*arguments)

    def digest(self) -> int:
        """Equal for equal runs: every draw and every event has gone into it."""
        return hash((self.events, self.now_us, self.rng.getrandbits(60), self.checker.commit))

    # -- time

    def later(self, delay_us: int, replica: Replica | None, action: Action, arguments: tuple[Any, ...]) -> None:
        self._sequence += 1
        incarnation = replica.incarnation if replica is not None else 0
        heappush(self._queue, (self.now_us + delay_us, self._sequence, replica, incarnation, action, arguments))

    def now_or_after_pause(self, replica: Replica, action: Action, arguments: tuple[Any, ...]) -> None:
        """Something reaches a process: at once, or when it runs again; never when it is gone."""
        if not replica.alive:
            return
        if replica.paused_until_us:
            replica.deferred.append((action, arguments))
        else:
            action(*arguments)

    def request(self, replica: Replica, action: Action, arguments: tuple[Any, ...]) -> None:
        """A client or the driver's owner asks something of a process; it waits in a socket of its own."""
        if replica.alive and replica.paused_until_us:
            replica.requests.append((action, arguments))
        elif replica.alive:
            action(*arguments)

    def note(self, replica: Replica | None, what: str, *details: object) -> None:
        if self.trace is not None:
            self.trace.note(self.now_us, replica.id if replica is not None else 0, what, details)

    # -- replicas

    def _add(self, replica_id: int, state: MachineState, hard_state: HardState) -> Replica:
        replica = Replica(self, replica_id, state, hard_state)
        drift = self.options.drift
        replica.rate = 1.0 + self.rng.uniform(-drift, drift)
        self.replicas[replica_id] = replica
        self.checker.disks[replica_id] = replica.disk
        return replica

    def live(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.alive]

    def believers(self) -> list[Replica]:
        """Who thinks that it leads."""
        return [replica for replica in self.replicas.values() if replica.alive and replica.node.role is Role.LEADER]

    def leader_seen(self, replica: Replica, term: int) -> None:
        if self._newest is None or term >= self._newest.term:
            self._newest = replica

    def newest_leader(self) -> Replica | None:
        newest = self._newest
        if newest is None or not newest.alive or newest.role is not Role.LEADER:
            return max(self.believers(), key=lambda replica: replica.term, default=None)
        return newest

    def newest_state(self) -> MachineState:
        """The latest state that anybody has applied."""
        return self.checker.states[max(self.checker.states)]

    def check_leases(self, leader: Replica, term: int) -> None:
        """Something was committed in `term`: nobody may still believe in a lease of an older one."""
        for other in self.replicas.values():
            if other is leader or not other.alive:
                continue
            node = other.node
            if node.role is Role.LEADER and node.term < term and node.lease_valid(other.clock_ms()):
                raise Violation("lease-exclusive", f"{leader} commits in {term}, {other} holds a lease of {node.term}")

    def crash(self, replica: Replica) -> None:
        """The process ends; its connections close, which the others may see."""
        replica.crash()
        self.checker.marks["crashes"] += 1
        for other in self.live():
            if not self.options.evidence or (replica.id, other.id) in self.network.cuts:
                continue
            self.later(self.rng.randrange(5_000, 50_000), other, self._connection_closed, (other, replica.id))

    def _connection_closed(self, replica: Replica, gone: int) -> None:
        replica.node.report_unreachable(gone)
        self.evidence(replica, gone)

    def evidence(self, replica: Replica, leader_id: int) -> None:
        """Tell a replica that the leader's process is gone (true or not), and let it act on that soon."""
        if replica.node.leader_gone(leader_id):
            self.checker.marks["evidence"] += 1
            self.later(self.rng.randrange(20_000, 80_000), replica, self._hasten, (replica,))
        replica.turn_over()

    def _hasten(self, replica: Replica) -> None:
        replica.node.hasten()
        replica.turn_over()

    def restart(self, replica: Replica) -> None:
        if not replica.alive and not replica.destroyed:
            self.checker.marks["restarts"] += 1
            replica.start()

    def pause(self, replica: Replica, for_us: int = 0) -> None:
        """The process stands still (its disk does not)."""
        if not replica.alive or replica.paused_until_us:
            return
        if not for_us:
            span = TICK_MS * 1_000 * self.options.election_ticks
            for_us = self.rng.randrange(span // 10, span * 3)
        replica.paused_until_us = self.now_us + for_us
        self.note(replica, "pause", for_us)
        self.checker.marks["pauses"] += 1
        # World's own event, not the replica's: that would wait for the end of the pause.
        self.later(for_us, None, self.resume, (replica, replica.incarnation))

    def resume(self, replica: Replica, incarnation: int) -> None:
        """It goes on where it stood: in the midst of a turn of its loop, whose clock was read before the pause.

        What has come in meanwhile is taken up in the order of the sockets: requests before messages, or after them.
        """
        if replica.incarnation != incarnation or not replica.paused_until_us:
            return
        replica.paused_until_us = 0
        self.note(replica, "resume")
        waiting = [*replica.deferred, *replica.requests]
        if self.rng.random() < 0.5:
            waiting = [*replica.requests, *replica.deferred]
        replica.deferred.clear()
        replica.requests.clear()
        for position, (action, arguments) in enumerate(waiting):
            if replica.incarnation != incarnation:
                return
            if replica.paused_until_us:
                replica.deferred.extendleft(reversed(waiting[position:]))
                return
            action(*arguments)

    def maybe_tell_removed(self, replica: Replica) -> None:
        """A replica that is no member is told so and destroyed - not before a quorum of the others is sure of it.

        Sure = durable. Otherwise the others could forget that the removal was committed (a commit index need not
        survive a crash) and need the vote of a replica that does not exist any more.
        """
        state = self.newest_state()
        conf = state.conf_state
        if replica.id in (*conf.voters, *conf.learners, *conf.voters_outgoing):
            return
        disks = self.checker.disks
        if quorum_holds(conf, lambda voter: voter in disks and disks[voter].initial_state()[0].commit >= state.index):
            self.checker.marks["destroyed"] += 1
            replica.destroy()

    # -- messages and disks

    def send(self, replica: Replica, message: Message) -> None:
        trace = self.trace
        if trace is not None and trace.messages:
            trace.note(self.now_us, replica.id, "send", (message,))
        arrivals = self.network.arrivals(self.now_us, message.from_id, message.to_id)
        if message.type is MessageType.TIMEOUT_NOW:
            arrivals = self._handover_arrivals(arrivals)
        for at in arrivals:
            self._sequence += 1
            heappush(self._queue, (at, self._sequence, None, 0, self._deliver, (message, None, replica.incarnation)))

    def _handover_arrivals(self, arrivals: tuple[int, ...]) -> tuple[int, ...]:
        """The message that a transfer hangs on is late on purpose: by then the leader may have given it up."""
        options = self.options
        if self.rng.random() >= options.network.late_handover:
            return arrivals
        late_us = self.rng.randrange(3 * options.election_ticks * TICK_MS * 1_000)
        return tuple(at + late_us for at in arrivals)

    def send_snapshot(self, replica: Replica, message: Message) -> None:
        """The bytes travel beside the message; the sender's driver learns how it went."""
        meta = message.snapshot
        assert meta is not None
        state = self.checker.states[meta.index]
        if (meta.term, meta.conf_state) != (state.term, state.conf_state):
            raise Violation("snapshot-meta", f"{replica} sends {meta}, the state there is {state}")
        self.note(replica, "send", message)
        self.checker.marks["snapshots sent"] += 1
        low, high = self.options.snapshot_us
        took_us = self.rng.randrange(low, high)
        copies = self.network.arrivals(self.now_us, message.from_id, message.to_id)
        arrived = bool(copies) and self.rng.random() >= self.options.snapshot_loss
        if arrived:
            for at in copies:
                self.later(at - self.now_us + took_us, None, self._deliver, (message, state, replica.incarnation))
        self.later(took_us + 100_000, replica, self._report_snapshot, (replica, message.to_id, arrived))

    def _report_snapshot(self, replica: Replica, to_id: int, arrived: bool) -> None:
        replica.node.report_snapshot(to_id, arrived)
        replica.turn_over()

    def _deliver(self, message: Message, state: MachineState | None, sent_in: int) -> None:
        to_id = message.to_id
        if (message.from_id, to_id) in self.network.cuts:
            return
        if sent_in < self.replicas[message.from_id].damaged_in:
            return  # connections name the process; one that has lost records disowns what the one before has said
        replica = self.replicas.get(to_id)
        if replica is None:
            if to_id >= self.next_id:
                raise Violation("unknown-recipient", f"a message to {to_id}, which nobody ever added: {message}")
            replica = self._add(to_id, self._empty, HardState())
            replica.start()
        if not replica.alive:
            return
        if self.options.tell_removed and message.from_id != to_id:
            self._look_at_sender(replica, message.from_id)
        if self.trace is not None and self.trace.messages:
            self.trace.note(self.now_us, to_id, "deliver", (message,))
        if replica.paused_until_us:
            replica.deferred.append((replica.step, (message, state)))
        else:
            replica.step(message, state)

    def _look_at_sender(self, replica: Replica, from_id: int) -> None:
        conf = replica.machine.conf_state
        if from_id in conf.voters or not conf.voters or from_id in conf.learners or from_id in conf.voters_outgoing:
            return
        sender = self.replicas[from_id]
        if not sender.destroyed and self.rng.random() < self.options.tell_removed:
            self.maybe_tell_removed(sender)

    def disk_later(self, replica: Replica) -> None:
        """A sync has begun. The disk works on while the process is paused, so this is the world's event."""
        options = self.options.disk
        low, high = options.sync_us
        rng = self.rng
        took_us = low + int(rng.random() * (high - low))
        if options.slow and rng.random() < options.slow:
            took_us += int(rng.random() * options.slow_us)
        if replica.disk_slow_until_us > self.now_us:
            took_us += int(rng.random() * (replica.disk_slow_until_us - self.now_us))
        self.later(took_us, None, self._disk_done, (replica, replica.incarnation))

    def _disk_done(self, replica: Replica, incarnation: int) -> None:
        if replica.incarnation == incarnation:
            replica.sync_done()
