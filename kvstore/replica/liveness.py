"""Which other nodes are there: what sleeping groups are watched by, once for each pair of nodes.

A node is *alive* while something comes from it: the transport's beats, if there is nothing else. It is *silent* when
nothing came for an election timeout, and *gone* when there is evidence that its process is not there any more.

Invariant: time is counted in ticks of this node, so that a pause of this very process, in which nothing could be heard,
           is one tick of silence and not the death of all others.
Invariant: whoever is not alive becomes so again only by `on_up` or, when it was silent, by being heard.
Called by: host_core. Pure: what was heard is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Sight(Enum):
    """What has just been noticed of a node."""

    SAME = "same"  # a connection was made anew, in time
    BACK = "back"  # it was not alive, and is the same process as before
    REPLACED = "replaced"  # another process than before, or the first one that is seen here
    SILENT = "silent"


@dataclass(slots=True)
class _Peer:
    boot: str = ""
    alive: bool = False
    gone: bool = False
    heard: int = 0  # as of the last tick
    silent_ticks: int = 0


class Liveness:
    """All other nodes that were ever connected with this one."""

    __slots__ = ("_peers", "_silent_ticks_max")

    def __init__(self, *, silent_ticks_max: int) -> None:
        self._peers: dict[str, _Peer] = {}
        self._silent_ticks_max = silent_ticks_max

    def is_alive(self, node: str) -> bool:
        peer = self._peers.get(node)
        return peer is not None and peer.alive

    def on_up(self, node: str, boot: str) -> Sight:
        """A connection is open; all that comes over it is of this process."""
        peer = self._peers.setdefault(node, _Peer())
        replaced, was_alive = peer.boot != boot, peer.alive
        peer.boot = boot
        peer.alive = True
        peer.gone = False
        peer.silent_ticks = 0
        if replaced:
            return Sight.REPLACED
        return Sight.SAME if was_alive else Sight.BACK

    def on_gone(self, node: str) -> bool:
        """Evidence. True when that is news."""
        peer = self._peers.setdefault(node, _Peer())
        news = not peer.gone
        peer.alive = False
        peer.gone = True
        return news

    def tick(self, heard: Callable[[str], int]) -> list[tuple[str, Sight]]:
        """`heard`: the transport's count of what came from a node."""
        noticed: list[tuple[str, Sight]] = []
        for node, peer in self._peers.items():
            count = heard(node)
            if count != peer.heard:
                peer.heard = count
                peer.silent_ticks = 0
                if not peer.alive and not peer.gone:
                    peer.alive = True
                    noticed.append((node, Sight.BACK))
            elif peer.alive:
                peer.silent_ticks += 1
                if peer.silent_ticks >= self._silent_ticks_max:
                    peer.alive = False
                    noticed.append((node, Sight.SILENT))
        return noticed
