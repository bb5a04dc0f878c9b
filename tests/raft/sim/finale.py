"""The end of a run: no more faults, and within a bounded number of ticks the group must be well again.

Well: a leader; a new write committed and applied by every member that was healed; no joint configuration left over; a
new read answered at every one of them. The bound is generous where it costs nothing: a run ends as soon as all is well.

Invariant: what is healed is a quorum at least. Who is not healed stays away, crashed or cut off, to the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.types import ConfChange

from .options import TICK_MS
from .replica import Replica
from .violation import EXIT_LIVENESS, Violation

if TYPE_CHECKING:
    from .world import World

_LOOK_US = 40_000
_TIMEOUTS_MAX = 40  # election timeouts from healing until all is well
_ENTRY_US = 20_000  # and so much for each entry that somebody may lack


class Finale:
    def __init__(self, world: World) -> None:
        self._world = world
        self.done = False
        self._away: list[Replica] = []  # not healed
        self._deadline_us = 0
        self._term = 0  # in which the write was proposed
        self._index = 0
        self._asked_us = 0
        self._goal = ""

    def begin(self) -> None:
        world = self._world
        world.nemesis.end()
        world.workload.end()
        options = world.options
        world.network.become_good()
        options.disk.sync_us = (100, 2_000)
        options.disk.slow = options.snapshot_loss = 0.0
        options.snapshot_us = (2_000, 20_000)
        options.apply_us = min(options.apply_us, 1_000)
        options.pump_us = min(options.pump_us, 1_000)
        self._away = self._choose_away()
        world.note(None, "healed", *(replica.id for replica in world.replicas.values() if replica not in self._away))
        for replica in world.replicas.values():
            self._heal(replica)
        # With the narrowest windows a backlog goes entry by entry.
        backlog = max(replica.disk.log.last for replica in world.replicas.values()) - world.checker.founding.index
        timeouts_us = _TIMEOUTS_MAX * options.election_ticks * TICK_MS * 1_000
        self._deadline_us = world.now_us + timeouts_us + backlog * _ENTRY_US
        world.later(_LOOK_US, None, self._look, ())

    def _choose_away(self) -> list[Replica]:
        world = self._world
        # With the membership in flux there may be no telling which quorum is asked; then all are healed.
        if not world.options.core_only_heals or world.options.work.conf_change or world.options.faults.damage:
            return []
        voters = list(world.checker.founding.conf_state.voters)
        world.rng.shuffle(voters)
        return [world.replicas[voter] for voter in voters[len(voters) // 2 + 1 :]]

    def _heal(self, replica: Replica) -> None:
        world = self._world
        replica.disk_slow_until_us = 0
        replica.disk.snapshot_hidden = False
        if replica not in self._away:
            if replica.alive:
                world.resume(replica, replica.incarnation)
            else:
                world.restart(replica)
        elif replica.alive and world.rng.random() < 0.5:
            world.crash(replica)
        else:
            world.network.split([replica.id], [other for other in world.replicas if other != replica.id])

    def _look(self) -> None:
        world = self._world
        if self._all_well():
            self.done = True
            return
        if world.now_us > self._deadline_us:
            raise Violation("liveness", f"long after healing: {self._goal}", exit_code=EXIT_LIVENESS)
        world.later(_LOOK_US, None, self._look, ())

    def _all_well(self) -> bool:
        world = self._world
        leader = world.newest_leader()
        if leader is None or leader in self._away or leader.paused_until_us:
            self._goal = "no leader"
            return False
        if not self._written(leader) or not self._conf_settled(leader):
            return False
        conf = leader.node.conf_state
        members = []
        for member in (*conf.voters, *conf.learners):
            replica = world.replicas.get(member)
            if replica in self._away:
                continue
            if replica is None or not replica.alive or replica.machine.index < self._index:
                self._goal = f"replica {member} has not applied {self._index}"
                return False
            members.append(replica)
        return self._all_read(members)

    def _written(self, leader: Replica) -> bool:
        world = self._world
        checker = world.checker
        if self._index and self._index <= checker.commit and checker.committed[self._index] == self._term:
            return True
        self._goal = "no write is committed"
        if leader.term > self._term:
            place = world.workload.propose_now(leader, world.workload.payloads(1))
            if place is not None:
                self._term, self._index = place
        return False

    def _conf_settled(self, leader: Replica) -> bool:
        conf = leader.node.conf_state
        if not conf.voters_outgoing:
            return True
        self._goal = f"still joint: {conf}"
        if not conf.auto_leave:
            self._world.workload.propose_change(leader, ConfChange())
        return False

    def _all_read(self, members: list[Replica]) -> bool:
        world = self._world
        marks = world.checker.marks
        unread = [replica for replica in members if not marks[f"final {replica.id} reads"]]
        if not unread:
            return True
        self._goal = f"no read is answered at {', '.join(map(str, unread))}"
        # An attempt may be lost with a change of leader: ask again, but not so often that rounds pile up.
        if world.now_us - self._asked_us > TICK_MS * 1_000 * 4:
            self._asked_us = world.now_us
            for replica in unread:
                world.workload.read_index_from(replica, f"final {replica.id}")
        return False

    def check_end(self) -> None:
        """Whoever has caught up holds what was ever called committed."""
        checker = self._world.checker
        for replica in self._world.replicas.values():
            if replica.alive and replica.machine.index >= self._index:
                last = min(replica.machine.index, checker.commit)
                if not replica.view.holds(last, checker.committed[last]):
                    raise Violation("committed-lost", f"{replica} ends without {last}/{checker.committed[last]}")
