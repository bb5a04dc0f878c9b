"""What one simulated run is made of: every size, rate and fault, drawn from the seed (swarm testing).

A run in which everything goes wrong at once finds less than many runs of which each leaves most faults out: a class
of faults that is always on hides the bugs that need its absence. So each class is switched on by a coin, and its rate
is drawn as well. A *profile* narrows the draw to a region of the space where some rule is under strain.

Invariant: the options depend on nothing but (seed, profile); they are never changed afterwards.
Invariant: clock drift stays inside what the lease promises to bear, disks never lose what they have synced, and the
           network never alters a message: the simulation must not ask for what Raft does not promise.
Units: times in `_us` are microseconds of world time, in `_ms` milliseconds, in `_ticks` ticks of a replica.
"""

from __future__ import annotations

import random
from collections.abc import Callable
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
        assert 1 <= self.voters
        assert self.voters + self.learners <= self.replicas_max
        assert 1 <= self.heartbeat_ticks < self.election_ticks
        if self.lease_reads:
            fastest, slowest = 1 + self.drift, 1 - self.drift
            # A promise of N ticks lasts at least N - 1 whole ones; the leader counts 0.8 N of its own.
            assert (self.election_ticks - 1) / fastest > LEASE_SHARE * self.election_ticks / slowest


def _coin(rng: random.Random, chance: float = 0.5) -> bool:
    return rng.random() < chance


def _draw_group(options: Options, rng: random.Random) -> None:
    options.voters = rng.choices((1, 2, 3, 4, 5), (1, 2, 10, 2, 5))[0]
    options.learners = 1 if _coin(rng, 0.2) else 0
    options.election_ticks = rng.randint(4, 10)
    options.heartbeat_ticks = rng.choice((1, 1, 2))
    options.fault_ticks = rng.randint(60, 160)
    options.pre_vote = _coin(rng, 0.85)
    options.check_quorum = _coin(rng, 0.9)
    options.lease_reads = _coin(rng, 0.35)
    options.evidence = _coin(rng, 0.7)
    options.core_only_heals = _coin(rng, 0.3)
    if _coin(rng, 0.3):
        options.inflight_messages_max = rng.choice((1, 2, 4))
    if _coin(rng, 0.3):
        options.append_bytes_max = rng.choice((1, 20, 60))
    if _coin(rng, 0.2):
        options.inflight_bytes_max = max(rng.choice((20, 100)), options.append_bytes_max)
    if _coin(rng, 0.2):
        options.committed_bytes_max = rng.choice((1, 20, 60))
    if _coin(rng, 0.15):
        options.uncommitted_bytes_max = rng.choice((30, 200))
    if _coin(rng, 0.5):
        options.pump_us = rng.choice((500, 3_000, 20_000))
    if _coin(rng, 0.4):
        options.apply_us = rng.choice((2_000, 20_000, 150_000))
    if _coin(rng, 0.3):
        options.late_tick = rng.choice((0.02, 0.2))
    if _coin(rng, 0.5):
        options.drift = rng.choice((0.01, 0.03))
    if _coin(rng, 0.2):
        options.value_bytes = (1, 300)
    options.batch_max = rng.choice((1, 3, 6))
    options.work_us = rng.choice((15_000, 40_000, 100_000))


def _draw_network(options: Options, rng: random.Random) -> None:
    network = options.network
    network.latency_us = rng.choice(((200, 800), (500, 5_000), (500, 40_000), (20_000, 60_000)))
    network.ordered = _coin(rng)
    if _coin(rng):
        network.loss = rng.choice((0.01, 0.05, 0.2))
    if _coin(rng):
        network.duplicate = rng.choice((0.02, 0.1, 0.3))
    if _coin(rng, 0.6):
        network.late = rng.choice((0.01, 0.05, 0.2))
        network.late_us = rng.choice((50_000, 300_000, 1_500_000))
    if _coin(rng, 0.2):
        network.late_handover = 0.5
    if _coin(rng, 0.3):
        options.snapshot_loss = rng.choice((0.1, 0.4))
    options.snapshot_us = rng.choice(((2_000, 80_000), (50_000, 600_000)))
    options.tell_removed = rng.choice((0.0, 0.1, 1.0))


def _draw_disk(options: Options, rng: random.Random) -> None:
    disk = options.disk
    disk.sync_us = rng.choice(((100, 300), (300, 2_000), (1_000, 30_000), (20_000, 100_000)))
    if _coin(rng, 0.4):
        disk.slow = rng.choice((0.05, 0.2))
        disk.slow_us = rng.choice((50_000, 400_000))
    disk.synced_at_crash = rng.choice((0.1, 0.5, 0.9))


