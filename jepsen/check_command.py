"""`python -m jepsen check FILE`: judges a recorded history."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from jepsen import counterexample, formats, linearizability, report
from jepsen.history import History, HistoryError
from jepsen.model import Model, ModelError
from jepsen.models import ALIASES, MODELS, guess, model_named
from jepsen.narration import counterexample_lines, verdict_lines

EXIT_CODES = {True: 0, False: 1, None: 2}
EXIT_WRONG = 2


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--format", "format_name", type=click.Choice(formats.FORMATS), help="Guessed from the content if not given."
)
@click.option("--model", "model_name", type=click.Choice([*MODELS, *ALIASES]), help="Told by the file, or guessed.")
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
        model = _model(history, model_name)
        verdict = linearizability.check(
            history,
            model,
            seconds_max=time_limit,
            memory_bytes_max=memory_limit << 20,
            every_part=html is not None,
        )
    except (HistoryError, ModelError, ValueError, OSError) as error:
        click.echo(f"{file}: {error}", err=True)
        context.exit(EXIT_WRONG)
    for line in verdict_lines(history, verdict):
        click.echo(line)
    examples = counterexample.explain_all(model, verdict.illegal if html is not None else verdict.illegal[:1])
    for example in examples[:1]:
        for line in counterexample_lines(model, example):
            click.echo(line)
    if html is not None:
        report.write(html, history, verdict, examples, title=file.name)
        click.echo(f"the page is {html}")
    click.echo(orjson.dumps(verdict.summary()))
    context.exit(EXIT_CODES[verdict.valid])


def _model(history: History, name: str | None) -> Model:
    named = name or history.meta.get("model")
    if named is not None and named not in (*MODELS, *ALIASES):
        raise ValueError(f"no model is called {named!r}; there are {', '.join(MODELS)}")
    return model_named(str(named) if named is not None else guess(history), history.meta.get("initial"))
