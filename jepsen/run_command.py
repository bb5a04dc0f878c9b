"""`python -m jepsen run`: attacks a cluster of real processes and judges what its clients saw."""

from __future__ import annotations

import random
import time
from datetime import datetime
from pathlib import Path

import click
import orjson
import uvloop

from jepsen import plots
from jepsen.nemeses import GROUPS, NEMESES
from jepsen.outcome import Options, Outcome
from jepsen.run import Run
from jepsen.run_report import INDEX_FILE
from jepsen.workloads import WORKLOADS

EXIT_CODES = {True: 0, False: 1, None: 2}
EXIT_INTERRUPTED = 130


class Names(click.ParamType[tuple[str, ...]]):
    """A list of names with commas; some stand for several."""

    name = "NAME[,NAME]"

    def __init__(self, known: tuple[str, ...], groups: dict[str, tuple[str, ...]]) -> None:
        self._known = known
        self._groups = groups

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found: dict[str, None] = {}
        for name in str(value).split(","):
            if name not in self._known and name not in self._groups:
                self.fail(f"{name!r} is none of {', '.join((*self._known, *self._groups))}", param, context)
            found.update(dict.fromkeys(self._groups.get(name, (name,))))
        return tuple(found)


@click.command()
@click.option(
    "--workload", "workloads", type=Names(tuple(WORKLOADS), {"all": tuple(WORKLOADS)}), default="register",
    show_default=True, help=f"Of {', '.join(WORKLOADS)}; all.",
)  # fmt: skip
@click.option(
    "--nemesis", "nemeses", type=Names(tuple(NEMESES), dict(GROUPS)), default="kill,pause,partition",
    show_default=True, help=f"Of {', '.join(NEMESES)}; {', '.join(GROUPS)}.",
)  # fmt: skip
@click.option("--time", "seconds", type=click.FloatRange(min=1), default=60.0, show_default=True, metavar="SECONDS")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--seed", type=int, help="Of operations and faults; drawn and printed if not given.")
@click.option("--clients", type=click.IntRange(1, 200), help="Of each workload. [default: twice the nodes]")
@click.option(
    "--rate", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Operations a second of each workload."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for histories, verdict, logs. [default: jepsen-runs/DATE-SEED]",
)
@click.option("--faults-at-once", type=click.IntRange(1, 8), default=2, show_default=True)
@click.option("--read-mode", type=click.Choice(["index", "lease"]), default="index", show_default=True)
@click.pass_context
def run(
    context: click.Context,
    workloads: tuple[str, ...],
    nemeses: tuple[str, ...],
    seconds: float,
    nodes: int,
    seed: int | None,
    clients: int | None,
    rate: float,
    faults_at_once: int,
    out: Path | None,
    read_mode: str,
) -> None:
    """Starts a cluster, attacks it while clients work, heals it, and judges what the clients saw.

    The last line of the output is JSON: {"valid": true|false|"unknown", "ops": N, "seconds": S}.
    Exit code: 0 valid, 1 not, 2 not known.
    """
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    folder = out or Path("jepsen-runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{seed}"
    if folder.exists() and any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty: an old run's data would be taken for this one's")
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(
        workloads=workloads,
        nemeses=nemeses,
        seconds=seconds,
        nodes=nodes,
        seed=seed,
        out=folder,
        clients=clients or 2 * nodes,
        rate=rate,
        faults_at_once=faults_at_once,
        flags=["--read-mode", read_mode],
    )
    click.echo(f"seed {seed}, {nodes} nodes, {seconds:.0f} s, report in {folder}")
    began = time.monotonic()
    try:
        outcome = uvloop.run(_run(options))
    except KeyboardInterrupt:
        click.echo(f"interrupted; the histories so far are in {folder}, `python -m jepsen check` judges them")
        context.exit(EXIT_INTERRUPTED)
    _explain(outcome)
    click.echo(f"the report is {folder / INDEX_FILE}")
    click.echo(orjson.dumps(outcome.summary(time.monotonic() - began)))
    context.exit(EXIT_CODES[outcome.valid])


async def _run(options: Options) -> Outcome:
    return await Run(options, click.echo).run()


def _explain(outcome: Outcome) -> None:
    """The verdicts for a person."""
    for problem in outcome.problems:
        click.secho(f"PROBLEM  {problem}", fg="red")
    for name, judgement in outcome.judgements.items():
        word = {True: "valid", False: "INVALID", None: "unknown"}[judgement.valid]
        numbers = ", ".join(f"{what} {number}" for what, number in judgement.numbers.items())
        click.secho(f"{name:12} {word:8} {numbers}", fg={True: "green", False: "red", None: "yellow"}[judgement.valid])
        for line in judgement.lines[:10]:
            click.echo(f"    {line}")
    faults = ", ".join(f"{count} {name}" for name, count in sorted(outcome.faults.items())) or "none"
    click.echo(f"faults: {faults}")
    if not plots.available():
        click.echo(plots.LACKING)
    for outage in outcome.outages[:3]:
        click.echo(f"{outage.seconds:.1f} s without an answer: {', '.join(outage.faults) or 'without a fault'}")
    for name, lines in outcome.errors.items():
        click.echo(f"{len(lines)} lines in {name}.log tell of errors: {lines[0]}")
