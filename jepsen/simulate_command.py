"""`python -m jepsen simulate`: many seeds of the whole store on virtual time; a failing one is printed and replays."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import click
import orjson

from jepsen.run_command import EXIT_CODES, Names
from jepsen.sim import swarm
from jepsen.sim.faults import FAULTS, GROUPS
from jepsen.sim.simulation import Result, Simulation
from jepsen.workloads import WORKLOADS

LACKING = {"idempotence": "it speaks plain REST, which is not simulated"}
SIMULATED = tuple(name for name in WORKLOADS if name not in LACKING)
PROGRESS_SECONDS = 10.0
AHEAD = 4
"""Seeds that are handed to each process in advance."""


class Seeds(click.ParamType[range]):
    """A..B, both of them included, or one number."""

    name = "A..B"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        shape = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value))
        if shape is None:
            self.fail(f"{value!r} is not A..B", param, context)
        first, last = int(shape[1]), int(shape[2] or shape[1])
        if first > last:
            self.fail(f"there is no seed in {value}", param, context)
        return range(first, last + 1)


@click.command()
@click.option("--seeds", type=Seeds(), required=True, help="Both ends are included; one number is one seed.")
@click.option(
    "--workload", "workloads", type=Names(tuple(WORKLOADS), {"all": tuple(WORKLOADS)}), default="all",
    show_default=True, help=f"A seed takes one. Of {', '.join(WORKLOADS)}; all.",
)  # fmt: skip
@click.option(
    "--nemesis", "nemeses", type=Names(tuple(FAULTS), GROUPS), default="all", show_default=True,
    help=f"A seed takes some. Of {', '.join(FAULTS)}; {', '.join(GROUPS)}.",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the histories of bad seeds.")
@click.option("--keep", is_flag=True, help="Write the histories of good seeds, too.")
@click.pass_context
def simulate(
    context: click.Context,
    seeds: range,
    workloads: tuple[str, ...],
    nemeses: tuple[str, ...],
    jobs: int,
    out: Path | None,
    keep: bool,
) -> None:
    """Runs the whole store in one thread on virtual time, once a seed, and judges what its clients saw.

    The last line of the output is JSON: {"valid": true|false|"unknown", "seeds": N, "ops": N, "seconds": S}.
    Exit code: 0 valid, 1 not, 2 not known.
    """
    for name in workloads:
        if name in LACKING:
            click.echo(f"workload {name} is skipped: {LACKING[name]}")
    workloads = tuple(name for name in workloads if name in SIMULATED)
    if not workloads:
        raise click.UsageError("no workload is left")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    began = told = time.monotonic()
    total = Total()
    for result in _results(seeds, workloads, nemeses, jobs):
        total.add(result)
        if result.valid is not True:
            _tell(result, workloads, nemeses)
        if out is not None and (keep or result.valid is not True):
            for name, history in result.histories.items():
                (out / f"seed-{result.seed}-{name}.jsonl").write_bytes(history)
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            click.echo(f"{told - began:5.0f} s  {total.text()}")
    spent = time.monotonic() - began
    click.echo(f"{total.text()}; {total.virtual / max(spent, 1e-9):.0f} times real time")
    valid = total.valid
    report = {
        "valid": "unknown" if valid is None else valid,
        "seeds": total.seeds,
        "ops": total.operations,
        "seconds": round(spent, 3),
    }
    click.echo(orjson.dumps(report))
    context.exit(EXIT_CODES[valid])


class Total:
    """Over all seeds so far."""

    def __init__(self) -> None:
        self.seeds = 0
        self.operations = 0
        self.faults = 0
        self.virtual = 0.0  # seconds
        self.bad = 0
        self.unknown = 0

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.operations += result.operations
        self.faults += result.faults
        self.virtual += result.seconds
        self.bad += result.valid is False
        self.unknown += result.valid is None

    @property
    def valid(self) -> bool | None:
        return False if self.bad else None if self.unknown else True

    def text(self) -> str:
        return (
            f"{self.seeds} seeds, {self.bad} bad, {self.unknown} unknown; {self.operations} operations, "
            f"{self.faults} faults, {self.virtual:.0f} simulated seconds"
        )


def run_seed(seed: int, workloads: tuple[str, ...], nemeses: tuple[str, ...]) -> Result:
    return Simulation(swarm.draw(seed, workloads, nemeses)).run()


def _results(seeds: range, workloads: tuple[str, ...], nemeses: tuple[str, ...], jobs: int) -> Iterator[Result]:
    """In the order of the seeds."""
    run = partial(run_seed, workloads=workloads, nemeses=nemeses)
    if jobs == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        left = iter(seeds)
        waiting = [pool.submit(run, seed) for seed in islice(left, jobs * AHEAD)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(run, seed) for seed in islice(left, 1)]


def _tell(result: Result, workloads: tuple[str, ...], nemeses: tuple[str, ...]) -> None:
    verdict = "is not valid" if result.valid is False else "could not be judged"
    click.echo(f"SEED {result.seed} {verdict}: {swarm.draw(result.seed, workloads, nemeses).text()}")
    for problem in result.problems:
        click.echo(f"    {problem}")
    click.echo(
        f"    replay: python -m jepsen simulate --seeds {result.seed} --workload {','.join(workloads)} "
        f"--nemesis {','.join(nemeses) or 'none'} --out DIR"
    )
