"""Long work of a writer thread in short slices, during which the loop stands still.

py-lmdb gives the GIL up at every put. Beside a busy loop each put then waits for the interpreter's switch interval:
200,000 puts took 15 s instead of 0.2 s. So the loop lends its time instead: it wakes the thread and waits, for
SLICE_SECONDS at most, until the slice is done; then it has at least as long for itself. The loop's longest stall is
WAIT_SECONDS_MAX, also when the slice is held up by the disk; the thread then goes on beside the loop, slowly.

Invariant: the loop never waits longer than WAIT_SECONDS_MAX for a slice.
Invariant: the thread never waits for a grant once `release` was called (the store closes).
Called by: state_store (thread and loop).
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Protocol

SLICE_SECONDS = 0.001
WAIT_SECONDS_MAX = 0.002
LOOP_SHARE = 0.5  # of the time while a long work lasts, the part that the loop keeps for itself

assert SLICE_SECONDS < WAIT_SECONDS_MAX


class Pace(Protocol):
    """What long work needs of its pacer; `memory` has one that does nothing."""

    released: bool

    def start(self) -> None: ...
    def checkpoint(self) -> None: ...
    def stop(self) -> None: ...
    def release(self) -> None: ...


class Pacer:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._granted = threading.Semaphore(0)
        self._slice_done = threading.Lock()  # held while a slice is under way
        self._slice_done.acquire()
        self._slice_ends = 0.0  # thread's; perf_counter seconds
        self.released = False  # True = the thread runs freely
        self._last_slice_seconds = 0.0  # loop's

    # -- the thread

    def start(self) -> None:
        """A long work begins: its first slice is waited for."""
        self._ask()

    def checkpoint(self) -> None:
        """Called every few tens of microseconds of work; returns at once, or after the next grant."""
        if time.perf_counter() >= self._slice_ends:
            self._end_slice()
            self._ask()

    def stop(self) -> None:
        """The long work is over, or goes on without the GIL (a commit)."""
        self._end_slice()

    def _end_slice(self) -> None:
        if self._slice_done.locked():
            self._slice_done.release()

    def _ask(self) -> None:
        if not self.released:
            try:
                self._loop.call_soon_threadsafe(self._on_ask)
            except RuntimeError:  # the loop is closed; nobody to be considerate of
                self.released = True
        if not self.released:
            self._granted.acquire()
        self._slice_ends = time.perf_counter() + SLICE_SECONDS

    # -- the loop

    def release(self) -> None:
        """From here on the thread runs freely: the loop is about to wait for its end."""
        self.released = True
        self._granted.release()

    def _on_ask(self) -> None:
        pause = self._last_slice_seconds * LOOP_SHARE / (1 - LOOP_SHARE)
        self._loop.call_later(pause, self._grant)

    def _grant(self) -> None:
        if self.released:
            return
        begun = time.perf_counter()
        if not self._slice_done.locked():
            self._slice_done.acquire()
        self._granted.release()
        # Ends when the thread releases the lock; taken again here, so that it is held before every slice.
        self._slice_done.acquire(timeout=WAIT_SECONDS_MAX)
        self._last_slice_seconds = time.perf_counter() - begun
