"""What one simulated run is made of: every size, rate and fault. swarm.py draws them from the seed.

Invariant: clock drift stays inside what the lease promises to bear, disks never lose what they have synced, and the
           network never alters a message: the simulation must not ask for what Raft does not promise.
Units: times in `_us` are microseconds of world time, in `_ms` milliseconds, in `_ticks` ticks of a replica.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TICK_MS = 50
LEASE_SHARE = 0.8  # of the election timeout, design of the lease


@dataclass(slots=True)
class NetworkOptions:
    latency_us: tuple[int, int] = (500, 5_000)
    ordered: bool = True  # links keep the order, as TCP does; otherwise each message takes its own time
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0  # share of messages that take `late_us` more
    late_us: int = 0
    late_handover: float = 0.0  # share of TIMEOUT_NOW that take up to three election timeouts more


@dataclass(slots=True)
class DiskOptions:
    sync_us: tuple[int, int] = (300, 2_000)
    slow: float = 0.0  # share of syncs that take `slow_us` more
    slow_us: int = 0
    synced_at_crash: float = 0.5  # chance that the sync under way at a crash had reached the platter (its ack is lost)
    torn_at_crash: float = 0.3  # else chance that some of its Readys had, in order


@dataclass(slots=True)
class FaultWeights:
    """Relative frequency of each fault among the faults; 0 = never in this run."""

    crash: int = 0
    crash_leader: int = 0
    crash_candidate: int = 0
    crash_all: int = 0
    partition: int = 0
    isolate_leader: int = 0
    split_halves: int = 0  # of a joint configuration
    one_way: int = 0
    one_ear: int = 0  # the leader is heard by nobody and hears but one
    heal: int = 0
    pause: int = 0
    pause_leader: int = 0
    slow_disk: int = 0
    damage: int = 0  # a replica loses synced log records, and knows it (a checksum that does not match)


@dataclass(slots=True)
class WorkWeights:
    """Relative frequency of each thing that the users and the driver of the group ask for."""

    propose: int = 10
    propose_stale: int = 0  # to whoever believes to lead, not to the newest leader
    read_index: int = 0
    lease_read: int = 0
    transfer: int = 0
    conf_change: int = 0
    demote_leader: int = 0
    replace_all: int = 0  # all voters but the leader at once, by a joint configuration
    flush: int = 0  # make the applied state durable
    compact: int = 0
    campaign: int = 0  # an election that nobody needs
    campaign_hard: int = 0  # the same, without PreVote
    false_evidence: int = 0
    sleep: int = 0


@dataclass(slots=True)
class Options:
    seed: int
    profile: str
    voters: int = 3
    learners: int = 0
    replicas_max: int = 7  # ids ever used, the removed ones included
    fault_ticks: int = 120
    election_ticks: int = 8
    heartbeat_ticks: int = 1
    pre_vote: bool = True
    check_quorum: bool = True
    lease_reads: bool = False
    append_bytes_max: int = 1 << 20
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 64 << 20
    committed_bytes_max: int = 16 << 20
    drift: float = 0.0  # clocks run at [1 - drift, 1 + drift]
    late_tick: float = 0.0  # share of ticks that come late (a busy process)
    pump_us: int = 0  # the driver gathers events this long before it takes a Ready; 0 = one Ready per event
    apply_us: int = 0  # committed entries are applied up to this much later; 0 = at once
    value_bytes: tuple[int, int] = (4, 12)
    batch_max: int = 3
    work_us: int = 40_000  # mean time between two requests
    fault_us: int = 400_000  # mean time between two faults; each lasts about as long
    restart_us: int = 400_000  # mean time that a crashed replica stays away
    evidence: bool = True  # the driver sees connections close and says so
    snapshot_us: tuple[int, int] = (2_000, 80_000)
    snapshot_loss: float = 0.0
    tell_removed: float = 0.5  # chance that a removed replica that speaks is told so
    core_only_heals: bool = False  # at the end only a quorum is healed, the others stay away
    network: NetworkOptions = field(default_factory=NetworkOptions)
    disk: DiskOptions = field(default_factory=DiskOptions)
    faults: FaultWeights = field(default_factory=FaultWeights)
    work: WorkWeights = field(default_factory=WorkWeights)

    def __post_init__(self) -> None:
        assert self.voters >= 1
        assert self.voters + self.learners <= self.replicas_max
        assert 1 <= self.heartbeat_ticks < self.election_ticks
        if self.lease_reads:
            fastest, slowest = 1 + self.drift, 1 - self.drift
            # A promise of N ticks lasts at least N - 1 whole ones; the leader counts 0.8 N of its own.
            assert (self.election_ticks - 1) / fastest > LEASE_SHARE * self.election_ticks / slowest
