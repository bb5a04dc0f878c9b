"""`kvctl bench`: how fast is this cluster, for this mix of operations, with so many callers.

The run: load the keys that the workload reads, warm up, measure, remove the keys. Only the measured part is reported.

Invariant: the JSON on stdout has the fields that other tools rely on: ops_per_second, errors, latency_ms.
Invariant: it touches only keys that begin with `kvctl-bench/`, and removes them at the end unless --keep is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from kvstore.base.errors import KVError
from kvstore.base.limits import VALUE_BYTES_MAX
from kvstore.cli.bulk import put_all
from kvstore.cli.histogram import Histogram
from kvstore.cli.load import Load, Tally
from kvstore.cli.progress import Progress
from kvstore.cli.render import error_console, note, print_json, print_table
from kvstore.cli.target import Target, kvctl_command
from kvstore.cli.workloads import KEY_PREFIX, KIND_NAMES, WORKLOADS, Plan, key_of

if TYPE_CHECKING:
    from kvstore.client import Client

TICK_SECONDS = 0.5  # of the live view
LOAD_CHUNK = 1_000
LOAD_FRAMES_MAX = 8
REMOVERS = 8  # a delete-range takes 1,000 keys a command, and waits for each command
TABLE_FIGURES = ("p50", "p90", "p99", "p99_9", "max")
PERCENTILES = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was asked for; part of the report. Times are seconds."""

    workload: str
    distribution: str
    clients: int
    duration: float
    warmup: float
    value_size: int
    keys: int
    seed: int


@click.command(
    epilog="\b\nWorkloads:\n"
    + "\n".join(f"  {workload.name:<8} {workload.about} ({workload.distribution})" for workload in WORKLOADS.values())
    + "\n\n\b\nExamples:\n"
    "  kvctl bench --workload put --clients 256 --duration 10\n"
    "  kvctl bench --workload ycsb-a --keys 1000000 --value-size 1024 -o json",
)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="mixed", show_default=True, help="See below.")
@click.option(
    "--clients",
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    help="Callers at the same time, each with one operation under way.",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to measure.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to run before that.",
)
@click.option(
    "--value-size",
    type=click.IntRange(0, VALUE_BYTES_MAX),
    default=100,
    show_default=True,
    metavar="BYTES",
    help="Of each value.",
)
@click.option(
    "--keys",
    type=click.IntRange(1, 100_000_000),
    default=100_000,
    show_default=True,
    metavar="N",
    help="How many different keys.",
)
@click.option(
    "--distribution",
    type=click.Choice(["uniform", "zipfian", "latest"]),
    help="How keys are chosen. [the workload's own]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random choices.")
@click.option("--load/--no-load", default=True, help="Write the keys first, where the workload reads. [--load]")
@click.option("--keep", is_flag=True, help="Leave the keys there at the end.")
@kvctl_command
async def bench(
    target: Target, workload: str, distribution: str | None, load: bool, keep: bool, **numbers: Any
) -> None:
    """Measure the cluster's speed."""
    chosen = WORKLOADS[workload]
    setup = Setup(workload=workload, distribution=distribution or chosen.distribution, **numbers)
    rng = random.Random(setup.seed)
    async with target.client() as client:
        plan = Plan(chosen, setup.keys, setup.distribution, rng)
        try:
            if load and chosen.needs_data:
                await _load_keys(client, setup, rng)
            tally = await _measure(client, plan, setup, rng)
        finally:
            if not keep:
                await _remove_keys(client, setup)
    if target.json:
        print_json(report(setup, tally))
    else:
        _print_report(setup, tally)


