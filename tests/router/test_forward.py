"""Goal: requests carried to another node end with a clear error whatever happens to it or to this one."""

from __future__ import annotations

import msgspec
import pytest

from kvstore.base.errors import Unavailable
from kvstore.base.operations import Get, encode
from kvstore.base.stream import LINEARIZABLE, Read
from kvstore.router.forward import Forwarder


async def test_a_node_that_stops_says_so_to_requests_that_are_tried_again() -> None:
    """They outlive the forwarder for a moment, while the server waits for them."""
    forwarder = Forwarder()
    frame = Read(1, 2, 1, 1_000, LINEARIZABLE, msgspec.Raw(encode([Get(0, b"a")])))
    with pytest.raises(Unavailable, match="reached"):
        await forwarder.ask("127.0.0.1:1", frame)
    await forwarder.close()
    with pytest.raises(Unavailable, match="stops"):
        await forwarder.ask("127.0.0.1:1", frame)
