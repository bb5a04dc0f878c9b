"""Runs seeds: one, or many on all cores; sums up what happened.

Invariant: a chunk of seeds gives the same result in whatever process and beside whatever other chunk it runs.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field

from .mutations import MUTATIONS
from .swarm import options_of
from .trace import Trace
from .violation import Violation
from .world import World

_CHUNK = 25  # seeds; small enough that the cores end together, large enough that starting one is nothing
TRACE_EVENTS = 60  # what a failing run shows


@dataclass(slots=True)
class Failure:
    seed: int
    profile: str
    mutation: str
    violation: Violation

    def command(self) -> str:
        parts = ["python -m tests.raft.sim", f"--seed {self.seed}"]
        if self.profile != "swarm":
            parts.append(f"--profile {self.profile}")
        if self.mutation:
            parts.append(f"--mutation {self.mutation}")
        return " ".join((*parts, "--trace"))


@dataclass(slots=True)
class Summary:
    runs: int = 0
    events: int = 0
    marks: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Summary) -> None:
        self.runs += other.runs
        self.events += other.events
        self.marks += other.marks
        self.failures += other.failures


def run_world(seed: int, profile: str, trace: Trace | None = None) -> tuple[World, Violation | None]:
    """One run with raft/ as it stands."""
    world = World(options_of(seed, profile), trace)
    try:
        world.run()
    except Violation as violation:
        return world, violation
    return world, None


def run_seeds(first: int, last: int, profile: str = "swarm", mutation: str = "", failures_max: int = 1) -> Summary:
    """The seeds [first, last], in this process; ends early after `failures_max` failures."""
    summary = Summary()
    # Worlds are full of cycles; collecting them between runs is much cheaper than again and again within.
    gc.disable()
    try:
        with MUTATIONS[mutation].applied() if mutation else nullcontext():
            for seed in range(first, last + 1):
                world, violation = run_world(seed, profile)
                summary.runs += 1
                summary.events += world.events
                for mark, count in world.checker.marks.items():
                    summary.marks["final reads" if mark.startswith("final") else mark] += count
                if violation is not None:
                    summary.failures.append(Failure(seed, profile, mutation, violation))
                    if len(summary.failures) >= failures_max:
                        break
                del world
                if seed % 8 == 0:
                    gc.collect()
    finally:
        gc.enable()
    return summary


def run_many(
    first: int, last: int, *, profile: str = "swarm", mutation: str = "", jobs: int = 0, failures_max: int = 1
) -> Iterator[Summary]:
    """The seeds [first, last] on `jobs` processes (0 = all cores), chunk by chunk as they are done."""
    jobs = jobs or os.cpu_count() or 1
    chunks = [(start, min(start + _CHUNK - 1, last)) for start in range(first, last + 1, _CHUNK)]
    if jobs == 1 or len(chunks) == 1:
        for start, end in chunks:
            yield run_seeds(start, end, profile, mutation, failures_max)
        return
    with process_pool(jobs) as pool:
        futures = [pool.submit(run_seeds, start, end, profile, mutation, failures_max) for start, end in chunks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


@dataclass(slots=True)
class Verdict:
    """What the simulation makes of a mutation."""

    mutation: str
    found: Failure | None  # in the first seed that shows it
    clean: Summary  # that seed, and those shortly before it, with raft/ as it stands


def judge(name: str) -> Verdict:
    """Search for the mutation within its seeds; then run the seed that shows it, and some before it, without it."""
    mutation = MUTATIONS[name]
    broken = run_seeds(1, mutation.seeds, mutation.profile, name)
    clean = run_seeds(max(broken.runs - _CHUNK + 1, 1), broken.runs, mutation.profile)
    return Verdict(name, broken.failures[0] if broken.failures else None, clean)


def judge_all(names: Sequence[str], jobs: int = 0) -> Iterator[Verdict]:
    """All of them on all cores, in the order in which they are done."""
    with process_pool(jobs) as pool:
        futures = [pool.submit(judge, name) for name in names]
        for future in as_completed(futures):
            yield future.result()


def process_pool(jobs: int = 0) -> ProcessPoolExecutor:
    """Processes that share nothing with this one, so that threads and patches here do not matter there."""
    return ProcessPoolExecutor(jobs or os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn"))


def tail_of(failure: Failure, size: int = TRACE_EVENTS) -> list[str]:
    """Run it again, the same, and tell its last events."""
    trace = Trace(size)
    with MUTATIONS[failure.mutation].applied() if failure.mutation else nullcontext():
        run_world(failure.seed, failure.profile, trace)
    return trace.lines()
