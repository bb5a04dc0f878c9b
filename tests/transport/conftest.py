"""No test with connections may leave a task or a socket behind; its module asks for `nothing_left_behind`.

Tests of real connections run on both loops that the transport must work on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

ON_BOTH_LOOPS = ("test_conformance", "test_peer_link", "test_snapshot_stream")


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The node's own loop (uvloop) and the standard one."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in ON_BOTH_LOOPS:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture
async def nothing_left_behind() -> AsyncIterator[None]:
    """Also turns whatever reaches the loop's exception handler into a failure of the test."""
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(
        lambda _, context: complaints.append(f"{context['message']}: {context.get('exception')!r}")
    )
    before = asyncio.all_tasks()
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]
    assert not left
    assert not complaints
