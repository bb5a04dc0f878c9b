"""What a replica sees of its node: clocks, stores, limits, names of nodes, and whether the node takes writes.

Invariant: nothing here is a way to reach another replica; replicas meet only through messages.
"""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kvstore.base.clock import Clock
from kvstore.base.config import NodeConfig
from kvstore.base.errors import Code
from kvstore.base.limits import MEMTABLE_BYTES_MAX, MEMTABLE_COMMANDS_MAX
from kvstore.base.metrics import Metrics
from kvstore.storage.protocol import LogStore, StateStore


@dataclass(frozen=True, slots=True)
class NodeAddress:
    name: str
    address: str  # HOST:PORT


class NodeAddresses(UserDict[str, NodeAddress]):
    """By node id; only a hint. Whoever shows names hears of each change."""

    def __init__(self) -> None:
        super().__init__()
        self.on_change: Callable[[], None] = lambda: None

    def __setitem__(self, node: str, place: NodeAddress) -> None:
        if self.data.get(node) != place:
            self.data[node] = place
            self.on_change()

    def __delitem__(self, node: str) -> None:
        del self.data[node]
        self.on_change()


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
