"""The nemeses, by the names that `--nemesis` takes."""

from __future__ import annotations

from jepsen.nemeses.administration import Drain, KillPlacement, Membership, Split, Transfer
from jepsen.nemeses.base import Nemesis
from jepsen.nemeses.network import (
    Flapping,
    Lossy,
    PartitionBridge,
    PartitionClients,
    PartitionHalves,
    PartitionLeader,
    PartitionOne,
    PartitionOneWay,
    PartitionRing,
    Slow,
)
from jepsen.nemeses.processes import Clock, Kill, KillAll, Pause, Restart, Wipe

NEMESES: dict[str, type[Nemesis]] = {
    one.name: one
    for one in (
        Kill,
        KillAll,
        KillPlacement,
        Pause,
        Restart,
        Wipe,
        Clock,
        PartitionOne,
        PartitionHalves,
        PartitionLeader,
        PartitionRing,
        PartitionBridge,
        PartitionOneWay,
        PartitionClients,
        Flapping,
        Slow,
        Lossy,
        Transfer,
        Split,
        Drain,
        Membership,
    )
}
PARTITIONS = tuple(name for name in NEMESES if name.startswith("partition"))
GROUPS = {"none": (), "partition": PARTITIONS, "all": tuple(NEMESES)}
"""Names that stand for several."""
