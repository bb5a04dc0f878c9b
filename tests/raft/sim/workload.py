"""What the users and the driver of the group ask for during a run: writes, reads, changes, transfers, housekeeping.

Invariant: every payload is unique, so that the checker can tell which proposal an entry is.
Invariant: the outcome of each proposal is recorded: its promised place, or that it was refused for good.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

from raft.errors import ProposalDropped, RaftError
from raft.types import ConfChange, ConfChangeKind, ConfChangeSingle, ConfState, ConfTransition

from .replica import Replica

if TYPE_CHECKING:
    from .world import World


class Workload:
    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0
        weights = world.options.work
        actions: tuple[tuple[int, Callable[[], None]], ...] = (
            (weights.propose, self._propose),
            (weights.propose_stale, self._propose_stale),
            (weights.read_index, self._read_index),
            (weights.lease_read, self._lease_read),
            (weights.transfer, self._transfer),
            (weights.conf_change, self._conf_change),
            (weights.demote_leader, self._demote_leader),
            (weights.replace_all, self._replace_all),
            (weights.flush, self._flush),
            (weights.compact, self._compact),
            (weights.campaign, self._campaign),
            (weights.campaign_hard, self._campaign_hard),
            (weights.false_evidence, self._false_evidence),
            (weights.sleep, self._sleep),
        )
        self._actions = [action for weight, action in actions if weight]
        self._weights = list(accumulate(weight for weight, _ in actions if weight))
        self._running = False

    def begin(self) -> None:
        self._running = True
        self._next()

    def end(self) -> None:
        self._running = False

    def _next(self) -> None:
        world = self._world
        world.later(world.rng.randrange(2 * world.options.work_us), None, self._act, ())

    def _act(self) -> None:
        if not self._running:
            return
        self._world.rng.choices(self._actions, cum_weights=self._weights)[0]()
        self._next()

    # -- whom to ask

    def _any(self) -> Replica | None:
        live = self._world.live()
        return self._world.rng.choice(live) if live else None

    def _believer(self) -> Replica | None:
        """Somebody who thinks that it leads: clients do not know better either."""
        believers = self._world.believers()
        return self._world.rng.choice(believers) if believers else None

    def _ask(self, replica: Replica | None, action: Callable[..., object], *arguments: object) -> None:
        if replica is not None and replica.alive:
            self._world.request(replica, action, (replica, *arguments))

    # -- writes

    def _propose(self) -> None:
        self._ask(self._world.newest_leader(), self.propose_now, self._some_payloads())

    def _propose_stale(self) -> None:
        self._ask(self._believer() or self._any(), self.propose_now, self._some_payloads())

    def _some_payloads(self) -> list[bytes]:
        world = self._world
        return self.payloads(world.rng.randint(1, world.options.batch_max))

    def payloads(self, count: int) -> list[bytes]:
        """New ones, never used before in this run."""
        world = self._world
        low, high = world.options.value_bytes
        payloads = []
        for _ in range(count):
            self._number += 1
            payloads.append(b"%d" % self._number + b"." * world.rng.randint(low, high))
        return payloads

    def propose_now(self, replica: Replica, payloads: list[bytes]) -> tuple[int, int] | None:
        """(term, index of the last) when taken."""
        checker = self._world.checker
        try:
            if len(payloads) == 1:
                term, first = replica.node.propose(payloads[0])
            else:
                term, first = replica.node.propose_many(payloads)
        except ProposalDropped as refusal:
            for payload in payloads:
                checker.refused[payload] = repr(refusal)
            return None
        for index, payload in enumerate(payloads, first):
            checker.promised[index, term] = payload
        self._world.note(replica, "propose", first, len(payloads))
        replica.turn_over()
        return term, first + len(payloads) - 1

    # -- reads

    def _read_index(self) -> None:
        world = self._world
        replica = self._any() if world.rng.random() < 0.4 else self._believer()
        self.read_index_from(replica)

    def read_index_from(self, replica: Replica | None, kind: str = "index") -> None:
        self._number += 1
        if replica is not None:
            self._ask(replica, _read_index, self.context(replica), self._world.checker.commit, kind)

    def context(self, replica: Replica) -> bytes:
        """A new one for each attempt, also over restarts of the asker."""
        return b"r%d.%d" % (replica.id, self._number)

    def _lease_read(self) -> None:
        self._ask(self._believer(), _lease_read, self._world.checker.commit)

    # -- leadership

    def _transfer(self) -> None:
        leader = self._believer()
        if leader is not None:
            conf = leader.node.conf_state
            target = self._world.rng.choice((*conf.voters, *conf.learners))
            self._ask(leader, self._transfer_now, target)

    def _transfer_now(self, replica: Replica, target: int) -> None:
        try:
            replica.node.transfer_leader(target)
        except RaftError:
            return
        self._world.note(replica, "transfer", target)
        self._world.checker.marks["transfers"] += 1
        replica.turn_over()

    def _campaign(self) -> None:
        self._ask(self._any(), self._campaign_now, False)

    def _campaign_hard(self) -> None:
        self._ask(self._any(), self._campaign_now, True)

    def campaign(self, replica: Replica) -> None:
        self._ask(replica, self._campaign_now, True)

    def _campaign_now(self, replica: Replica, hard: bool) -> None:
        self._world.note(replica, "campaign", "hard" if hard else "")
        try:
            if hard:
                replica.node.campaign_without_prevote()
            else:
                replica.node.campaign()
        except RaftError:
            return
        replica.turn_over()

    def _false_evidence(self) -> None:
        """Connections to a living leader break for some of the others."""
        world = self._world
        leader = world.newest_leader()
        if leader is None:
            return
        world.note(leader, "evidence")
        for other in world.live():
            if other is not leader and world.rng.random() < 0.7:
                world.now_or_after_pause(other, world.evidence, (other, leader.id))

    def _sleep(self) -> None:
        self._ask(self._world.newest_leader(), self._sleep_now)

    def _sleep_now(self, replica: Replica) -> None:
        world = self._world
        # One dead node must not keep every group awake; a live one that is taken for dead must not matter.
        gone = [other.id for other in world.replicas.values() if not other.alive or world.rng.random() < 0.05]
        if replica.node.sleep(gone if world.rng.random() < 0.5 else ()):
            self._world.note(replica, "sleep")
            self._world.checker.marks["sleeps"] += 1
        replica.turn_over()

    # -- membership

    def _conf_change(self) -> None:
        world = self._world
        leader = world.newest_leader()
        if leader is None:
            return
        change = self._draw_change(leader.node.conf_state)
        if change is not None:
            self._ask(leader, self.propose_change, change)

    def _demote_leader(self) -> None:
        """By itself: what it has in its log beyond that change, nobody may ever commit."""
        world = self._world
        leader = world.newest_leader()
        if leader is None or len(leader.node.conf_state.voters) < 2:
            return
        self._number += 1
        change = ConfChangeSingle(ConfChangeKind.ADD_LEARNER, leader.id)
        transition = world.rng.choice((ConfTransition.AUTO, ConfTransition.JOINT_IMPLICIT))
        self._ask(leader, self.propose_change, ConfChange((change,), transition, b"c%d" % self._number))
        self._ask(leader, self.propose_now, self._some_payloads())

    def _replace_all(self) -> None:
        """The leader and as many new replicas as there are ids left for, instead of all others."""
        world = self._world
        leader = world.newest_leader()
        if leader is None:
            return
        conf = leader.node.conf_state
        fresh = min(2, world.options.replicas_max + 1 - world.next_id)
        if conf.voters_outgoing or fresh <= 0:
            return
        added = range(world.next_id, world.next_id + fresh)
        world.next_id += fresh
        self._number += 1
        changes = [ConfChangeSingle(ConfChangeKind.ADD_VOTER, replica_id) for replica_id in added]
        changes += [ConfChangeSingle(ConfChangeKind.REMOVE, other) for other in conf.voters if other != leader.id]
        change = ConfChange(tuple(changes), ConfTransition.JOINT_EXPLICIT, b"c%d" % self._number)
        self._ask(leader, self.propose_change, change)

    def propose_change(self, replica: Replica, change: ConfChange) -> bool:
        try:
            term, index = replica.node.propose_conf_change(change)
        except ProposalDropped:
            return False
        self._world.note(replica, "change", index, term, change)
        replica.turn_over()
        return True

    def _draw_change(self, conf: ConfState) -> ConfChange | None:
        rng = self._world.rng
        self._number += 1
        context = b"c%d" % self._number
        if conf.voters_outgoing and rng.random() < 0.7:
            return ConfChange(context=context)
        count = rng.choices((1, 2, 3), (6, 2, 1))[0]
        touched: list[int] = []
        singles = []
        for _ in range(count):
            single = self._draw_single(conf, touched)
            if single is not None:
                singles.append(single)
                touched.append(single.replica_id)
        taken = [single for single in singles if single.replica_id in conf.voters]
        removed = sum(single.kind is not ConfChangeKind.ADD_VOTER for single in taken)
        added = sum(single.kind is ConfChangeKind.ADD_VOTER for single in singles)
        if not singles or len(conf.voters) - removed + added < 1:
            return None
        transition = rng.choice((ConfTransition.AUTO, ConfTransition.JOINT_IMPLICIT, ConfTransition.JOINT_EXPLICIT))
        return ConfChange(tuple(singles), transition, context)

    def _draw_single(self, conf: ConfState, touched: list[int]) -> ConfChangeSingle | None:
        world = self._world
        rng = world.rng
        add = ConfChangeKind.ADD_VOTER
        learn = ConfChangeKind.ADD_LEARNER
        members = (*conf.voters, *conf.learners)
        kinds = (learn, add) if len(conf.voters) <= 2 else (add, learn, ConfChangeKind.REMOVE)
        kind = rng.choice(kinds)
        if kind is not ConfChangeKind.REMOVE and (rng.random() < 0.5 or len(conf.voters) == 1):
            if conf.learners and kind is add:
                replica_id = rng.choice(conf.learners)  # promoted
            elif world.next_id <= world.options.replicas_max:
                replica_id = world.next_id
                world.next_id += 1
            else:
                return None
        elif kind is add and conf.learners:
            replica_id = rng.choice(conf.learners)
        else:
            replica_id = rng.choice(members)  # demoted, removed, or made what it is already
        return None if replica_id in touched else ConfChangeSingle(kind, replica_id)

    # -- housekeeping

    def _flush(self) -> None:
        self._ask(self._any(), Replica.flush)

    def _compact(self) -> None:
        replica = self._any()
        if replica is None:
            return
        disk = replica.disk
        disk.snapshot_hidden = self._world.rng.random() < 0.1
        # Close to what is flushed, so that a follower that lags at all needs the snapshot.
        index = disk.flushed.index - self._world.rng.randrange(4)
        if index > disk.log.offset:
            disk.compact(index)
            self._world.note(replica, "compact", index)


def _read_index(replica: Replica, context: bytes, floor: int, kind: str) -> None:
    replica.reads.ask(context, floor, kind)


def _lease_read(replica: Replica, floor: int) -> None:
    replica.reads.ask_lease(floor)
