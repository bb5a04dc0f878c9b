from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storage.backends import Backend, LmdbBackend, MemoryBackend


@pytest.fixture(params=["lmdb", "memory"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """A disk of each kind; its stores are closed at the end."""
    loop = asyncio.get_running_loop()
    found: Backend = LmdbBackend(loop, tmp_path) if request.param == "lmdb" else MemoryBackend(loop)
    yield found
    found.close()
