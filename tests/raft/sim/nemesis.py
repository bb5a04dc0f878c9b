"""The faults of a run: which, when, and for how long.

Invariant: nothing done here is beyond what Raft survives: disks keep what they have synced, whoever crashes comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

from raft.types import Role

from .replica import Replica

if TYPE_CHECKING:
    from .world import World


class Nemesis:
    def __init__(self, world: World) -> None:
        self._world = world
        weights = world.options.faults
        actions: tuple[tuple[int, Callable[[], None]], ...] = (
            (weights.crash, self._crash),
            (weights.crash_leader, self._crash_leader),
            (weights.crash_candidate, self._crash_candidate),
            (weights.crash_all, self._crash_all),
            (weights.partition, self._partition),
            (weights.isolate_leader, self._isolate_leader),
            (weights.split_halves, self._split_halves),
            (weights.one_way, self._one_way),
            (weights.one_ear, self._one_ear),
            (weights.heal, self._heal),
            (weights.pause, self._pause),
            (weights.pause_leader, self._pause_leader),
            (weights.slow_disk, self._slow_disk),
            (weights.damage, self._damage),
        )
        self._actions = [action for weight, action in actions if weight]
        self._weights = list(accumulate(weight for weight, _ in actions if weight))
        self._running = False

    def begin(self) -> None:
        self._running = len(self._actions) > 1  # healing alone is no fault
        if self._running:
            self._next()

    def end(self) -> None:
        self._running = False

    def _next(self) -> None:
        world = self._world
        world.later(world.rng.randrange(2 * world.options.fault_us), None, self._act, ())

    def _act(self) -> None:
        if not self._running:
            return
        self._world.rng.choices(self._actions, cum_weights=self._weights)[0]()
        self._next()

    # -- processes

    def _crash_one(self, replica: Replica) -> None:
        world = self._world
        world.crash(replica)
        world.later(1_000 + world.rng.randrange(2 * world.options.restart_us), None, world.restart, (replica,))

    def _any(self) -> Replica | None:
        live = self._world.live()
        return self._world.rng.choice(live) if live else None

    def _leader(self) -> Replica | None:
        return self._world.newest_leader() or self._any()

    def _crash(self) -> None:
        if replica := self._any():
            self._crash_one(replica)

    def _crash_leader(self) -> None:
        if replica := self._leader():
            self._crash_one(replica)

    def _crash_candidate(self) -> None:
        """And it is back at once, to campaign again: in the same term, when that had not reached its disk."""
        world = self._world
        for replica in world.live():
            if replica.node.role is Role.CANDIDATE:
                world.crash(replica)
                back_us = 1_000 + world.rng.randrange(2 * world.options.restart_us)
                world.later(back_us, None, world.restart, (replica,))
                world.later(back_us + world.rng.randrange(20_000), None, world.workload.campaign, (replica,))
                return

    def _crash_all(self) -> None:
        for replica in self._world.live():
            self._crash_one(replica)

    def _pause(self) -> None:
        if replica := self._any():
            self._world.pause(replica)

    def _pause_leader(self) -> None:
        if replica := self._leader():
            self._world.pause(replica)

    def _slow_disk(self) -> None:
        replica = self._leader() if self._world.rng.random() < 0.5 else self._any()
        if replica is not None:
            world = self._world
            replica.disk_slow_until_us = world.now_us + world.rng.randrange(1_000_000)
            world.note(replica, "slow-disk")

    def _damage(self) -> None:
        """One at a time: what two have lost together, nobody may have."""
        world = self._world
        replica = self._any()
        if replica is None or any(other.damaged for other in world.replicas.values()):
            return
        self._crash_one(replica)
        replica.lose_records(world.rng.choice((1, 1, 2, 8)))

    # -- network

    def _partition(self) -> None:
        """Two random sides; not the same as isolating one, as a minority of several can elect among itself or not."""
        world = self._world
        rng = world.rng
        sides: tuple[list[int], list[int]] = ([], [])
        for replica_id in world.replicas:
            sides[rng.randrange(2)].append(replica_id)
        world.network.heal()
        world.network.split(*sides)
        world.note(None, "partition", *sides)
        world.checker.marks["partitions"] += 1

    def _isolate_leader(self) -> None:
        if replica := self._leader():
            world = self._world
            world.network.split([replica.id], [other for other in world.replicas if other != replica.id])
            world.note(None, "isolate", replica.id)
            world.checker.marks["partitions"] += 1

    def _split_halves(self) -> None:
        """The leader stays with the incoming half of a joint configuration.

        The others may have known that the configuration is joint, and forget it: a commit index need not be durable.
        """
        world = self._world
        for leader in world.believers():
            conf = leader.node.conf_state
            if not conf.voters_outgoing:
                continue
            stay = [other for other in world.replicas if other in conf.voters or other == leader.id]
            world.network.heal()
            away = [other for other in world.replicas if other not in stay]
            world.network.split(stay, away)
            for other in away:
                if world.replicas[other].alive and world.rng.random() < 0.7:
                    self._crash_one(world.replicas[other])
            world.note(leader, "halves", *stay)
            world.checker.marks["partitions"] += 1

    def _one_ear(self) -> None:
        """What the leader hears says nothing of what has become of what it says."""
        world = self._world
        leader = self._leader()
        others = [other for other in world.replicas if leader is not None and other != leader.id]
        if leader is None or not others:
            return
        ear = world.rng.choice(others)
        for other in others:
            world.network.cut_one_way(leader.id, other)
            if other != ear:
                world.network.cut_one_way(other, leader.id)
        world.note(leader, "one-ear", ear)
        world.checker.marks["one-way cuts"] += 1

    def _one_way(self) -> None:
        """One replica is not heard, or does not hear, by or from some of the others."""
        world = self._world
        rng = world.rng
        replica = self._leader() if rng.random() < 0.5 else self._any()
        if replica is None:
            return
        deaf = rng.random() < 0.5
        for other in world.replicas:
            if other != replica.id and rng.random() < 0.7:
                link = (other, replica.id) if deaf else (replica.id, other)
                world.network.cut_one_way(*link)
        world.note(None, "one-way", replica.id, "deaf" if deaf else "mute")
        world.checker.marks["one-way cuts"] += 1

    def _heal(self) -> None:
        self._world.network.heal()
        self._world.note(None, "heal")
