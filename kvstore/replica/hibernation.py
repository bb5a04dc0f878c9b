"""Which groups are awake, when an idle one is put to sleep, and what wakes it: at no cost for those that sleep.

A leader that had nothing to do for a while asks its members to sleep; the Raft core does the rest (raft/hibernation).
From then on the replica is in no list that a tick goes through. The nodes are watched in place of the groups: one look
at each peer a tick (liveness), and one walk over the replicas when something becomes of a node.

    a follower's leader   its node is gone or replaced: leader_gone, and a campaign by evidence (host_core)
                          its node is silent: leader_silent, and a campaign within the election timeout
    a leader              the nodes that are alive are no quorum: it wakes, and steps down by its own timer
                          a node with a member comes back: it wakes, and brings that one up to date
    a stopped leader      on a node that goes on: it calls the members until another one leads
A member whose node is not alive is not waited for, so that a dead node keeps nobody awake; it was not told to sleep,
and if it lives all the same (a cut between the two), it campaigns, and its messages wake whoever they reach.

Invariant: a replica that is not in `awake` needs no tick: it sleeps, with the node of its leader alive, or leads with a
           quorum of nodes alive; or it was stopped, or stands still under a snapshot.
Invariant: what is put to sleep or woken in one tick is bounded.
Called by: host_core. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstore.replica.liveness import Liveness, Sight
from kvstore.replica.replica import Replica
from raft import NO_REPLICA, Message, Role

SLEEP_AFTER_TIMEOUTS = 3
"""Election timeouts without work. Sleeping and waking cost a round each, as much as three heartbeats."""
CROWD = 100
SLEEP_IN_CROWD_TICKS = 4
"""When more than CROWD groups are awake, those without work sleep at once: after a start, or the loss of a node, a
thousand groups' heartbeats would take a core, and the elections of the others want it."""
CHECK_TICKS = 4
"""A leader is looked at so often: 0.2 s."""
SLEEPS_PER_TICK = 50
WAKES_PER_TICK = 50
WAKES_IN_CROWD_PER_TICK = 10
"""Each costs about 0.1 ms on every node: a burst of a thousand would hold up everybody's requests. In a crowd only as
many are woken as can go to sleep again meanwhile."""


@dataclass(slots=True)
class _Idle:
    """A leader as it was seen last; `since`: the tick at which it began to be so."""

    seen: tuple[int, int, int]
    since: int


