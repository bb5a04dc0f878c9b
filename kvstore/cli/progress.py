"""The progress bar of import, export and the load phase of bench: on stderr, and only when that is a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvstore.cli.render import error_console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress:
    """`total_bytes` None = unknown: no bar, only the count and the rate. `total_keys` counts keys instead of bytes."""

    def __init__(self, what: str, *, total_bytes: int | None = None, total_keys: int | None = None) -> None:
        self._what = what
        self._total = total_bytes if total_keys is None else total_keys
        self._by_keys = total_keys is not None
        self._keys = 0
        self._begun = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[keys]:,} keys  {task.fields[rate]:,.0f}/s"),
                progress.TimeRemainingColumn(),
                console=error_console(),
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(self._what, total=self._total, keys=0, rate=0.0)
            self._bar.start()
        return self

    def advance(self, *, keys: int, position: int) -> None:
        """`keys` more are done; `position` is the byte of the file that they reach to."""
        self._keys += keys
        if self._bar is None or self._task is None:
            return
        rate = self._keys / max(time.monotonic() - self._begun, 1e-3)
        completed = self._keys if self._by_keys else max(position, self._bar.tasks[0].completed)
        self._bar.update(self._task, completed=completed, keys=self._keys, rate=rate)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
