"""The command line, `python -m jepsen`: one subcommand a file, added here.

Invariant: the last line on standard output is one JSON object, the exit code 0 (valid), 1 (a violation) or 2 (not
           known, or the question was wrong); all else that is said goes before it, or to standard error.
"""

from __future__ import annotations

import click

from jepsen.check_command import check
from jepsen.run_command import run

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
def jepsen() -> None:
    """Attacks the store, judges what its clients saw, and shows why."""


jepsen.add_command(check)
jepsen.add_command(run)
