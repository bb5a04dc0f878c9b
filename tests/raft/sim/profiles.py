"""Regions of the option space in which some rule is under strain. Each narrows what was drawn.

The swarm dips into one of them in one seed of three; `--profile NAME` stays in one; a mutation names the one that
shows it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .options import FaultWeights, Options, WorkWeights


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


def _damage_unseen(options: Options, rng: random.Random) -> None:
    """A loss of which the leader, whose own disk is stuck, hears late or not at all."""
    _damage(options, rng)
    options.voters = 3
    options.evidence = False
    options.heartbeat_ticks = 2
    options.network.latency_us = (500, 5_000)
    options.network.loss = rng.choice((0.3, 0.5))
    options.disk.sync_us = (100, 300)
    options.faults = FaultWeights(damage=8, slow_disk=8, one_way=3, isolate_leader=2, crash_leader=1, heal=8)
    options.fault_us = 80_000
    options.restart_us = 2_000
    options.fault_ticks = 200
    options.work = WorkWeights(propose=20)
    options.work_us = 30_000


def _demotions(options: Options, rng: random.Random) -> None:
    """Leaders that step down by a change of the membership, among voters that forget that it was committed."""
    options.voters = rng.choice((2, 3))
    options.learners = 0
    options.election_ticks = rng.randint(3, 6)
    options.heartbeat_ticks = 1
    options.lease_reads = False
    options.disk.sync_us = rng.choice(((300, 2_000), (1_000, 30_000)))
    options.faults = FaultWeights(crash=6, crash_all=2, isolate_leader=3, partition=3, heal=8)
    options.fault_us = 100_000
    options.restart_us = 30_000
    options.work = WorkWeights(propose=20, demote_leader=2, conf_change=2, campaign_hard=1)
    options.work_us = 20_000


def _hibernation(options: Options, rng: random.Random) -> None:
    """Groups with so little to do that they sleep, while their leaders die, stand still or are cut off."""
    options.work = WorkWeights(propose=3, read_index=1, sleep=12, transfer=1, flush=1, conf_change=rng.choice((0, 1)))
    options.work.lease_read = 2 if options.lease_reads else 0
    options.work_us = rng.choice((50_000, 200_000))
    options.faults.crash_leader = 2
    options.faults.crash = 2
    options.faults.isolate_leader = 1
    options.faults.heal = 3
    options.fault_us = 1_000_000
    options.network.loss = rng.choice((0.0, 0.05))
    options.network.latency_us = (500, 5_000)
    options.disk.sync_us = (300, 2_000)


PROFILES: dict[str, Callable[[Options, random.Random], None]] = {
    "lease": _lease,
    "reads": _reads,
    "membership": _membership,
    "snapshots": _snapshots,
    "disk": _disk,
    "elections": _elections,
    "crash-candidate": _crash_candidate,
    "demotions": _demotions,
    "hibernation": _hibernation,
    "joint-reads": _joint_reads,
    "late-rounds": _late_rounds,
    "lease-restarts": _lease_restarts,
    "lease-transfers": _lease_transfers,
    "slow-leader": _slow_leader,
    "damage": _damage,
    "damage-unseen": _damage_unseen,
}
"""By name. "swarm" is the name of the whole space."""
