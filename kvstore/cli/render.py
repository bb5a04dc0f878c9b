"""What commands print: JSON for programs, tables for people, plain text where stdout is no terminal.

Invariant: JSON goes to stdout as UTF-8, one value and a line break; tables never wrap a row when piped.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
import orjson

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 10_000  # columns of a table that goes to a pipe: it must not be folded


def print_json(value: Any) -> None:
    pretty = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    click.echo(orjson.dumps(value, option=pretty | orjson.OPT_NON_STR_KEYS))


def note(text: str) -> None:
    """Something for the person, not part of the result."""
    click.echo(text, err=True)


def error_console() -> Console:
    """Where progress bars and live views go."""
    from rich.console import Console

    return Console(stderr=True)


def columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "nothing", folds: str = ""
) -> None:
    """A heading that begins with ">" is of numbers: its column is aligned to the right. `folds`: the only column that
    may be folded where the terminal is narrow; "" = any."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [[_cell(value) for value in row] for row in rows]
    if not lines:
        note(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="bold")
    for heading in headings:
        table.add_column(
            heading.lstrip(">"),
            justify="right" if heading.startswith(">") else "left",
            overflow="fold",
            no_wrap=bool(folds) and heading != folds,
        )
    for line in lines:
        table.add_row(*(Text(text, style=_style(text)) for text in line))
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=WIDE, color_system=None)
    with console.capture() as capture:
        console.print(table)
    for row in capture.get().splitlines():
        click.echo(row.rstrip())


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_STYLES = {"alive": "green", "up": "green", "suspect": "yellow", "dead": "red", "down": "red", "left": "dim"}


def _style(text: str) -> str:
    return _STYLES.get(text, "")


def bytes_text(count: int | None) -> str:
    """1536 -> 1.5 KiB."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration_text(seconds: float | None) -> str:
    """93784 -> 1d 2h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    parts = [(whole // 86_400, "d"), (whole // 3_600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{number}{unit}" for number, unit in parts[:2])


def round_trip_text(milliseconds: object) -> str:
    """0.2541 -> 0.25 ms; 12.3 -> 12 ms."""
    if not isinstance(milliseconds, int | float):
        return "-"
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
