"""The thread that owns a store's disk: takes everything queued, makes it durable, tells the loop once.

While the thread is in its commit (without the GIL), the loop queues the next batch: that is the group commit.

Invariant: jobs are committed in the order of their submission, and their `done`s run in that order, on the loop.
Invariant: a `done` runs only after the batch of its job has been committed.
Invariant: once `close` was called no `done` runs any more.
Invariant: after a failure nothing is committed and no `done` runs any more; `on_fatal` runs exactly once, on the loop.
           There is no second try: after a failed fsync the kernel may report success for pages that it has lost.
Called by: log_store, state_store.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from kvstore.storage.protocol import Done, OnFatal

Job = TypeVar("Job")
AnyJob = TypeVar("AnyJob", contravariant=True)
OnCommit = Callable[[float, int], None]
"""Told on the loop of every batch: seconds that its commit took, and how many jobs it had. For metrics."""

_CLOSE_POLL_SECONDS = 0.02


class Writer(Protocol[AnyJob]):
    """What a store needs of its writer; `memory` has another one."""

    @property
    def failed(self) -> bool: ...
    def submit(self, job: AnyJob, done: Done) -> None: ...
    def on_loop(self, action: Callable[[], None]) -> None: ...
    def close(self) -> None: ...


class WriterThread(Generic[Job]):
    """`commit` runs on the thread with everything queued; `idle`, if given, does leftover work between batches.

    `idle` returns whether there is more to do; it is only called while nothing is queued.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: asyncio.AbstractEventLoop,
        commit: Callable[[Sequence[Job]], None],
        on_fatal: OnFatal,
        idle: Callable[[], bool] | None = None,
        on_commit: OnCommit | None = None,
    ) -> None:
        self._loop = loop
        self._commit = commit
        self._on_fatal = on_fatal
        self._idle = idle
        self._on_commit = on_commit
        self._queue: SimpleQueue[tuple[Job, Done] | None] = SimpleQueue()
        self._failed = False  # written by the thread, read by the loop
        self._fatal_told = False
        self._closed = False
        self._errand: tuple[Callable[[], None], threading.Event] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # -- loop thread

    def submit(self, job: Job, done: Done) -> None:
        assert not self._closed, "work was submitted to a closed store"
        if not self._failed:
            self._queue.put((job, done))

    def close(self) -> None:
        """Finish what is queued and end the thread. Blocks; the errands of the thread are run meanwhile."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        while self._thread.is_alive():
            self._run_errand()
            self._thread.join(_CLOSE_POLL_SECONDS)

    @property
    def failed(self) -> bool:
        return self._failed

    def _run_errand(self) -> None:
        errand, self._errand = self._errand, None
        if errand is not None:
            action, finished = errand
            try:
                action()
            finally:
                finished.set()

    def _finish(self, seconds: float, dones: list[Done]) -> None:
        if self._closed:
            return  # the store's readers are gone; what was asked for is durable
        if self._on_commit is not None:
            self._on_commit(seconds, len(dones))
        for done in dones:
            done()

    def _fail(self, error: BaseException) -> None:
        if not self._fatal_told:
            self._fatal_told = True
            self._on_fatal(error)

    # -- the thread

    def on_loop(self, action: Callable[[], None]) -> None:
        """Called on the thread: run `action` on the loop's thread and wait for it (also while the store closes)."""
        finished = threading.Event()
        self._errand = (action, finished)
        self._tell(self._run_errand)
        finished.wait()

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The loop is closed: nobody is left who could be told. Durable is durable.
            pass

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # whatever it is, the disk's state is unknown from here on
            self._failed = True
            self._tell(self._fail, error)

    def _step(self) -> bool:
        """One batch; False when the thread is to end."""
        batch, ending = self._take()
        if batch:
            begun = time.perf_counter()
            self._commit([job for job, _ in batch])
            self._tell(self._finish, time.perf_counter() - begun, [done for _, done in batch])
        return not ending

    def _take(self) -> tuple[list[tuple[Job, Done]], bool]:
        """Everything queued, at least one; and whether the end was asked for behind it."""
        queue = self._queue
        while self._idle is not None and queue.empty() and self._idle():
            pass
        batch = []
        item = queue.get()
        try:
            while item is not None:
                batch.append(item)
                item = queue.get_nowait()
        except Empty:
            return batch, False
        return batch, True
