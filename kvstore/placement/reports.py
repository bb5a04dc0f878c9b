"""What each node tells the placement driver: its disk, and the shards that it leads, as far as they have changed.

A report is what placement takes for observed. It is made where the shard is led, from what is applied there.

Invariant: a full report names every shard that the node leads; the ones between name what is new since the last one
           that arrived. A driver that does not know the node (it has just begun) asks for a full one.
Invariant: loads are smoothed over about half a minute, so that no single second moves a shard.
Called by: coordinator (collect), driver (the records).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from kvstore.base.errors import Invalid
from kvstore.base.shards import ShardDescriptor
from kvstore.replica.replica import Replica
from kvstore.state.shard import ShardState

SMOOTHING_SECONDS = 16.0
BYTES_STEP = 1 << 20  # a size that has changed by less than this, and less than a 16th, is not told
LOAD_STEP = 20  # operations a second


class ShardReport(msgspec.Struct, array_like=True, frozen=True):
    """A shard as its leader has it. Loads in operations a second."""

    descriptor: ShardDescriptor
    leader: str  # node id
    term: int
    joint: bool
    data_bytes: int
    reads: int
    writes: int


class NodeReport(msgspec.Struct, array_like=True, frozen=True):
    node: str
    full: bool
    capacity_bytes: int
    used_bytes: int
    led: tuple[ShardReport, ...]
    given_up: tuple[tuple[int, int], ...] = ()  # (shard, the term in which it was led here) since the last report
    disk_full: bool = False  # it refuses writes, and hands leaderships over


_encode = msgspec.msgpack.Encoder().encode
_decode_node = msgspec.msgpack.Decoder(NodeReport).decode
_decode_shard = msgspec.msgpack.Decoder(ShardReport).decode


def pack(report: NodeReport | ShardReport) -> str:
    """For a JSON document."""
    return base64.b64encode(_encode(report)).decode()


def unpack_node(text: Any) -> NodeReport:
    """Raises Invalid."""
    try:
        return _decode_node(base64.b64decode(str(text), validate=True))
    except (ValueError, msgspec.MsgspecError) as error:
        raise Invalid(f"a malformed report: {error}") from None


def unpack_shard(text: Any) -> ShardReport:
    """Raises Invalid."""
    try:
        return _decode_shard(base64.b64decode(str(text), validate=True))
    except (ValueError, msgspec.MsgspecError) as error:
        raise Invalid(f"a malformed report: {error}") from None


def look_at(replica: Replica, *, reads: int = 0, writes: int = 0) -> ShardReport | None:
    """The report on a shard that is led here; None = it is not, or not all of earlier terms is applied yet."""
    descriptor, state = replica.leads, replica.state
    if descriptor is None or state is None:
        return None
    joint = bool(replica.raw.conf_state.voters_outgoing)
    return ShardReport(descriptor, replica.environment.node, replica.raw.term, joint, state.data_bytes, reads, writes)


@dataclass(slots=True)
class _Meter:
    """What was last told of one shard, and its load, from two counters that only rise."""

    seconds: float
    read: int
    revision: int
    told: ShardReport | None = None
    reads: float = 0.0
    writes: float = 0.0

    def is_idle(self, replica: Replica, state: ShardState, descriptor: ShardDescriptor) -> bool:
        """Whether all is as it was told, and no load fades. Of thousands of shards most are, each second."""
        told = self.told
        return (
            told is not None
            and told.descriptor is descriptor
            and told.term == replica.raw.term
            and state.revision == self.revision
            and replica.operations_read == self.read
            and not (told.reads or told.writes or told.joint)
        )

    def look(self, replica: Replica, state: ShardState, now: float) -> None:
        passed = now - self.seconds
        if passed <= 0:
            return
        part = min(1.0, passed / SMOOTHING_SECONDS)
        self.reads += part * (max(0, replica.operations_read - self.read) / passed - self.reads)
        self.writes += part * (max(0, state.revision - self.revision) / passed - self.writes)
        self.seconds, self.read, self.revision = now, replica.operations_read, state.revision


class Reporter:
    """Makes the reports of one node."""

    def __init__(
        self,
        node: str,
        replicas: dict[int, Replica],
        space: Callable[[], tuple[int, int]],
        *,
        disk_full: Callable[[], bool] = lambda: False,
    ) -> None:
        """`replicas`: the host's, by group. `space`: (free, total) bytes of the disk."""
        self._node = node
        self._replicas = replicas
        self._space = space
        self._disk_full = disk_full
        self._meters: dict[int, _Meter] = {}  # of the shards that are led here
        self._full = True

    def forget(self) -> None:
        """The last report may not have arrived, or its receiver knows nothing of the ones before."""
        self._full = True

    def load(self, group: int) -> tuple[int, int]:
        """(reads, writes) a second of a shard that is led here, smoothed; (0, 0) of others."""
        meter = self._meters.get(group)
        return (round(meter.reads), round(meter.writes)) if meter is not None else (0, 0)

    def collect(self, now: float) -> NodeReport:
        """What is new at `now` (seconds of a clock that only rises); everything after `forget`."""
        full, self._full = self._full, False
        before, self._meters = self._meters, {}
        news = []
        for group, replica in self._replicas.items():
            descriptor, state = replica.leads, replica.state
            if descriptor is None or state is None:
                continue
            meter = before.pop(group, None) or _Meter(now, replica.operations_read, state.revision)
            self._meters[group] = meter
            if meter.is_idle(replica, state, descriptor) and not full:
                meter.seconds = now
                continue
            meter.look(replica, state, now)
            report = look_at(replica, reads=round(meter.reads), writes=round(meter.writes))
            if report is not None and (full or meter.told is None or _differs(meter.told, report)):
                meter.told = report
                news.append(report)
        given_up = tuple((group, meter.told.term) for group, meter in before.items() if meter.told is not None)
        free, total = self._space()
        return NodeReport(self._node, full, total, total - free, tuple(news), given_up, self._disk_full())


def _differs(before: ShardReport, after: ShardReport) -> bool:
    if (before.descriptor, before.term, before.joint) != (after.descriptor, after.term, after.joint):
        return True
    if abs(after.data_bytes - before.data_bytes) >= max(BYTES_STEP, before.data_bytes // 16):
        return True
    load = before.reads + before.writes
    now = after.reads + after.writes
    return abs(now - load) >= max(LOAD_STEP, load // 16) or (now == 0) != (load == 0)
