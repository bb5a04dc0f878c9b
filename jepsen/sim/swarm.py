"""What a seed decides before anything begins: how large, how fast, how reliable, and what will go wrong.

Each seed turns some features off altogether, so that rare combinations come to be (swarm testing: Groce et al.).

Invariant: all of it follows from the seed and from what the user asked for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Swarm:
    """Times in the unit that the name says; pairs are from, to."""

    seed: int
    workloads: tuple[str, ...]
    nemeses: tuple[str, ...]
    nodes: int
    clients: int  # of each workload
    rate: float  # operations a second of each workload
    fault_seconds: float
    pause_seconds: tuple[float, float]  # between two faults in one slot
    faults_at_once: int
    latency_seconds: tuple[float, float]
    loss: float
    disk_seconds: tuple[float, float]
    skew_ms: int
    tick_ms: int
    heartbeat_ms: int
    election_ms: int
    flush_ms: int
    read_mode: str

    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.nodes} nodes, {'+'.join(self.workloads)} under {', '.join(self.nemeses) or 'nothing'}, "
            f"election {self.election_ms} ms, latency to {self.latency_seconds[1] * 1e3:g} ms, loss {self.loss:g}, "
            f"reads by {self.read_mode}"
        )


def draw(seed: int, workloads: Sequence[str], nemeses: Sequence[str]) -> Swarm:
    """One of the workloads, some of the nemeses."""
    rng = random.Random(f"swarm {seed}")
    count = rng.randint(1, len(nemeses)) if nemeses else 0
    chosen = set(rng.sample(list(nemeses), count))
    tick_ms, heartbeat_ms, election_ms = rng.choice(((50, 100, 1_000), (50, 100, 500), (20, 40, 300)))
    latency = rng.choice((0.0005, 0.002, 0.01, 0.03))
    disk = rng.choice((0.001, 0.003, 0.02))
    return Swarm(
        seed=seed,
        workloads=(rng.choice(list(workloads)),),
        nemeses=tuple(name for name in nemeses if name in chosen),
        nodes=rng.choice((3, 3, 3, 5)),
        clients=rng.choice((3, 5, 8)),
        rate=rng.choice((15.0, 30.0, 60.0)),
        fault_seconds=rng.uniform(10.0, 25.0),
        pause_seconds=rng.choice(((0.1, 1.0), (0.2, 4.0))),
        faults_at_once=rng.choice((1, 1, 2, 3)),
        latency_seconds=(latency / 4, latency),
        loss=rng.choice((0.0, 0.0, 0.001, 0.01)),
        disk_seconds=(disk / 4, disk),
        skew_ms=rng.choice((0, 100, 60_000)),
        tick_ms=tick_ms,
        heartbeat_ms=heartbeat_ms,
        election_ms=election_ms,
        flush_ms=rng.choice((300, 1_000, 5_000)),
        read_mode=rng.choice(("index", "index", "lease")),
    )