class Hibernation:
    """The awake and the sleeping groups of one node."""

    def __init__(self, replicas: dict[int, Replica], liveness: Liveness, *, election_ticks: int) -> None:
        """`replicas`: the host's, by group; read only."""
        self.awake: dict[int, Replica] = {}  # whose time passes; by group
        self.calls: list[tuple[Replica, Message]] = []  # of stopped leaders, to be sent
        self._replicas = replicas
        self._liveness = liveness
        self._election_ticks = election_ticks
        self._idle: dict[int, _Idle] = {}  # leaders that are awake, by group
        self._to_wake: dict[int, None] = {}  # groups led here, in the order in which they are to be woken
        self._stopped: dict[int, Replica] = {}  # leaders that were stopped, by group
        self._lonely: set[int] = set()  # groups found without a quorum of living nodes, since nothing happened to them
        self._ticks = 0
        self._sleeps_left = 0  # in this tick

    def drop(self, group: int) -> None:
        """The replica leaves the host."""
        self.awake.pop(group, None)
        self._idle.pop(group, None)
        self._to_wake.pop(group, None)
        self._stopped.pop(group, None)
        self._lonely.discard(group)

    def settle(self, replica: Replica) -> bool:
        """Something has happened to a replica: does its time pass? True when it had to be woken, as nobody would."""
        group = replica.group
        self._lonely.discard(group)
        if not replica.needs_ticks:
            if replica.failed or replica.installing or self._is_watched(replica):
                self.awake.pop(group, None)
                self._idle.pop(group, None)
                return False
            self._wake_unwatched(replica)
            self.awake[group] = replica
            return True
        self.awake[group] = replica
        return False

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self) -> list[Replica]:
        """Before the replicas tick. Those that were woken now."""
        self._ticks += 1
        self._sleeps_left = SLEEPS_PER_TICK
        if self._stopped and self._ticks % self._election_ticks == 0:
            self._call_members()
        woken: list[Replica] = []
        most = WAKES_PER_TICK if len(self.awake) <= CROWD else WAKES_IN_CROWD_PER_TICK
        while self._to_wake and len(woken) < most:
            group = next(iter(self._to_wake))
            del self._to_wake[group]
            replica = self._replicas.get(group)
            if replica is not None and replica.raw.asleep and _runs(replica):
                replica.raw.wake()
                woken.append(replica)
        return woken

    def consider(self, replica: Replica) -> bool:
        """Look at an awake leader now and then; True when it has begun to put its group to sleep."""
        group = replica.group
        if (self._ticks + group) % CHECK_TICKS:
            return False
        raw = replica.raw
        seen = (raw.term, raw.last_index, replica.reads.asked)
        idle = self._idle.get(group)
        if idle is None or idle.seen != seen:
            self._idle[group] = _Idle(seen, self._ticks)
            return False
        wait = SLEEP_AFTER_TIMEOUTS * self._election_ticks if len(self.awake) <= CROWD else SLEEP_IN_CROWD_TICKS
        if self._ticks - idle.since < wait or not self._sleeps_left:
            return False
        if not raw.sleep(self.absent(replica)):
            return False
        self._sleeps_left -= 1
        return True

    def absent(self, replica: Replica) -> list[int]:
        """The other replicas of the group whose nodes are not there. One whose node nobody knows counts as present."""
        is_alive = self._liveness.is_alive
        own = replica.replica_id
        return [other for other, node in replica.node_of.items() if other != own and not is_alive(node)]

    def sees_quorum(self, replica: Replica) -> bool:
        """Whether enough nodes are alive for the group to elect a leader."""
        if replica.group in self._lonely:
            return False
        if replica.raw.has_quorum_without(self.absent(replica)):
            return True
        self._lonely.add(replica.group)
        return False

    # -- nodes -----------------------------------------------------------------------------------------------------

    def on_node(self, node: str, sight: Sight) -> list[Replica]:
        """Something was noticed of a node; the replicas to which that did something."""
        if sight is Sight.SAME:
            return []
        self._lonely.clear()
        touched = []
        for replica, other in self.members_on(node, self._replicas):
            raw = replica.raw
            if sight is Sight.SILENT:
                if raw.leader_silent(other) or self.wake_without_quorum(replica):
                    touched.append(replica)
            elif raw.role == Role.LEADER:
                if raw.asleep:
                    self._to_wake[replica.group] = None
            elif raw.leader_id == other and not raw.asleep:
                raw.wake()  # its silence has woken us, and it sleeps on
                touched.append(replica)
        return touched

    def wake_without_quorum(self, replica: Replica) -> bool:
        """A leader that sleeps does not check its quorum. True when it is woken to do so."""
        raw = replica.raw
        if not raw.asleep or raw.role != Role.LEADER or raw.has_quorum_without(self.absent(replica)):
            return False
        raw.wake()
        return True

    def members_on(self, node: str, replicas: dict[int, Replica]) -> Iterator[tuple[Replica, int]]:
        """Replicas here that run, each with the id of one of its group on that node."""
        for replica in list(replicas.values()):
            if _runs(replica):
                for other, place in list(replica.node_of.items()):
                    if place == node:
                        yield replica, other

    def _is_watched(self, replica: Replica) -> bool:
        raw = replica.raw
        if raw.role == Role.LEADER:
            return raw.has_quorum_without(self.absent(replica))
        return raw.leader_id != NO_REPLICA and self._liveness.is_alive(replica.node_of.get(raw.leader_id, ""))

    def _wake_unwatched(self, replica: Replica) -> None:
        """It fell asleep just when its leader's node, or the quorum, was lost."""
        raw = replica.raw
        if raw.role == Role.LEADER or not raw.leader_silent(raw.leader_id):
            raw.wake()

    # -- leaders that were stopped ---------------------------------------------------------------------------------

    def on_stopped(self, replica: Replica) -> None:
        """Its members may sleep, and its node is alive: nothing else would tell them that nobody leads."""
        if replica.raw.role == Role.LEADER:
            self._stopped[replica.group] = replica
            self._call_members()

    def _call_members(self) -> None:
        for replica in self._stopped.values():
            self.calls += [(replica, message) for message in replica.raw.calls_to_wake()]


def _runs(replica: Replica) -> bool:
    return not (replica.failed or replica.installing)
