"""Splitting a shard on request: from any node, to the shard's leader, with an id from the meta group's.

Invariant: an id is asked for only when all that can be refused before has been looked at: ids are not many, but free.
Called by: router/admin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from kvstore.base.errors import Invalid
from kvstore.base.ids import META_SHARD
from kvstore.base.operations import Mutation, Result
from kvstore.placement.shard_ids import take_next
from kvstore.placement.shard_split import ShardSplit, check_cut
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.replica import Replica

SPLIT_SECONDS_MAX = 60.0  # a large shard is walked through for its middle
META_SECONDS_MAX = 6.0


class NodeAccess(Protocol):
    """What `router.admin.NodeAdmin` lends."""

    async def at_leader(
        self, shard: int, operation: str, arguments: dict[str, Any], *, seconds: float
    ) -> dict[str, Any]: ...
    async def write_meta(self, operation: Mutation) -> Result: ...
    def led(self, shard: int) -> Replica: ...


class SplitAdmin:
    """See the module."""

    def __init__(self, host: HostDriver, node: NodeAccess) -> None:
        self._host = host
        self._node = node
        self.operations: Mapping[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "split": self._split_here,
            "new_shard_id": self._new_shard_id_here,
        }

    async def split(self, shard: int, key: bytes | None, version: int | None = None) -> dict[str, Any]:
        """At the user's key, or in the middle. shard, child (None: the cut was there already), at. Raises KVError."""
        if key is not None:
            check_cut(key)
        arguments = {"shard": shard, "key": None if key is None else key.hex(), "version": version}
        return await self._node.at_leader(shard, "split", arguments, seconds=SPLIT_SECONDS_MAX)

    async def _split_here(self, *, shard: int, key: str | None, version: int | None) -> dict[str, Any]:
        try:
            wanted = None if key is None else bytes.fromhex(key)
        except ValueError:
            raise Invalid("the key is not hexadecimal") from None
        done = await ShardSplit(self._host, shard, version=version).run(wanted, self._new_id)
        return {"shard": shard, "child": done.child or None, "key": done.key.hex()}

    async def _new_id(self) -> int:
        answer = await self._node.at_leader(META_SHARD, "new_shard_id", {}, seconds=META_SECONDS_MAX)
        return int(answer["shard"])

    async def _new_shard_id_here(self) -> dict[str, Any]:
        state = self._node.led(META_SHARD).state
        assert state is not None
        number, mutation = take_next(state)
        await self._node.write_meta(mutation)
        return {"shard": number}
