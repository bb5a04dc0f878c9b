"""Goal: the writer thread commits in order and in groups, tells the loop once a batch, and never stalls the loop long.

Method: commits that wait for the test, and a pacer whose slices are counted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from kvstore.storage.pace import SLICE_SECONDS, WAIT_SECONDS_MAX, Pacer
from kvstore.storage.writer import WriterThread


def fail(error: BaseException) -> None:
    raise AssertionError(error)


class Commits:
    """A commit that takes place when the test opens the gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Event()
        self.gate = threading.Semaphore(0)

    def __call__(self, jobs: Sequence[int]) -> None:
        self.begun.set()
        self.gate.acquire()
        self.batches.append(list(jobs))


def writer_of(commits: Commits, **options: object) -> WriterThread[int]:
    loop = asyncio.get_running_loop()
    return WriterThread("test", loop=loop, commit=commits, on_fatal=fail, **options)  # type: ignore[arg-type]


async def test_what_comes_during_a_commit_is_the_next_batch() -> None:
    commits, told = Commits(), list[int]()
    told_commits: list[int] = []
    writer = writer_of(commits, on_commit=lambda seconds, jobs: told_commits.append(jobs))
    writer.submit(0, lambda: told.append(0))
    await asyncio.to_thread(commits.begun.wait)
    for number in range(1, 100):
        writer.submit(number, lambda number=number: told.append(number))  # type: ignore[misc]
    assert told == []
    commits.gate.release()
    commits.gate.release()
    finished = asyncio.Event()
    commits.gate.release()
    writer.submit(100, finished.set)
    await finished.wait()
    assert commits.batches[0] == [0]
    assert [number for batch in commits.batches for number in batch] == list(range(101))
    assert len(commits.batches) <= 3
    assert told == list(range(100))
    assert told_commits == [len(batch) for batch in commits.batches]
    writer.close()


async def test_close_waits_for_what_is_queued_and_runs_errands() -> None:
    """The thread may need the loop's thread (to let the map grow) while that waits in close."""
    done: list[int] = []
    asked: list[str] = []

    def commit(jobs: Sequence[int]) -> None:
        writer.on_loop(lambda: asked.append(threading.current_thread().name))
        done.extend(jobs)

    writer: WriterThread[int] = WriterThread("test", loop=asyncio.get_running_loop(), commit=commit, on_fatal=fail)
    for number in range(10):
        writer.submit(number, lambda: done.append(-1))
    writer.close()
    writer.close()
    await asyncio.sleep(0)
    assert done == list(range(10))
    assert set(asked) == {threading.current_thread().name}


async def test_idle_work_gives_way_to_jobs() -> None:
    commits, left = Commits(), [1_000_000_000]

    def idle() -> bool:
        left[0] -= 1
        time.sleep(0.0001)
        return left[0] > 0

    writer = writer_of(commits, idle=idle)
    finished = asyncio.Event()
    commits.gate.release()
    writer.submit(1, finished.set)
    await asyncio.wait_for(finished.wait(), 5)
    writer.close()


async def test_a_paced_work_leaves_the_loop_its_time() -> None:
    """0.1 s of work beside a loop: never a long stall, and the loop keeps about half of the time."""
    pacer = Pacer(asyncio.get_running_loop())
    finished = threading.Event()

    def work() -> None:
        pacer.start()
        worked = 0.0
        while worked < 0.1:
            begun = time.perf_counter()
            while time.perf_counter() < begun + 0.0001:
                pass
            worked += 0.0001
            pacer.checkpoint()
        pacer.stop()
        finished.set()

    thread = threading.Thread(target=work)
    thread.start()
    ticks = 0
    while not finished.is_set():
        await asyncio.sleep(0)
        ticks += 1
    thread.join()
    assert ticks > 0.1 / SLICE_SECONDS  # at least once between two slices


async def test_a_slice_that_is_held_up_does_not_hold_the_loop() -> None:
    pacer = Pacer(asyncio.get_running_loop())
    go_on = threading.Event()

    def work() -> None:
        pacer.start()
        go_on.wait()  # the disk takes its time
        pacer.checkpoint()
        pacer.stop()

    thread = threading.Thread(target=work)
    thread.start()
    begun = time.perf_counter()
    for _ in range(20):
        await asyncio.sleep(0.001)
    # One wait for the slice, not one a turn; generous, since the machine may be busy.
    assert time.perf_counter() - begun < 0.02 + WAIT_SECONDS_MAX + 1.0
    go_on.set()
    await asyncio.to_thread(thread.join)


async def test_a_released_pacer_asks_nobody() -> None:
    pacer = Pacer(asyncio.get_running_loop())
    waiting = threading.Event()

    def work() -> None:
        waiting.set()
        pacer.start()
        for _ in range(1_000):
            pacer.checkpoint()
            time.sleep(0.00001)
        pacer.stop()

    thread = threading.Thread(target=work)
    thread.start()
    waiting.wait()
    pacer.release()
    thread.join(10)  # the loop does not run meanwhile
    assert not thread.is_alive()
