"""What the two state machines share: a loop of their own, a backend, and when a step of the store is told done."""

from __future__ import annotations

import asyncio
import random
import selectors
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine

from tests.storage.backends import Backend, LmdbBackend, MemoryBackend

SETTINGS = {
    "lmdb": settings(
        max_examples=25,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    ),
    "memory": settings(
        max_examples=60,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    ),
}


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, the clock is put forward."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only when everybody waits, so that a run of the memory stores is the same each time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class StoreMachine(RuleBasedStateMachine):
    """Submissions are numbered; `told` is the number up to which the store has said durable."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop() if self.kind == "lmdb" else VirtualLoop()
        self.folder = Path(tempfile.mkdtemp(prefix="kvstore-machine-"))
        self.backend: Backend = (
            LmdbBackend(self.loop, self.folder) if self.kind == "lmdb" else MemoryBackend(self.loop, latency=0.0005)
        )
        self.submitted = 0
        self.told = 0
        self.progress = asyncio.Event()

    def done(self) -> Callable[[], None]:
        """The callback of the next submission."""
        self.submitted += 1
        number = self.submitted

        def done() -> None:
            assert self.told == number - 1, "callbacks come in the order of the submissions"
            self.told = number
            self.progress.set()

        return done

    def run_loop(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def wait(self) -> None:
        """Until everything is told."""

        async def told() -> None:
            while self.told < self.submitted:
                self.progress.clear()
                await self.progress.wait()

        self.loop.run_until_complete(asyncio.wait_for(told(), 20))

    def restart(self, *, crash: bool, seed: int) -> None:
        """From here on the callbacks of the old stores say nothing."""
        if crash:
            self.backend.crash(random.Random(seed))
        else:
            self.backend.close()
            self.told = self.submitted  # a closed store has finished everything

    def teardown(self) -> None:
        self.backend.close()
        assert self.backend.fatal == []
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        shutil.rmtree(self.folder)
