"""`python -m jepsen check FILE`: judges a recorded history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import orjson

from jepsen import counterexample, formats, linearizability, list_append, report, set_check
from jepsen.counterexample import Counterexample
from jepsen.history import History, HistoryError
from jepsen.linearizability import Verdict
from jepsen.model import ModelError
from jepsen.models import ALIASES, MODELS, guess, model_named
from jepsen.narration import counterexample_lines, verdict_lines

NAMES = (*MODELS, list_append.NAME, *ALIASES)
EXIT_CODES = {True: 0, False: 1, None: 2}
EXIT_WRONG = 2


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--format", "format_name", type=click.Choice(formats.FORMATS), help="Guessed from the content if not given."
)
@click.option("--model", "model_name", type=click.Choice(NAMES), help="Told by the file, or guessed.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page that shows the history.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=linearizability.SECONDS_MAX,
    show_default=True,
    metavar="SECONDS",
    help="Past it the verdict is unknown.",
)
@click.option(
    "--memory-limit",
    type=click.IntRange(min=1),
    default=linearizability.MEMORY_BYTES_MAX >> 20,
    show_default=True,
    metavar="MIB",
    help="What the search may remember; past it the verdict is unknown.",
)
@click.pass_context
def check(
    context: click.Context,
    file: Path,
    format_name: str | None,
    model_name: str | None,
    html: Path | None,
    time_limit: float,
    memory_limit: int,
) -> None:
    """Says whether the history in FILE is linearizable, and if not, why.

    The last line of the output is JSON: {"valid": true|false|"unknown", "ops": N, "seconds": S}.
    Exit code: 0 valid, 1 not, 2 not known or the file cannot be judged.
    """
    try:
        history = formats.read(file, format_name)
        name = _model_name(history, model_name)
        if name == list_append.NAME:
            found = _check_lists(history, html is not None)
        else:
            found = _check_order(history, name, html is not None, time_limit, memory_limit << 20)
    except (HistoryError, ModelError, ValueError, OSError) as error:
        click.echo(f"{file}: {error}", err=True)
        context.exit(EXIT_WRONG)
    for line in found.lines:
        click.echo(line)
    if html is not None:
        report.write(html, history, found.verdict, found.examples, title=file.name)
        click.echo(f"the page is {html}")
    click.echo(orjson.dumps(found.verdict.summary()))
    context.exit(EXIT_CODES[found.verdict.valid])


@dataclass(slots=True)
class _Found:
    verdict: Verdict
    examples: list[Counterexample]
    lines: list[str]


def _model_name(history: History, name: str | None) -> str:
    named = name or history.meta.get("model")
    if named is None:
        return list_append.NAME if list_append.is_of(history) else guess(history)
    if named not in NAMES:
        raise ValueError(f"no model is called {named!r}; there are {', '.join(NAMES)}")
    return str(named)


def _check_order(history: History, name: str, every_part: bool, seconds_max: float, memory_bytes_max: int) -> _Found:
    model = model_named(name, history.meta.get("initial"))
    verdict = linearizability.check(
        history, model, seconds_max=seconds_max, memory_bytes_max=memory_bytes_max, every_part=every_part
    )
    lines = list(verdict_lines(history, verdict))
    if model.name == "set" and history.functions() <= {"add", "read"}:
        counts = set_check.count(history)
        lines += counts.lines()
        if not counts.valid:
            verdict.valid = False  # what is lost or stale is illegal, even if the search ran out of time
    examples = counterexample.explain_all(model, verdict.illegal if every_part else verdict.illegal[:1])
    if examples:
        lines += counterexample_lines(model, examples[0])
    return _Found(verdict, examples, lines)


def _check_lists(history: History, with_page: bool) -> _Found:
    verdict = list_append.check(history)
    whole, examples = list_append.shown(history, verdict)
    return _Found(whole, examples if with_page else [], list(verdict.lines()))
