"""One split of a shard, carried out at its leader: where to cut, the command, and the child's first leader.

Invariant: nothing here is needed for safety. The command names the epoch that it was made for; an attempt whose answer
           was lost is made again with another child id, and at most one of them is carried out.
Invariant: asked again for a cut that is there already, it says so and changes nothing.
Called by: router/split_admin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kvstore.base.errors import ERRORS, Code, Conflict, Invalid, KVError, NotLeader, Timeout
from kvstore.base.ids import SYSTEM_KEYSPACE
from kvstore.base.key_groups import is_legal_cut, nearest_cuts
from kvstore.base.limits import KEY_BYTES_MAX, KEYSPACE_PREFIX_BYTES
from kvstore.base.shards import ShardDescriptor, keyspace_prefix
from kvstore.base.stream import Refused, Results
from kvstore.placement.split_point import Cut, find_middle, measure_left
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.replica import Replica
from kvstore.state.command import Split

logger = logging.getLogger(__name__)

SPLIT_TIMEOUT_MS = 5_000
LED_SECONDS_MAX = 2.0  # for the child's leader, who is there within a few commits


@dataclass(frozen=True, slots=True)
class Done:
    """`child`: 0 when the shard ended at `key` already. `key` is the user's."""

    child: int
    key: bytes


class ShardSplit:
    """See the module. Raises NotLeader as soon as the shard is led elsewhere."""

    def __init__(self, host: HostDriver, shard: int, *, version: int | None = None) -> None:
        """`version`: of the epoch that the split was decided for; on another one it is refused. None = whatever."""
        self._host = host
        self._shard = shard
        self._version = version

    async def run(self, key: bytes | None, new_id: Callable[[], Awaitable[int]]) -> Done:
        """At the user's key, or in the middle. `new_id`: a shard id that nobody has used, asked for last."""
        descriptor = self._descriptor()
        if descriptor.keyspace == SYSTEM_KEYSPACE:
            raise Invalid("the shard of the cluster's own records is not split")
        if key is not None and keyspace_prefix(descriptor.keyspace) + key == descriptor.end:
            return Done(0, key)
        cut = await self._cut(descriptor, key)
        child = await new_id()
        await self._command(Split(descriptor.version, descriptor.conf, cut.key, child, cut.left_bytes))
        await self._led(child)
        return Done(child, cut.key[KEYSPACE_PREFIX_BYTES:])

    async def _cut(self, descriptor: ShardDescriptor, key: bytes | None) -> Cut:
        store = self._host.environment.state_store
        data_bytes = self._data_bytes()
        if key is None:
            splits = self._leader().splits
            try:
                middle = await find_middle(store, descriptor, data_bytes)
            except Invalid:
                splits.note_search(descriptor.version, found=False)
                raise
            splits.note_search(descriptor.version, found=True)
            return middle
        check_cut(key)
        full_key = keyspace_prefix(descriptor.keyspace) + key
        if not descriptor.start < full_key < descriptor.end:
            raise Invalid(f"the key {key!r} does not divide shard {self._shard} in two")
        return Cut(full_key, await measure_left(store, descriptor, full_key, data_bytes))

    async def _command(self, split: Split) -> None:
        future: asyncio.Future[Results | Refused] = asyncio.get_running_loop().create_future()
        replica = self._leader()
        request = replica.splits.stage(split, timeout_ms=SPLIT_TIMEOUT_MS, reply=future.set_result)
        if request is not None:
            self._host.track(request)
            self._host.mark(replica)
        answer = await future
        if isinstance(answer, Results):
            return
        if not answer.definite:
            raise Timeout(answer.message)
        if answer.code == Code.STALE_ROUTE:
            raise Conflict(f"shard {self._shard} has changed since the split was decided; look, and ask again")
        raise ERRORS[Code(answer.code)](answer.message)

    async def _led(self, child: int) -> None:
        """So that who has split a shard finds both halves at work. The child is there in any case."""

        def led() -> bool:
            replica = self._host.core.replicas.get(child)
            return replica is None or replica.leads is not None or bool(replica.leader_node)

        try:
            async with asyncio.timeout(LED_SECONDS_MAX):
                await self._host.until(led)
        except (TimeoutError, KVError):
            logger.warning("shard %d: child %d has no leader yet", self._shard, child)

    def _leader(self) -> Replica:
        replica = self._host.core.replicas.get(self._shard)
        if replica is None or not replica.is_leader or replica.state is None:
            raise NotLeader(f"this node does not lead shard {self._shard}")
        return replica

    def _descriptor(self) -> ShardDescriptor:
        state = self._leader().state
        assert state is not None
        if self._version is not None and state.descriptor.version != self._version:
            raise Conflict(f"shard {self._shard} has been split or merged since this was decided")
        return state.descriptor

    def _data_bytes(self) -> int:
        state = self._leader().state
        assert state is not None
        return state.data_bytes


def check_cut(key: bytes) -> None:
    """Raises Invalid for a user's key at which no shard may be split, with the nearest ones at which it may."""
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise Invalid(f"a shard is split at a key of 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")
    if not is_legal_cut(key):
        low, high = (_text(one) for one in nearest_cuts(key))
        raise Invalid(
            f"{_text(key)} lies inside the key group {low}, which stays in one shard; "
            f"the nearest keys to split at are {low} and {high}"
        )


def _text(key: bytes) -> str:
    return repr(key.decode("utf-8", "backslashreplace"))
