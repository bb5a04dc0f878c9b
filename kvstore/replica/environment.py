"""What a replica sees of its node: clocks, stores, limits, names of nodes, and whether the node takes writes.

Invariant: nothing here is a way to reach another replica; replicas meet only through messages.
"""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.base.clock import Clock
from kvstore.base.config import NodeConfig
from kvstore.base.errors import Code
from kvstore.base.limits import MEMTABLE_BYTES_MAX, MEMTABLE_COMMANDS_MAX
from kvstore.base.metrics import Metrics
from kvstore.base.shards import Route
from kvstore.storage.protocol import LogStore, StateStore

if TYPE_CHECKING:
    from kvstore.replica.replica import Replica
    from kvstore.state.shard import ShardState


@dataclass(frozen=True, slots=True)
class NodeAddress:
    name: str
    address: str  # HOST:PORT


class NodeAddresses(UserDict[str, NodeAddress]):
    """By node id; only a hint. Whoever shows names hears of each change."""

    def __init__(self) -> None:
        super().__init__()
        self.on_change: Callable[[str], None] = lambda node: None

    def __setitem__(self, node: str, place: NodeAddress) -> None:
        if self.data.get(node) != place:
            self.data[node] = place
            self.on_change(node)

    def __delitem__(self, node: str) -> None:
        del self.data[node]
        self.on_change(node)


@dataclass(frozen=True, slots=True)
class Birth:
    """A split that a replica has just applied: the host makes the child in the same turn (births)."""

    parent: Replica
    state: ShardState  # the child's
    index: int  # of the split in the parent's log


def _no_routes(_keyspace: int, _keys: Sequence[bytes]) -> tuple[Route, ...]:
    return ()


@dataclass(slots=True)
class Environment:
    config: NodeConfig
    node: str  # NodeId of this node
    boot: str
    clock: Clock
    rng: random.Random
    metrics: Metrics
    log_store: LogStore
    state_store: StateStore
    addresses: NodeAddresses = field(default_factory=NodeAddresses)
    disk_full: bool = False
    stopped: list[int] = field(default_factory=list)  # groups whose replica was stopped, for the host to look at
    flush_wanted: bool = False  # somebody waits until what is applied here is on the disk
    births: list[Birth] = field(default_factory=list)  # in the order in which they were applied
    find_routes: Callable[[int, Sequence[bytes]], tuple[Route, ...]] = _no_routes
    """(keyspace, user keys) -> routes of the shards that hold them, as far as this node knows; only a hint."""
    perf: Callable[[], float] = lambda: 0.0  # seconds, for latency histograms only

    def refuses_writes(self, *, only_deletes: bool) -> Code | None:
        """Whether a write must be refused before it is staged, and why."""
        if self.disk_full and not only_deletes:
            return Code.DISK_FULL
        store = self.state_store
        if store.table_bytes > MEMTABLE_BYTES_MAX or store.table_commands > MEMTABLE_COMMANDS_MAX:
            return Code.OVERLOADED
        return None

    def address_of(self, node: str | None) -> NodeAddress | None:
        return self.addresses.get(node) if node is not None else None
