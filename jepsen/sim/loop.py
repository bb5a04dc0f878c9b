"""An event loop whose time passes only while everybody waits, and whose callbacks belong to simulated processes.

Invariant: time never goes back, and jumps exactly to the next timer; timers of the same instant run in the order in
    which they were set. So a run depends on nothing but what its callbacks do.
Invariant: what waits for something that can't happen any more fails at once (NothingToWaitFor) instead of hanging.
Invariant: a callback, timer or task belongs to the process in whose context it was made. While that process is paused
    or dead none of them runs; resumed, they run in the order in which they were due.
Invariant: tasks are hashed by their number, so that a set of tasks has the same order in every run.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

TURNS_AN_INSTANT_MAX = 1_000_000
END_SECONDS_MAX = 60.0
_OWNER: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class NothingToWaitFor(Exception):
    """Every task waits, and no timer is set."""


class Process:
    """Whom callbacks belong to. What is called by `run`, and all that follows from it, is the process's."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.paused = False
        self.dead = False
        self.held: deque[asyncio.Handle] = deque()  # while it does not run
        self.context = contextvars.copy_context()
        self.context.run(_OWNER.set, self)
        self._loop = loop

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it now, as a part of the process, wherever this is called from."""
        return self.context.copy().run(function, *arguments)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self._loop.create_task(work, name=name, context=self.context.copy())

    def pause(self) -> None:
        if not self.dead:
            self.paused = True
            self._loop.watched[self] = None

    def resume(self) -> None:
        if self.paused and not self.dead:
            self.paused = False
            del self._loop.watched[self]
            self._loop.take_back(self.held)

    def kill(self) -> None:
        """Not one of its callbacks runs any more. They are kept until the loop is closed: what is freed runs `finally`
        clauses, at a moment that the collector chooses."""
        self.dead = True
        self._loop.watched[self] = None


class NumberedTask(asyncio.Task[Any]):
    """See the module."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, **arguments: Any) -> None:
        self._number = number  # before anything puts the task into a set
        super().__init__(coroutine, **arguments)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """No sockets, no threads: what is for a worker thread is done at once."""

    _ready: deque[asyncio.Handle]  # of the base class, which fills it
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self.complaints: list[dict[str, Any]] = []
        self.watched: dict[Process, None] = {}  # those that are paused or dead
        self._now = 1_000.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        self._tasks = 0
        self._turns = 0  # in this instant
        self._kept: list[asyncio.Task[Any]] = []
        self.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._now

    def _make_task(self, _: asyncio.AbstractEventLoop, work: Any, **arguments: Any) -> asyncio.Task[Any]:
        self._tasks += 1
        task = NumberedTask(work, self._tasks, loop=self, **arguments)
        if _OWNER.get() is not None or arguments:
            self._kept.append(task)
            if len(self._kept) > 1_000:
                self._kept = [one for one in self._kept if not one.done()]
        return task

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., Any], *arguments: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def take_back(self, handles: deque[asyncio.Handle]) -> None:
        self._ready.extend(handles)
        handles.clear()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""

    def _run_once(self) -> None:
        """A turn: what is due, and what was ready before."""
        ready, timers = self._ready, self._timers
        if ready:
            self._turns += 1
            assert self._turns < TURNS_AN_INSTANT_MAX, "callbacks follow each other without time passing"
        else:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if timers:
                self._now, self._turns = max(self._now, timers[0][0]), 0
            elif not self._stopping:
                raise NothingToWaitFor
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if self.watched:
                owner = handle._context.get(_OWNER)  # type: ignore[attr-defined]
                if owner in self.watched:
                    owner.held.append(handle)
                    continue
            handle._run()

    def end(self) -> None:
        """After the run: every task, of dead processes too, is cancelled and comes to its end; what they do and say
        on the way is of no interest any more."""
        for process in list(self.watched):
            process.paused = process.dead = False
            self.take_back(process.held)
        self.watched.clear()
        left = [task for task in asyncio.all_tasks(self) if not task.done()]
        for task in sorted(left, key=hash):
            task.cancel()
        if left:
            self.run_until_complete(asyncio.wait(left, timeout=END_SECONDS_MAX))
        self._kept.clear()
        self._timers.clear()
        self.close()


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
        loop.end()
