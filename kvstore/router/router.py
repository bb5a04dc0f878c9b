"""The router of a node: the stream's strict way to local replicas, and REST's way that finds and forwards.

Invariant: a write without a session is sent to a leader at most once after an attempt whose outcome is unknown.
Invariant: definite refusals that only say "elsewhere" or "not yet" are retried here within the caller's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from kvstore.base import operations as ops
from kvstore.base.errors import CODES, ERRORS, Code, Invalid, KVError, NotFound, Retry, StaleRoute, Timeout, Unavailable
from kvstore.base.ids import SYSTEM_KEYSPACE
from kvstore.base.operations import Batch, DeleteRange, Failure, Mutation, ReadOperation, Result, Scan
from kvstore.base.shards import Route
from kvstore.base.stream import Mutate, Read, Refused, Results, Routes
from kvstore.replica.environment import Environment
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.replica import Replica
from kvstore.replica.requests import ReplyTo, refusal
from kvstore.router.forward import Forwarder
from kvstore.router.shard_map import KEYSPACES, ShardMap

RETRY_SECONDS_MIN = 0.01
RETRY_SECONDS_MAX = 0.2


class ShardRouter:
    """Fulfils `router.protocol.Router`."""

    def __init__(self, host: HostDriver, environment: Environment, shard_map: ShardMap, forwarder: Forwarder) -> None:
        self._host = host
        self._environment = environment
        self._limits = environment.config.limits
        self._map = shard_map
        self._forwarder = forwarder
        environment.find_routes = self._find_routes

    # -- the stream's way ------------------------------------------------------------------------------------------

    def mutate(self, frame: Mutate, reply: ReplyTo) -> None:
        """Stage at the local replica or refuse."""
        replica = self._host.core.replicas.get(frame.shard)
        if replica is None or replica.state is None:
            reply(self._elsewhere(frame))
            return
        if replica.state.descriptor.keyspace == SYSTEM_KEYSPACE:
            reply(refusal(frame.id, Code.FORBIDDEN, "the system keyspace is the store's own"))
            return
        self.mutate_at(replica, frame, reply)

    def mutate_at(self, replica: Replica, frame: Mutate, reply: ReplyTo) -> None:
        """Stage at this replica, whatever its keyspace (the node's own records are in the system keyspace)."""
        try:
            operations = ops.decode_mutations(frame.operations, self._limits)
        except KVError as error:
            reply(refusal(frame.id, error.code, error.message))
            return
        request = replica.stage_write(frame, operations, reply)
        if request is not None:
            self._host.track(request)
            self._host.mark(replica)

    def read(self, frame: Read, reply: ReplyTo) -> None:
        """Read at the local replica or refuse."""
        replica = self._host.core.replicas.get(frame.shard)
        if replica is None or replica.state is None:
            reply(self._elsewhere(frame))
            return
        try:
            operations = ops.decode_reads(frame.operations, self._limits)
        except KVError as error:
            reply(refusal(frame.id, error.code, error.message))
            return
        request = replica.add_read(frame, operations, reply)
        if request is not None:
            self._host.track(request)
            self._host.mark(replica)

    def _find_routes(self, keyspace: int, keys: Sequence[bytes]) -> tuple[Route, ...]:
        """For a replica that refuses what it does not hold any more."""
        found: dict[int, Route] = {}
        for key in keys:
            route = self._map.find(keyspace, key)
            if route is not None:
                found[route.id] = route
        return tuple(found.values())

    def _elsewhere(self, frame: Mutate | Read) -> Refused:
        route = self._map.get(frame.shard)
        routes = () if route is None or route.keyspace == SYSTEM_KEYSPACE else (route,)
        return refusal(frame.id, Code.STALE_ROUTE, "no replica of that shard is here", routes=routes)

    # -- REST's way ------------------------------------------------------------------------------------------------

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
        """Mutations of one shard, at its leader. Raises KVError."""
        frame = Mutate(
            id=0,
            shard=0,
            version=0,
            timeout_ms=timeout_ms,
            session=session,
            low=low,
            issued_at=issued_at,
            operations=msgspec.Raw(ops.encode(list(operations))),
        )
        answer = await self._ask(keyspace, operations[0], frame)
        return answer.results

    async def query(
        self,
        keyspace: str,
        operations: Sequence[ReadOperation],
        *,
        timeout_ms: int,
        max_staleness_ms: int = -1,
    ) -> tuple[list[Result], int, int]:
        """Reads of one shard, at its leader, or here when they may be stale. Raises KVError."""
        frame = Read(
            id=0,
            shard=0,
            version=0,
            timeout_ms=timeout_ms,
            max_staleness_ms=max_staleness_ms,
            operations=msgspec.Raw(ops.encode(list(operations))),
        )
        answer = await self._ask(keyspace, operations[0], frame)
        return answer.results, answer.applied, answer.age_ms

    async def _ask(self, keyspace: str, first: Mutation | ReadOperation, frame: Mutate | Read) -> Results:
        """Find, send, follow: until there is an answer that another try would not change, or the time is over.

        A range that is no longer in one shard is the caller's to cut anew: StaleRoute, at once.
        """
        key = _first_key(first)
        number = KEYSPACES.get(keyspace)
        if number is None:
            raise NotFound(f"there is no keyspace {keyspace!r}")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + frame.timeout_ms / 1_000
        pause = RETRY_SECONDS_MIN
        unknown = False
        last: KVError = Unavailable("no leader is known")
        while (left := deadline - loop.time()) > 0:
            try:
                answer = await self._attempt(number, key, frame, timeout_ms=max(1, int(left * 1_000)))
                if not _moved(answer):
                    return answer
                raise StaleRoute
            except KVError as error:
                if error.code == Code.STALE_ROUTE and isinstance(first, Scan | DeleteRange):
                    raise
                if error.code == Code.STALE_ROUTE and isinstance(first, Batch):
                    error = self._parted(number, first) or error
                last = error
                unknown = unknown or not error.definite
                if not self._may_retry(error, frame):
                    break
            await asyncio.sleep(min(pause * self._environment.rng.uniform(0.5, 1.0), max(0.0, deadline - loop.time())))
            pause = min(2 * pause, RETRY_SECONDS_MAX)
        if unknown and last.definite:
            raise Timeout("an earlier attempt may have taken effect") from last
        if CODES[last.code].retry == Retry.REROUTE:  # of no use to a caller for whom this node has looked everywhere
            raise Unavailable(f"no leader was found in time: {last.message}") from last
        raise last

    def _parted(self, keyspace: int, batch: Batch) -> Invalid | None:
        """Why the batch can't be done at all, if its keys lie in different shards. (Its shard has been asked all the
        same: it may know an answer from before a split.)"""
        first = batch.operations[0].key
        for operation in batch.operations[1:]:
            if self._map.find(keyspace, operation.key) != self._map.find(keyspace, first):
                return Invalid(
                    f"a batch is atomic in one shard, but {first!r} and {operation.key!r} lie in different ones"
                )
        return None

    def _may_retry(self, error: KVError, frame: Mutate | Read) -> bool:
        if CODES[error.code].retry == Retry.NEVER or error.code in (Code.OVERLOADED, Code.DISK_FULL):
            return False
        return error.definite or isinstance(frame, Read) or bool(frame.session)

    async def _attempt(self, keyspace: int, key: bytes, frame: Mutate | Read, *, timeout_ms: int) -> Results:
        route = self._map.find(keyspace, key)
        if route is None:
            raise Unavailable("this node does not know the shard of the key yet")
        frame = msgspec.structs.replace(frame, shard=route.id, version=route.version, timeout_ms=timeout_ms)
        replica = self._host.core.replicas.get(route.id)
        stale = isinstance(frame, Read) and frame.max_staleness_ms >= 0
        usable = replica is not None and replica.state is not None and not replica.failed
        if usable and (stale or self._host.leads(route.id)):
            answer = await self._ask_here(frame)
        else:
            address = self._elsewhere_of(route, usable=usable)
            try:
                answer = await self._forwarder.ask(address, frame)
            except Unavailable:
                self._map.forget_leader(route.id, address)
                raise
        if isinstance(answer, Refused):
            self._map.learn(answer.routes)
            raise ERRORS[Code(answer.code)](
                answer.message,
                definite=answer.definite,
                retry_after_ms=answer.retry_after_ms,
                detail=answer.routes,
            )
        return answer

    def _elsewhere_of(self, route: Route, *, usable: bool) -> str:
        """Whom to forward to: the leader, or where this node can't hear of one, any replica, which will name it."""
        own = self._environment.config.advertise_address
        if route.address is not None and route.address != own:
            return route.address
        others = [] if usable else [address for _, address, _ in route.replicas if address != own]
        if not others:
            raise Unavailable("no leader is known")
        return self._environment.rng.choice(others)

    async def _ask_here(self, frame: Mutate | Read) -> Results | Refused:
        future: asyncio.Future[Results | Refused] = asyncio.get_running_loop().create_future()

        def reply(answer: Results | Refused) -> None:
            if not future.done():
                future.set_result(answer)

        if isinstance(frame, Mutate):
            self.mutate(frame, reply)
        else:
            self.read(frame, reply)
        return await future

    # -- what there is ---------------------------------------------------------------------------------------------

    def routes(self) -> tuple[int, dict[str, int], list[Route]]:
        routing = self._map.routing()
        return routing.version, dict(KEYSPACES), list(routing.routes)

    def route_of(self, shard: int) -> Route | None:
        """Of any shard, the meta group too."""
        return self._map.get(shard)

    def routing(self, since: int = 0) -> Routes:
        routing = self._map.routing(since)
        nodes = tuple([(node.name, node.address) for node in routing.nodes])
        return Routes(0, routing.version, dict(KEYSPACES), list(routing.routes), nodes, routing.whole)

    def watch_routes(self, version: int, wake: Callable[[], None], *, seconds: float) -> Callable[[], None]:
        return self._map.watch(version, wake, seconds=seconds)

    async def wait_routes(self, version: int, seconds: float) -> None:
        await self._map.wait_changed(version, seconds)

    def end_watches(self) -> None:
        self._map.close()

    def stamp_ms(self) -> int:
        """What an entry proposed now would be stamped with, by the shard here that is furthest."""
        stamps = [replica.stamp_now() for replica in self._host.core.replicas.values() if replica.state is not None]
        return max(stamps, default=0) or self._environment.clock.wall_ms()


def _first_key(operation: Mutation | ReadOperation) -> bytes:
    if isinstance(operation, Batch):
        return operation.operations[0].key if operation.operations else b""
    if isinstance(operation, Scan | DeleteRange):
        return operation.start
    return operation.key


def _moved(answer: Results) -> bool:
    """Whether every operation was refused because the shard's range changed under way: definite, so ask again."""
    return all(isinstance(one, Failure) and one.code == Code.STALE_ROUTE for one in answer.results)
