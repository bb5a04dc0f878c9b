"""What the API and the node's own parts ask of the router; `kvstore/router/router.py` fulfils it.

A request is one frame of `base.stream` for one shard (shard 0: the router finds the shard from the first key). It is
answered by one call of `reply`, on the loop, never from inside `submit`.. unless it is refused at once.

Invariant: `reply` is called exactly once, within the frame's timeout (bounded by DEADLINE_MS_MAX), whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from kvstore.base.operations import Mutation, ReadOperation, Result
from kvstore.base.shards import Route
from kvstore.base.stream import Mutate, Read, Refused, Results, Routes

ReplyTo = Callable[[Results | Refused], None]


class Router(Protocol):
    # -- the stream's way: strict, never forwards
    def mutate(self, frame: Mutate, reply: ReplyTo) -> None:
        """Stage at the local leader, or refuse (NOT_LEADER, STALE_ROUTE, OVERLOADED, ...)."""

    def read(self, frame: Read, reply: ReplyTo) -> None: ...

    # -- REST's way: finds the shard, forwards one hop, follows one stale route; raises KVError
    async def execute(
        self,
        keyspace: str,
        operations: Sequence[Mutation],
        *,
        timeout_ms: int,
        session: bytes = b"",
        low: int = 0,
        issued_at: int = 0,
    ) -> list[Result]:
        """All operations go to the shard of the first one's key."""

    async def query(
        self,
        keyspace: str,
        operations: Sequence[ReadOperation],
        *,
        timeout_ms: int,
        max_staleness_ms: int = -1,
    ) -> tuple[list[Result], int, int]:
        """(results, applied index, age in ms) ; the last two are 0 for linearizable reads."""

    # -- what there is
    def routes(self) -> tuple[int, dict[str, int], list[Route]]:
        """(version, keyspace names to numbers, routes of all shards in key order)."""

    def routing(self, since: int = 0) -> Routes:
        """The same with the nodes, as a frame without an id; or what has changed since a version of this node."""

    def watch_routes(self, version: int, wake: Callable[[], None], *, seconds: float) -> Callable[[], None]:
        """`wake` is called once: shortly after the version has become another one than this, after so long, or at the
        node's end. The result cancels it. Raises Overloaded."""

    async def wait_routes(self, version: int, seconds: float) -> None:
        """The same for a task."""

    def end_watches(self) -> None:
        """The node stops: nobody waits any more."""

    def stamp_ms(self) -> int:
        """What a client should count `issued_at` from."""


class Placement(Protocol):
    """What is asked of the placement driver, through any node; `router.placement_admin` fulfils it."""

    async def drain(self, name: str) -> dict[str, Any]:
        """Progress: replicas, leaders, bytes, blocked: [{shard, reason}], seconds_left, done, ...."""

    async def undrain(self, name: str) -> dict[str, Any]: ...
    async def drain_progress(self, name: str) -> dict[str, Any]: ...
    async def settings(self) -> dict[str, Any]:
        """settings: [{name, value, default, changed}]."""

    async def set_settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """As `settings`, afterwards. A value of None goes back to the default."""

    async def cancel_operator(self, operator: int) -> dict[str, Any]: ...


class Admin(Protocol):
    """What the administrative endpoints ask of the node. Each raises KVError; results are JSON-ready."""

    @property
    def placement(self) -> Placement: ...

    def status(self) -> dict[str, Any]:
        """This node: name, node id, cluster id, version, uptime, role per shard, disk, boot id, ..."""

    async def members(self) -> list[dict[str, Any]]:
        """name, node_id, address, state (alive, suspect, dead, left), incarnation, labels, version, round_trip_ms,
        state_age_ms, heard_age_ms: see placement/census."""

    def shards(self) -> list[dict[str, Any]]:
        """id, keyspace, start, end, epoch, leader, replicas: [{node, role}], approximate_bytes, ...."""

    async def operators(self) -> list[dict[str, Any]]:
        """The placement driver's plans under way and lately done, the newest first: id, kind, shard, reason, state,
        error, age_seconds, seconds, steps: [{kind, node, done}], history."""

    async def join(self, *, name: str, node_id: str, address: str, labels: dict[str, str]) -> dict[str, Any]: ...
    async def remove_node(self, name: str) -> dict[str, Any]: ...
    async def add_replica(self, shard: int, node: str) -> dict[str, Any]: ...
    async def remove_replica(self, shard: int, node: str) -> dict[str, Any]: ...
    async def transfer(self, shard: int, node: str) -> dict[str, Any]: ...
    async def split(self, shard: int, key: bytes | None) -> dict[str, Any]:
        """At the user's key, or in the middle: shard, child (None: it was cut there already), at, at_base64."""

    async def ready(self) -> dict[str, Any]:
        """Raises Unavailable unless this node can commit and read."""
