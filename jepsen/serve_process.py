"""One `kvstore serve` as a process of its own, that can be signalled and started again.

Invariant: it never outlives this process: the kernel kills it, should this one die without having done so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from kvstore.cli.dev_processes import environment, tie_to_parent


class ServeProcess:
    """Its output, over all its lives, is in `log`."""

    def __init__(self, name: str, *, data: Path, log: Path) -> None:
        self.name = name
        self.data = data
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def launch(self, *flags: str, surroundings: Mapping[str, str] = MappingProxyType({})) -> None:
        """Begin to run, with more variables than this process has. It is not ready yet."""
        assert not self.running, f"{self.name} runs already"
        command = (sys.executable, "-m", "kvstore.cli", "serve", "--name", self.name, "--data", str(self.data))
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                *flags,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment(os.environ), **surroundings},
                preexec_fn=tie_to_parent(),
            )

    def send(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def exit_code(self, seconds_max: float) -> int:
        """Once it has ended; negative for a signal. Raises TimeoutError."""
        assert self._process is not None
        async with asyncio.timeout(seconds_max):
            return await self._process.wait()
