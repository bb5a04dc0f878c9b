"""A client of a fake cluster on the virtual loop."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kvstore.client import Client
from tests.client.fake_cluster import Cluster
from tests.client.fake_transport import MemoryConnector


@asynccontextmanager
async def client_of(
    cluster: Cluster, *, endpoints: tuple[str, ...] = ("n1", "n2", "n3"), seed: int = 1, **arguments: Any
) -> AsyncIterator[Client]:
    """`endpoints`: names of nodes."""
    connector = arguments.pop("connector", None) or MemoryConnector(cluster)
    addresses = [cluster.nodes[name].address for name in endpoints if name in cluster.nodes]
    kv = Client(addresses, connector=connector, rng=random.Random(seed), **arguments)
    try:
        async with kv:
            yield kv
    finally:
        assert connector.closed
        check_settled(kv)


def check_settled(kv: Client) -> None:
    """After closing nothing is counted as waiting, and every sequence number is accounted for."""
    dispatcher = kv._dispatcher
    assert dispatcher is not None
    assert dispatcher.waiting == 0
    assert all(block.remaining == 0 for block in dispatcher._session._blocks)
