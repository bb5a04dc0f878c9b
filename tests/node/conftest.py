"""What the tests of whole nodes share. They run on uvloop, as nodes do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from kvstore.testing import LocalCluster


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def cluster() -> AsyncIterator[LocalCluster]:
    """Three nodes."""
    async with LocalCluster(nodes=3) as running:
        yield running


@pytest.fixture
async def single() -> AsyncIterator[LocalCluster]:
    """A cluster of one."""
    async with LocalCluster(nodes=1) as running:
        yield running
