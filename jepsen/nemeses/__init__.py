"""The nemeses, by the names that `--nemesis` takes."""

from __future__ import annotations

from jepsen.nemeses.administration import Drain, KillPlacement, Membership, Merge, Split, Transfer
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
from jepsen.nemeses.processes import Clock, Kill, KillAll, Pause, Restart
from jepsen.nemeses.storage import BitFlip, DiskFull, FailedFsync, LostWrites, SlowFsync, Truncate, Wipe

NEMESES: dict[str, type[Nemesis]] = {
    one.name: one
    for one in (
        Kill,
        KillAll,
        KillPlacement,
        Pause,
        Restart,
        Clock,
        Wipe,
        BitFlip,
        Truncate,
        DiskFull,
        SlowFsync,
        FailedFsync,
        LostWrites,
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
        Merge,
        Drain,
        Membership,
    )
}
PARTITIONS = tuple(name for name in NEMESES if name.startswith(("partition", Flapping.name)))
DISKS = tuple(one.name for one in (Wipe, BitFlip, Truncate, DiskFull, SlowFsync, FailedFsync, LostWrites))
GROUPS = {"none": (), "partition": PARTITIONS, "disk": DISKS, "all": tuple(NEMESES)}
"""Names that stand for several."""