async def _load_keys(client: Client, setup: Setup, rng: random.Random) -> None:
    value = rng.randbytes(setup.value_size)
    chunk = max(1, min(LOAD_CHUNK, 512 * 1024 // max(setup.value_size, 1)))
    window = asyncio.Semaphore(LOAD_FRAMES_MAX)
    with Progress("loading", total_keys=setup.keys) as progress:

        async def put(first: int, last: int) -> None:
            try:
                await put_all(client, [(key_of(number), value) for number in range(first, last)])
                progress.advance(keys=last - first, position=0)
            finally:
                window.release()

        async with _kv_errors(), asyncio.TaskGroup() as group:
            for first in range(0, setup.keys, chunk):
                await window.acquire()
                group.create_task(put(first, min(first + chunk, setup.keys)))


@contextlib.asynccontextmanager
async def _kv_errors() -> AsyncIterator[None]:
    """The first of a group's errors, as itself."""
    try:
        yield
    except* KVError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        error = first
    else:
        return
    raise error


async def _remove_keys(client: Client, setup: Setup) -> None:
    """The loaded range in several parts at once, then what was inserted behind it."""
    if sys.stderr.isatty():
        note("removing the keys ...")
    bounds = [key_of(setup.keys * part // REMOVERS) for part in range(REMOVERS + 1)]
    by_hand = f"kvctl delete-range --prefix {KEY_PREFIX.decode()} removes them"
    try:
        async with _kv_errors(), asyncio.TaskGroup() as group:
            for start, end in itertools.pairwise(bounds):
                group.create_task(client.delete_range(start, end))
        await client.delete_range(prefix=KEY_PREFIX)
    except KVError as error:
        note(f"kvctl: keys of the benchmark are left: {error.message}; {by_hand}")
    except asyncio.CancelledError:
        note(f"kvctl: keys of the benchmark are left; {by_hand}")
        raise


async def _measure(client: Client, plan: Plan, setup: Setup, rng: random.Random) -> Tally:
    """What happened between warm-up and end."""
    load = Load(client, plan, clients=setup.clients, value_size=setup.value_size, rng=rng)
    running = asyncio.create_task(load.run())
    live = Live(setup) if sys.stderr.isatty() else None
    try:
        await asyncio.wait([running], timeout=setup.warmup)
        load.begin_interval()
        end = time.perf_counter() + setup.duration
        while not running.done() and (left := end - time.perf_counter()) > 0:
            await asyncio.wait([running], timeout=min(left, TICK_SECONDS))
            if live:
                live.show(load.tally)
        tally = load.begin_interval()
    finally:
        if live:
            live.close()
        load.stop()
        await running
    return tally


class Live:
    """One line, redrawn: the rate and the percentiles of the last tick."""

    def __init__(self, setup: Setup) -> None:
        from rich.live import Live as RichLive

        self._setup = setup
        self._before = Histogram()
        self._before_at = time.perf_counter()
        self._live = RichLive(console=error_console(), auto_refresh=False, transient=True)
        self._live.start()

    def show(self, tally: Tally) -> None:
        whole, now = tally.together(), time.perf_counter()
        tick = Histogram()
        tick.counts = [new - old for new, old in zip(whole.counts, self._before.counts, strict=True)]
        tick.count, tick.maximum = whole.count - self._before.count, whole.maximum
        rate = tick.count / max(now - self._before_at, 1e-9)
        errors = sum(tally.errors.values())
        self._live.update(
            f"{self._setup.workload}  {now - tally.begun:4.0f} / {self._setup.duration:.0f} s   "
            f"[bold]{rate:>9,.0f}[/] ops/s   "
            f"p50 {tick.percentile(50) / 1e6:.2f} ms   p99 {tick.percentile(99) / 1e6:.2f} ms   errors {errors}",
            refresh=True,
        )
        self._before, self._before_at = whole, now

    def close(self) -> None:
        self._live.stop()


def latency_json(histogram: Histogram) -> dict[str, float]:
    """Milliseconds."""
    figures = {name: histogram.percentile(percent) / 1e6 for name, percent in PERCENTILES}
    figures |= {"max": histogram.maximum / 1e6, "mean": histogram.mean() / 1e6}
    return {name: round(figure, 4) for name, figure in figures.items()}


def report(setup: Setup, tally: Tally) -> dict[str, Any]:
    """The one JSON object."""
    kinds = {KIND_NAMES[kind]: histogram for kind, histogram in tally.latencies.items() if histogram.count}
    return {
        **asdict(setup),
        "seconds": round(tally.seconds, 3),
        "operations": tally.operations,
        "ops_per_second": round(tally.operations / tally.seconds, 1),
        "errors": sum(tally.errors.values()),
        "errors_by_code": dict(sorted(tally.errors.items())),
        "latency_ms": latency_json(tally.together()),
        "by_operation": {
            name: {
                "operations": histogram.count,
                "ops_per_second": round(histogram.count / tally.seconds, 1),
                "latency_ms": latency_json(histogram),
            }
            for name, histogram in kinds.items()
        },
    }


def _print_report(setup: Setup, tally: Tally) -> None:
    figures = report(setup, tally)
    click.echo(
        f"{setup.workload}: {setup.clients} callers, {setup.keys:,} keys ({setup.distribution}), "
        f"values of {setup.value_size} bytes, {tally.seconds:.1f} s"
    )
    click.echo(f"{figures['ops_per_second']:,.0f} operations a second, {figures['errors']} errors")
    for code, count in figures["errors_by_code"].items():
        click.echo(f"  {code}: {count}")
    click.echo("")
    rows = [(name, part["operations"], part["latency_ms"]) for name, part in figures["by_operation"].items()]
    if len(rows) > 1:
        rows.append(("all", figures["operations"], figures["latency_ms"]))
    print_table(
        ("OPERATION", ">COUNT", ">P50 ms", ">P90 ms", ">P99 ms", ">P99.9 ms", ">MAX ms"),
        [(name, count, *(latency[figure] for figure in TABLE_FIGURES)) for name, count, latency in rows],
        empty="no operation succeeded",
    )
