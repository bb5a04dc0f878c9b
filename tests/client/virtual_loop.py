"""An event loop whose time passes only while everybody waits: a test of a five-second deadline takes no time.

Invariant: time never goes back, and jumps exactly to the next timer.
Invariant: a test that waits for something that can't happen any more fails at once instead of hanging.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class NothingToWaitFor(Exception):
    """Every task waits, and no timer is set."""


class VirtualSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingToWaitFor
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """No sockets, no threads."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        self.complaints: list[dict[str, Any]] = []
        super().__init__(self._virtual)
        self.set_exception_handler(lambda _, context: self.complaints.append(context))

    def time(self) -> float:
        return self._virtual.now


def simulated(body: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a test of a coroutine: runs it on a virtual loop, and checks that it leaves no task and no complaint."""

    @functools.wraps(body)
    def test(*args: Any, **arguments: Any) -> None:
        simulate(body(*args, **arguments))

    return test


def simulate(body: Coroutine[Any, Any, None]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(body)
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        assert not left, f"tasks left behind: {left}"
        loop.run_until_complete(asyncio.sleep(0))  # callbacks that were scheduled last
        assert not loop.complaints, loop.complaints
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
