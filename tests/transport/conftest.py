"""No test with connections may leave a task or a socket behind; its module asks for `nothing_left_behind`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest


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
