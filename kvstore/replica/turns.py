"""How many campaigns a node has under way, and whose turn it is to begin one.

After the start of a cluster, or the loss of a node, thousands of groups want an election. Begun all at once, each would
take longer than its timer, and they would begin anew, for ever. So only some are under way at a time, and the others
wait for their turn, however fast or slow this machine and its peers are just then.

Invariant: at most UNDER_WAY_MAX campaigns are under way, not counting those that have had UNDER_WAY_TICKS without an
           outcome: they wait for peers that do not answer, and hold up nobody.
Invariant: turns are given in the order in which they were asked for, in each of two lines. Of the replicas of a group
           one goes first; its line moves three times as fast, so that not all of them campaign against each other.
Called by: host_core. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.replica.replica import Replica
from raft import Role

UNDER_WAY_MAX = 64
UNDER_WAY_TICKS = 10
_CAMPAIGNS = (Role.PRE_CANDIDATE, Role.CANDIDATE)


class Turns:
    """The campaigns of one node."""

    __slots__ = ("_chosen", "_first", "_replicas", "_rest", "_ticks", "_under_way")

    def __init__(self, replicas: Mapping[int, Replica]) -> None:
        """`replicas`: the host's, by group."""
        self._replicas = replicas
        self._ticks = 0
        self._under_way: dict[int, int] = {}  # group -> the tick at which its campaign began
        self._first: dict[int, None] = {}  # groups whose timer has run out, in turn, and that we should go first in
        self._rest: dict[int, None] = {}  # the others
        self._chosen: set[int] = set()  # those of them whose turn has come

    @property
    def has_room(self) -> bool:
        self._forget_decided()
        return len(self._under_way) + len(self._chosen) < UNDER_WAY_MAX

    def tick(self) -> None:
        """Choose, before the replicas tick."""
        self._ticks += 1
        self._forget_decided()
        self._chosen.clear()
        room = UNDER_WAY_MAX - len(self._under_way)
        while (self._first or self._rest) and len(self._chosen) < room:
            line = self._rest if not self._first or (self._rest and len(self._chosen) % 4 == 3) else self._first
            group = next(iter(line))
            del line[group]
            replica = self._replicas.get(group)
            if replica is not None and replica.raw.campaigns_next:
                self._chosen.add(group)

    def may_begin(self, group: int, *, goes_first: bool) -> bool:
        """Whether a campaign whose time has come may begin in this tick; else it gets its turn later."""
        if group in self._chosen or (not self._first and not self._rest and self.has_room):
            self._chosen.discard(group)
            self.on_begun(group)
            return True
        (self._first if goes_first else self._rest)[group] = None
        return False

    def on_begun(self, group: int) -> None:
        self._under_way[group] = self._ticks

    def _forget_decided(self) -> None:
        for group, began in list(self._under_way.items()):
            replica = self._replicas.get(group)
            if (
                replica is None
                or self._ticks - began >= UNDER_WAY_TICKS
                or (replica.raw.role not in _CAMPAIGNS and began < self._ticks)
            ):
                del self._under_way[group]
