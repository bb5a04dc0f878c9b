"""The pytest plugin of this package: `kvstore_cluster`, a running cluster of three nodes for one test.

    async def test_my_service(kvstore_cluster):
        async with kvstore_cluster.client() as kv:
            ...

It costs nothing where it is not used: the store is imported by the fixture, not by the plugin. Asynchronous fixtures
need pytest-asyncio; without it the fixture says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvstore.testing import LocalCluster

try:
    import pytest_asyncio
except ModuleNotFoundError:

    @pytest.fixture(name="kvstore_cluster")
    def no_cluster() -> None:
        """Needs pytest-asyncio."""
        pytest.fail("kvstore_cluster is an asynchronous fixture: pip install pytest-asyncio")

else:

    @pytest_asyncio.fixture(name="kvstore_cluster")
    async def running_cluster() -> AsyncIterator[LocalCluster]:
        """A cluster of three nodes: production code, temporary folders, free ports of 127.0.0.1."""
        from kvstore.testing import LocalCluster

        async with LocalCluster(nodes=3) as cluster:
            yield cluster