def _draw_faults(options: Options, rng: random.Random) -> None:
    faults = options.faults
    if _coin(rng, 0.1):
        return  # a quiet run: what fails without any fault is seen best here
    options.fault_us = rng.choice((150_000, 300_000, 600_000, 1_500_000))
    options.restart_us = rng.choice((30_000, 300_000, 1_500_000))
    if _coin(rng):
        faults.crash = 3
    if _coin(rng):
        faults.crash_leader = 3
    if _coin(rng, 0.3):
        faults.crash_candidate = 3
    if _coin(rng, 0.3):
        faults.crash_all = 1
    if _coin(rng):
        faults.partition = 3
    if _coin(rng):
        faults.isolate_leader = 3
    if _coin(rng, 0.4):
        faults.one_way = 3
    if _coin(rng, 0.2):
        faults.one_ear = 2
    if _coin(rng, 0.3):
        faults.split_halves = 2
    if _coin(rng, 0.4):
        faults.pause = 2
    if _coin(rng, 0.4):
        faults.pause_leader = 2
    if _coin(rng, 0.3):
        faults.slow_disk = 2
    faults.heal = rng.choice((1, 3, 6))


def _draw_work(options: Options, rng: random.Random) -> None:
    work = options.work
    if _coin(rng, 0.3):
        work.propose_stale = 5
    if _coin(rng, 0.6):
        work.read_index = rng.choice((3, 10))
    if options.lease_reads or _coin(rng, 0.05):
        work.lease_read = rng.choice((3, 10))
    if _coin(rng, 0.4):
        work.transfer = rng.choice((1, 3))
    if _coin(rng, 0.5):
        work.conf_change = rng.choice((1, 3))
        work.replace_all = rng.choice((0, 0, 1))
    if _coin(rng, 0.7):
        work.flush = 4
        work.compact = rng.choice((0, 2, 4))
    if _coin(rng, 0.2):
        work.campaign = 1
    if _coin(rng, 0.2):
        work.campaign_hard = 1
    if options.voters >= 3 and not work.conf_change and _coin(rng, 0.3):
        options.faults.damage = 2
    if options.evidence and _coin(rng, 0.4):
        work.false_evidence = 2
    if _coin(rng, 0.2):
        work.sleep = 2


def _fit_drift(options: Options) -> None:
    """The lease bears only so much drift; fewer ticks bear less."""
    if not options.lease_reads:
        return
    options.check_quorum = True
    options.election_ticks = max(options.election_ticks, 7)
    ratio_max = (options.election_ticks - 1) / (LEASE_SHARE * options.election_ticks)
    drift_max = (ratio_max - 1) / (ratio_max + 1)
    options.drift = min(options.drift, drift_max * 0.9)


def _lease(options: Options, rng: random.Random) -> None:
    """Lease reads at a leader that is cut off, paused or handing over while another one is elected in haste."""
    options.lease_reads = True
    options.voters = rng.choice((3, 3, 5))
    options.work.lease_read = 20
    options.work_us = 12_000
    options.faults.pause_leader = 3
    options.faults.isolate_leader = 4
    options.faults.heal = 2
    options.fault_us = rng.choice((300_000, 800_000))
    options.evidence = True
    options.work.false_evidence = rng.choice((0, 2))
    options.work.transfer = rng.choice((0, 2))
    options.work.campaign = options.work.campaign_hard = rng.choice((0, 2))
    options.network.latency_us = rng.choice(((200, 800), (500, 5_000)))
    options.disk.sync_us = (100, 300)


def _reads(options: Options, rng: random.Random) -> None:
    """ReadIndex reads at a leader that does not know that it is one no more."""
    options.voters = rng.choice((3, 3, 5))
    options.lease_reads = False
    options.work.lease_read = 0
    options.work.read_index = 20
    options.work_us = 12_000
    options.faults.isolate_leader = 5
    options.faults.pause_leader = 2
    options.faults.heal = 2
    options.fault_us = rng.choice((300_000, 800_000))
    options.evidence = True
    options.work.false_evidence = 2
    options.work.transfer = rng.choice((0, 2))
    options.network.latency_us = rng.choice(((200, 800), (500, 5_000)))
    options.disk.sync_us = (100, 300)


