"""The command line, `python -m jepsen`: one subcommand a file, named in COMMANDS.

Invariant: the last line on standard output is one JSON object, the exit code 0 (valid), 1 (a violation) or 2 (not
           known, or the question was wrong); all else that is said goes before it, or to standard error.
Invariant: a command is imported when it is used, so that `check` needs nothing of the store.
"""

from __future__ import annotations

from collections.abc import Callable

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _check() -> click.Command:
    from jepsen.check_command import check

    return check


def _run() -> click.Command:
    from jepsen.run_command import run

    return run


def _simulate() -> click.Command:
    from jepsen.simulate_command import simulate

    return simulate


COMMANDS: dict[str, Callable[[], click.Command]] = {"check": _check, "run": _run, "simulate": _simulate}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        load = COMMANDS.get(cmd_name)
        return None if load is None else load()


@click.group(cls=LazyGroup, context_settings=CONTEXT)
def jepsen() -> None:
    """Attacks the store, judges what its clients saw, and shows why."""
