"""The options of a run, drawn from its seed (swarm testing).

A run in which everything goes wrong at once finds less than many runs of which each leaves most faults out: a class
of faults that is always on hides the bugs that need its absence. So each class is switched on by a coin, and its rate
is drawn as well. A *profile* narrows the draw to a region of the space where some rule is under strain.

Invariant: the options depend on nothing but (seed, profile).
"""

from __future__ import annotations

import random

from .options import LEASE_SHARE, Options
from .profiles import PROFILES


def _coin(rng: random.Random, chance: float = 0.5) -> bool:
    return rng.random() < chance


def _draw_group(options: Options, rng: random.Random) -> None:
    options.voters = rng.choices((1, 2, 3, 4, 5), (1, 2, 10, 2, 5))[0]
    options.learners = 1 if _coin(rng, 0.2) else 0
    options.election_ticks = rng.randint(4, 10)
    options.heartbeat_ticks = rng.choice((1, 1, 2))
    options.fault_ticks = rng.randint(60, 260)
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
        work.demote_leader = rng.choice((0, 0, 1))
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