def _membership(options: Options, rng: random.Random) -> None:
    """Changes of membership, one after another, with elections among halves that do not know the newest one."""
    options.voters = rng.choice((2, 3, 3, 4))
    options.learners = rng.choice((0, 1))
    options.work.conf_change = 12
    options.work.transfer = 1
    options.faults.partition = 4
    options.faults.isolate_leader = 2
    options.faults.heal = 3
    options.fault_us = rng.choice((200_000, 500_000))
    options.work_us = rng.choice((20_000, 40_000))
    options.evidence = True
    options.work.false_evidence = rng.choice((0, 2))


def _snapshots(options: Options, rng: random.Random) -> None:
    """Followers that fall behind a log that is compacted at once; late and doubled snapshots."""
    options.voters = rng.choice((3, 5))
    options.work.flush = 8
    options.work.compact = 8
    options.work_us = 15_000
    options.network.duplicate = 0.3
    options.network.ordered = False
    options.network.late = 0.2
    options.network.late_us = 200_000
    options.faults.partition = 4
    options.faults.crash = 2
    options.faults.heal = 3
    options.fault_us = 200_000
    options.snapshot_us = (2_000, 400_000)


def _disk(options: Options, rng: random.Random) -> None:
    """Slow syncs, crashes in the midst of them, leaders that replace what is still on its way to the disk."""
    options.voters = rng.choice((3, 3, 5))
    options.disk.sync_us = rng.choice(((1_000, 30_000), (20_000, 100_000), (20_000, 400_000)))
    options.network.latency_us = (200, 5_000)
    options.faults.crash = 2
    options.faults.crash_leader = 4
    options.faults.partition = 3
    options.faults.isolate_leader = 3
    options.faults.heal = 3
    options.fault_us = rng.choice((150_000, 300_000))
    options.restart_us = 60_000
    options.work.propose = 20
    options.work.propose_stale = 10
    options.work_us = 15_000
    options.evidence = True
    options.work.false_evidence = rng.choice((0, 3))


def _elections(options: Options, rng: random.Random) -> None:
    """Many candidates, logs of different lengths, late and doubled votes, restarts in between."""
    options.voters = rng.choice((3, 4, 5))
    options.election_ticks = rng.randint(3, 5)
    options.heartbeat_ticks = 1
    options.lease_reads = False
    options.work.lease_read = 0
    options.work.campaign = 3
    options.work.campaign_hard = 3
    options.work.propose_stale = 10
    options.faults.crash = 3
    options.faults.crash_leader = 3
    options.faults.isolate_leader = 3
    options.faults.heal = 4
    options.fault_us = 150_000
    options.restart_us = 50_000
    options.network.late = 0.1
    options.network.late_us = 200_000
    options.network.ordered = False


def _crash_candidate(options: Options, rng: random.Random) -> None:
    """Candidates that crash before their disk has what they asked for votes with, and are back at once."""
    options.voters = 3
    options.learners = 0
    options.election_ticks = rng.randint(3, 6)
    options.heartbeat_ticks = 1
    options.lease_reads = False
    options.check_quorum = False
    options.disk.sync_us = (100, 2_000)
    options.disk.synced_at_crash = 0.1
    options.network.latency_us = rng.choice(((5_000, 40_000), (20_000, 60_000)))
    options.network.loss = 0.0
    options.network.late = 0.2
    options.network.late_us = 100_000
    options.faults = FaultWeights(crash_candidate=4, slow_disk=4, crash_leader=1, heal=8)
    options.fault_us = 40_000
    options.restart_us = 5_000
    options.work = WorkWeights(propose=20, campaign_hard=2, flush=1)
    options.work_us = 10_000


def _joint_reads(options: Options, rng: random.Random) -> None:
    """Reads in joint configurations that stay for a while, with the leader cut off from the outgoing half."""
    options.voters = 3
    options.learners = 0
    options.replicas_max = 12
    options.lease_reads = rng.random() < 0.5
    options.work.read_index = 20
    options.work.lease_read = 20 if options.lease_reads else 0
    options.work.conf_change = 2
    options.work.replace_all = 4
    options.work_us = 8_000
    options.faults.split_halves = 6
    options.faults.heal = 3
    options.fault_us = 300_000
    options.restart_us = 5_000
    options.work.campaign = 3
    options.network.latency_us = (200, 800)
    options.snapshot_us = (2_000, 20_000)
    options.disk.sync_us = (100, 300)
    options.evidence = True
    options.work.false_evidence = 2
    options.work.flush = 4


