"""What a node can be told, with its defaults. `kvstore/cli/serve.py` fills it from flags, KVSTORE_* variables and TOML.

Invariant: an instance is valid; a wrong value is refused by StartRefused when it is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kvstore.base.errors import StartRefused
from kvstore.base.limits import DISK_RESERVE_BYTES, LMDB_MAP_BYTES, VALUE_BYTES_MAX, Limits


class ReadMode(StrEnum):
    """How linearizable reads are made safe: a round of heartbeats a batch, or a lease (trusts the clocks' rate)."""

    INDEX = "index"
    LEASE = "lease"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Times are milliseconds; addresses are HOST:PORT, an IPv6 host in brackets."""

    name: str
    data: Path
    listen: str = "127.0.0.1:7001"
    advertise: str = ""  # empty = listen
    initial_cluster: Mapping[str, str] = field(default_factory=dict)  # name -> address, this node included
    join: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cluster_secrets: tuple[bytes, ...] = ()  # the first one signs; each is accepted, so that it can be changed
    insecure: bool = False  # listen beyond loopback without a secret
    read_mode: ReadMode = ReadMode.INDEX
    tick_ms: int = 50
    heartbeat_ms: int = 100
    election_ms: int = 1_000  # smallest; the largest is twice that
    value_bytes_max: int = VALUE_BYTES_MAX
    map_bytes: int = LMDB_MAP_BYTES
    reserve_bytes: int = DISK_RESERVE_BYTES  # a file given up on a full disk; 0 = none
    flush_interval_ms: int = 5_000
    start_timeout_ms: int = 60_000  # how long founding and joining may take before the node gives up
    gossip_ms: int = 1_000  # one member is probed each; the other times of gossip follow from it

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StartRefused(
                f"--name {self.name!r}: use 1 to 63 letters, digits, dots, dashes, and begin with a letter or digit"
            )
        for address in (self.listen, self.advertise_address, *self.initial_cluster.values(), *self.join):
            split_address(address)
        if self.initial_cluster and self.join:
            raise StartRefused("--initial-cluster and --join exclude each other: found a cluster, or join one")
        if self.initial_cluster and self.initial_cluster.get(self.name) != self.advertise_address:
            raise StartRefused(
                f"--initial-cluster must contain {self.name}={self.advertise_address}, this node's own name and address"
            )
        if len(set(self.initial_cluster.values())) != len(self.initial_cluster):
            raise StartRefused("--initial-cluster names one address twice")
        if not 0 < self.tick_ms <= self.heartbeat_ms <= self.election_ms // 4:
            raise StartRefused("times must satisfy 0 < tick <= heartbeat <= election / 4")
        if len(self.cluster_secrets) > 2:
            raise StartRefused("two cluster secrets at most: the new one and the old one")
        if not 200 <= self.gossip_ms <= 60_000:
            raise StartRefused("--gossip-ms must be 200 to 60000")
        if not 0 < self.value_bytes_max <= 3 * VALUE_BYTES_MAX:
            raise StartRefused(f"--max-value-bytes must be 1 to {3 * VALUE_BYTES_MAX}")

    @property
    def advertise_address(self) -> str:
        return self.advertise or self.listen

    @property
    def limits(self) -> Limits:
        return Limits(value_bytes_max=self.value_bytes_max)


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT -> (host, port). Raises StartRefused."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        raise StartRefused(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
