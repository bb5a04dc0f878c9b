"""What the tests of whole nodes share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kvstore.testing import LocalCluster


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