def _late_rounds(options: Options, rng: random.Random) -> None:
    """Leadership goes to and fro among three while answers to heartbeats of former terms are still under way."""
    _reads(options, rng)
    options.voters = 3
    options.election_ticks = 3
    options.heartbeat_ticks = 1
    options.network.ordered = False
    options.network.late = 0.3
    options.network.late_us = 3_000_000
    options.network.loss = 0.0
    options.faults = FaultWeights(one_ear=6, heal=4)
    options.fault_us = 600_000
    options.fault_ticks = 200
    options.work = WorkWeights(propose=10, read_index=20, transfer=2, false_evidence=1)


def _lease_restarts(options: Options, rng: random.Random) -> None:
    """Voters that restart right after they have promised a lease, and campaign at once."""
    _lease(options, rng)
    options.voters = 3
    options.faults.crash = 6
    options.fault_us = 100_000
    options.restart_us = 5_000
    options.work.campaign = 5
    options.work.campaign_hard = 5


def _lease_transfers(options: Options, rng: random.Random) -> None:
    """Transfers whose TIMEOUT_NOW arrives when the leader has given them up, and hears nothing any more."""
    _lease(options, rng)
    options.work = WorkWeights(propose=8, lease_read=10, transfer=rng.choice((1, 3)))
    options.faults = FaultWeights(pause_leader=2, one_way=6, heal=6)
    options.fault_us = 250_000
    options.network.loss = 0.0
    options.network.late_handover = 0.7


def _slow_leader(options: Options, rng: random.Random) -> None:
    """Leaders whose disk is stuck while others replace what is on its way to it."""
    options.voters = rng.choice((3, 5))
    options.election_ticks = 3
    options.heartbeat_ticks = 1
    options.lease_reads = False
    options.work.lease_read = 0
    options.disk.sync_us = (100, 2_000)
    options.network.latency_us = (200, 5_000)
    options.network.loss = 0.0
    options.faults.slow_disk = 10
    options.faults.isolate_leader = 5
    options.faults.heal = 5
    options.fault_us = 100_000
    options.work.propose = 20
    options.work.propose_stale = 20
    options.work_us = 8_000
    options.evidence = True
    options.work.false_evidence = 3


def _damage(options: Options, rng: random.Random) -> None:
    """One replica at a time loses a part of what it has acknowledged, while elections go on."""
    options.voters = rng.choice((3, 3, 5))
    options.learners = 0
    options.lease_reads = False
    options.election_ticks = rng.randint(3, 6)
    options.heartbeat_ticks = 1
    options.core_only_heals = False
    options.network.latency_us = rng.choice(((500, 5_000), (5_000, 40_000)))
    options.network.loss = rng.choice((0.0, 0.2, 0.4))
    options.faults = FaultWeights(damage=6, crash_leader=2, isolate_leader=2, one_way=1, heal=6, slow_disk=2)
    options.fault_us = rng.choice((60_000, 200_000))
    options.restart_us = 10_000
    options.work = WorkWeights(propose=20, propose_stale=5, transfer=1, flush=rng.choice((0, 2)), campaign=1)
    options.work_us = 15_000


PROFILES: dict[str, Callable[[Options, random.Random], None]] = {
    "lease": _lease,
    "reads": _reads,
    "membership": _membership,
    "snapshots": _snapshots,
    "disk": _disk,
    "elections": _elections,
    "crash-candidate": _crash_candidate,
    "joint-reads": _joint_reads,
    "late-rounds": _late_rounds,
    "lease-restarts": _lease_restarts,
    "lease-transfers": _lease_transfers,
    "slow-leader": _slow_leader,
    "damage": _damage,
}
"""Regions of the space; "swarm" is the whole of it and dips into a region in one seed of three."""


def options_of(seed: int, profile: str = "swarm") -> Options:
    """The options of a run. Raises KeyError for a profile that is not known."""
    rng = random.Random(seed * 2 + 1)
    options = Options(seed=seed, profile=profile)
    _draw_group(options, rng)
    _draw_network(options, rng)
    _draw_disk(options, rng)
    _draw_faults(options, rng)
    _draw_work(options, rng)
    if profile == "swarm":
        if _coin(rng, 0.33):
            PROFILES[rng.choice(tuple(PROFILES))](options, rng)
    else:
        PROFILES[profile](options, rng)
    _fit_drift(options)
    if options.work.conf_change or options.voters < 3:
        options.faults.damage = 0  # a quorum without the damaged one must be left
    if not options.network.ordered:
        # Links keep their order in the real world. Without it, each overtaken append of a window is refused, and each
        # refusal may send the window again: wide windows of tiny appends would flood the run and show nothing.
        options.inflight_messages_max = min(options.inflight_messages_max, 8)
    options.__post_init__()
    return options
