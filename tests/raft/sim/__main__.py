"""`python -m tests.raft.sim`: run seeds, show progress, and say of a failing one how to run it again.

Exit codes: 0 all passed, 127 raft/ raised or failed an assertion, 128 no progress after healing, 129 a promise broken.
"""

from __future__ import annotations

import argparse
import sys
import time

from .mutations import MUTATIONS
from .profiles import PROFILES
from .runner import Failure, Summary, judge_all, run_many, run_world, tail_of
from .swarm import options_of
from .trace import Trace
from .violation import EXIT_SAFETY

_TRACE_ALL = 1_000_000


def _seeds(text: str) -> tuple[int, int]:
    first, separator, last = text.partition("..")
    return int(first), int(last if separator else first)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.raft.sim", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, metavar="A..B", help="run these, both ends included")
    parser.add_argument("--seed", type=int, help="run one")
    parser.add_argument("--jobs", type=int, default=0, help="processes (default: all cores)")
    parser.add_argument("--profile", default="swarm", choices=("swarm", *PROFILES), help="region of the option space")
    parser.add_argument("--mutation", default="", choices=("", *MUTATIONS), help="break this rule of raft/")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    parser.add_argument("--digest", action="store_true", help="print one line a seed that tells equal runs from others")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--judge", action="store_true", help="look for every mutation and tell which seed shows it")
    options = parser.parse_args()
    if not options.judge and (options.seed is None) == (options.seeds is None):
        parser.error("give either --seed or --seeds")
    return options


def _report(failure: Failure) -> None:
    print(f"\nseed {failure.seed} FAILED: {failure.violation}")
    print("\n".join(tail_of(failure)))
    print(f"seed {failure.seed} FAILED: {failure.violation}\nreplay: {failure.command()}")


def _run_traced(seed: int, profile: str, mutation: str, *, all_events: bool) -> int:
    trace = Trace(_TRACE_ALL) if all_events else None
    if mutation:
        with MUTATIONS[mutation].applied():
            world, violation = run_world(seed, profile, trace)
    else:
        world, violation = run_world(seed, profile, trace)
    if trace is not None:
        print(options_of(seed, profile))
        print("\n".join(trace.lines()))
    if violation is None:
        print(f"seed {seed} passed: {world.events} events, {world.now_us // 1_000} ms, digest {world.digest():016x}")
        return 0
    _report(Failure(seed, profile, mutation, violation))
    return violation.exit_code


def _run_range(options: argparse.Namespace) -> int:
    first, last = options.seeds
    total = Summary()
    began = time.monotonic()
    runs = run_many(
        first,
        last,
        profile=options.profile,
        mutation=options.mutation,
        jobs=options.jobs,
        failures_max=_TRACE_ALL if options.keep_going else 1,
    )
    for summary in runs:
        total.add(summary)
        for failure in summary.failures:
            _report(failure)
        if total.failures and not options.keep_going:
            break
        if sys.stdout.isatty() or total.runs % 1_000 == 0:
            line = f"{total.runs}/{last - first + 1} seeds, {total.events} events, {time.monotonic() - began:.0f} s"
            print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)
    print(
        f"\n{total.runs} seeds, {total.events} events, {len(total.failures)} failed, {time.monotonic() - began:.1f} s"
    )
    print(", ".join(f"{mark} {count}" for mark, count in sorted(total.marks.items())))
    return max((failure.violation.exit_code for failure in total.failures), default=0)


def _print_digests(options: argparse.Namespace) -> int:
    first, last = options.seeds or (options.seed, options.seed)
    for seed in range(first, last + 1):
        world, violation = run_world(seed, options.profile)
        print(f"{seed} {world.digest():x} {violation.invariant if violation else 'passed'}")
    return 0


def _judge(options: argparse.Namespace) -> int:
    missed = 0
    for verdict in judge_all(list(MUTATIONS), options.jobs):
        mutation = MUTATIONS[verdict.mutation]
        found = verdict.found
        shown = f"seed {found.seed}, {found.violation}" if found else f"NOT FOUND in {mutation.seeds} seeds"
        print(f"{verdict.mutation:32} {mutation.profile:16} {shown[:160]}", flush=True)
        for failure in verdict.clean.failures:
            print(f"  without it, seed {failure.seed} fails too: {failure.violation}\n  {failure.command()}")
        missed += found is None or bool(verdict.clean.failures)
    return EXIT_SAFETY if missed else 0


def main() -> int:
    options = _parse()
    if options.judge:
        return _judge(options)
    if options.digest:
        return _print_digests(options)
    if options.seed is not None:
        return _run_traced(options.seed, options.profile, options.mutation, all_events=options.trace)
    return _run_range(options)


if __name__ == "__main__":
    sys.exit(main())
