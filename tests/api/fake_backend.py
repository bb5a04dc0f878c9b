"""A router and an admin without a cluster: one dict with revisions, cut into shards wherever a test says so.

It keeps the promises of router/protocol.py (reply exactly once, on the loop) and the rules of base/operations.py, in
the plainest way, so that it serves as an oracle too. What a test wants to go wrong it sets: `refuse`, `hold`, `fail`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvstore.base.errors import ERRORS, Code, KVError, NotFound, Overloaded, StaleRoute, Unavailable
from kvstore.base.limits import Limits
from kvstore.base.operations import (
    Batch,
    BatchDone,
    Cas,
    Delete,
    DeleteRange,
    Failure,
    Found,
    Get,
    Item,
    Mismatch,
    Mutation,
    Page,
    Put,
    RangeDeleted,
    ReadOperation,
    Result,
    Scan,
    decode_mutations,
    decode_reads,
)
from kvstore.base.shards import Route
from kvstore.base.stream import Mutate, Read, Refused, Results, Routes
from kvstore.placement.wishes import check_name, checked_setting
from kvstore.router.protocol import ReplyTo

STAMP_MS = 1_700_000_000_000
STALE = Failure(int(Code.STALE_ROUTE), "the range has changed")


class DictShards:
    """The state: revisions as the store counts them, and answers remembered by (session, seq)."""

    def __init__(self, cuts: Sequence[bytes] = ()) -> None:
        self.data: dict[bytes, Found] = {}
        self.revision = 0
        self.answers: dict[tuple[bytes, int], Result] = {}
        self.bounds: list[tuple[bytes, bytes]] = []
        self.version = 0
        self.cut(cuts)

    def cut(self, cuts: Sequence[bytes]) -> None:
        """Shards [b"", cuts[0]), [cuts[0], cuts[1]), ..."""
        edges = [b"", *cuts, b""]
        self.version += 1
        self.bounds = list(itertools.pairwise(edges))

    def shard_of(self, key: bytes) -> int:
        return next(i for i, (start, end) in enumerate(self.bounds) if start <= key and (not end or key < end))

    def inside(self, start: bytes, end: bytes) -> bool:
        """Whether the range lies in the shard of its start; an end of b"" is the shard's end."""
        shard_end = self.bounds[self.shard_of(start)][1]
        return not end or not shard_end or end <= shard_end

    def mutate(self, operation: Mutation, session: bytes) -> Result:
        known = self.answers.get((session, operation.seq)) if session else None
        if known is not None:
            return known
        result = self._mutate(operation)
        if session and result is not STALE:
            self.answers[session, operation.seq] = result
        return result

    def _mutate(self, operation: Mutation) -> Result:
        if isinstance(operation, Batch):
            return self._batch(operation)
        if isinstance(operation, DeleteRange):
            return self._delete_range(operation)
        if not self._holds(operation):
            return Mismatch(0, self.data.get(operation.key))
        return self._change(operation, self.revision + 1)

    def _holds(self, operation: Put | Delete | Cas | Get) -> bool:
        if not isinstance(operation, Cas):
            return True
        current = self.data.get(operation.key)
        if operation.revision is not None:
            return (current.mod_revision if current else 0) == operation.revision
        return current is not None and current.value == operation.expected

    def _change(self, operation: Put | Delete | Cas, revision: int) -> int:
        """Returns the revision, 0 when nothing changed."""
        value = None if isinstance(operation, Delete) else operation.value
        old = self.data.get(operation.key)
        if value is None:
            if old is None:
                return 0
            del self.data[operation.key]
        else:
            self.data[operation.key] = Found(
                value, revision, old.create_revision if old else revision, old.version + 1 if old else 1
            )
        self.revision = revision
        return revision

    def _batch(self, batch: Batch) -> Result:
        for index, one in enumerate(batch.operations):
            if not self._holds(one):
                return Mismatch(index, self.data.get(one.key))
        gets = [self.data.get(one.key) for one in batch.operations]
        revision = self.revision + 1
        results: list[int | Found | None] = [
            found if isinstance(one, Get) else self._change(one, revision)
            for one, found in zip(batch.operations, gets, strict=True)
        ]
        return BatchDone(revision if self.revision == revision else 0, results)

    def _delete_range(self, operation: DeleteRange) -> Result:
        if not self.inside(operation.start, operation.end):
            return STALE
        keys = self.keys(operation.start, operation.end)
        gone, rest = keys[: operation.limit], keys[operation.limit :]
        for key in gone:
            del self.data[key]
        if gone:
            self.revision += 1
        return RangeDeleted(len(gone), self.revision if gone else 0, rest[0] if rest else None)

    def keys(self, start: bytes, end: bytes) -> list[bytes]:
        stop = end or self.bounds[self.shard_of(start)][1]
        return [key for key in sorted(self.data) if start <= key and (not stop or key < stop)]

    def read(self, operation: ReadOperation) -> Result:
        if isinstance(operation, Get):
            return self.data.get(operation.key)
        if not self.inside(operation.start, operation.end):
            return STALE
        return self._scan(operation)

    def _scan(self, scan: Scan) -> Page:
        keys = self.keys(scan.start, scan.end)
        if scan.reverse:
            keys.reverse()
        items: list[Item] = []
        size = 0
        for key in keys:
            if len(items) == scan.limit or size >= scan.bytes_max:
                cursor = items[-1].key if scan.reverse else key
                return Page(items, cursor, self.revision)
            found = self.data[key]
            items.append(Item(key, found.value, found.mod_revision, found.create_revision, found.version))
            size += len(key) + len(found.value)
        return Page(items, None, self.revision)


class FakeRouter:
    """Fulfils `router.protocol.Router`."""

    def __init__(self, *, limits: Limits | None = None, cuts: Sequence[bytes] = ()) -> None:
        self.limits = limits or Limits()
        self.state = DictShards(cuts)
        self.known = (self.state.version, self.state.bounds)  # what the routes say; may be older than the truth
        self.on_call: Callable[[], None] = lambda: None  # when an operation arrives
        self.refuse: Callable[[Mutate | Read], Refused | None] = lambda frame: None
        self.fail: BaseException | None = None  # raised by execute and query
        self.hold = False  # stream requests wait for `release`
        self.held: list[Callable[[], None]] = []
        self.frames: list[Mutate | Read] = []
        self.calls: list[dict[str, Any]] = []
        self.age_ms = 7
        self.routes_version = 3
        self.watches: list[Callable[[], None]] = []
        self.waited: list[tuple[int, float]] = []  # (version, seconds) of each
        self.watches_refused = False
        self.watched = asyncio.Event()  # set with the first that waits
        self.wait_seconds_max = 0.05

    # -- the stream's way

    def mutate(self, frame: Mutate, reply: ReplyTo) -> None:
        self.frames.append(frame)
        refused = self.refuse(frame)
        if refused is not None:
            reply(refused)
            return
        try:
            operations = decode_mutations(frame.operations, self.limits)
        except KVError as error:
            reply(Refused(frame.id, STAMP_MS, error.code, error.message, error.definite, error.retry_after_ms))
            return
        self._later(
            lambda: reply(Results(frame.id, STAMP_MS, [self.state.mutate(one, frame.session) for one in operations]))
        )

    def read(self, frame: Read, reply: ReplyTo) -> None:
        self.frames.append(frame)
        refused = self.refuse(frame)
        if refused is not None:
            reply(refused)
            return
        try:
            operations = decode_reads(frame.operations, self.limits)
        except KVError as error:
            reply(Refused(frame.id, STAMP_MS, error.code, error.message, error.definite, error.retry_after_ms))
            return
        self._later(lambda: reply(Results(frame.id, STAMP_MS, [self.state.read(one) for one in operations])))

    def _later(self, answer: Callable[[], None]) -> None:
        if self.hold:
            self.held.append(answer)
        else:
            asyncio.get_running_loop().call_soon(answer)

    def release(self) -> None:
        """Answer what was held, and hold no longer."""
        self.hold = False
        held, self.held = self.held, []
        for answer in held:
            answer()

    # -- REST's way

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
        self._call(keyspace, operations, timeout_ms=timeout_ms, session=session, low=low, issued_at=issued_at)
        return self._moved([self.state.mutate(one, session) for one in operations])

    async def query(
        self,
        keyspace: str,
        operations: Sequence[ReadOperation],
        *,
        timeout_ms: int,
        max_staleness_ms: int = -1,
    ) -> tuple[list[Result], int, int]:
        self._call(keyspace, operations, timeout_ms=timeout_ms, max_staleness_ms=max_staleness_ms)
        results = self._moved([self.state.read(one) for one in operations])
        return (results, 0, 0) if max_staleness_ms < 0 else (results, 42, self.age_ms)

    def _call(self, keyspace: str, operations: Sequence[Any], **rest: Any) -> None:
        self.calls.append({"keyspace": keyspace, "operations": operations, **rest})
        self.on_call()
        self.known = (self.state.version, self.state.bounds)  # who asks with an old version is taught the new one
        if self.fail is not None:
            raise self.fail
        if keyspace != "default":
            raise NotFound(f"there is no keyspace {keyspace!r}")

    def _moved(self, results: list[Result]) -> list[Result]:
        """As the real router: a stale route has been followed, and what is stale still is told."""
        if results == [STALE]:
            raise StaleRoute
        return results

    # -- what there is

    def routes(self) -> tuple[int, dict[str, int], list[Route]]:
        version, bounds = self.known
        routes = [
            Route(2 + i, 1, start, end, version, 1, 5, "n1", "127.0.0.1:7001", (("n1", "127.0.0.1:7001", 1),))
            for i, (start, end) in enumerate(bounds)
        ]
        return self.routes_version, {"default": 1}, routes

    def routing(self, since: int = 0) -> Routes:
        version, keyspaces, routes = self.routes()
        nodes = (("n1", "127.0.0.1:7001"), ("n2", "127.0.0.1:7002"))
        if since == version:
            return Routes(0, version, keyspaces, [], whole=False)
        return Routes(0, version, keyspaces, routes, nodes)

    def change_routes(self) -> None:
        """Another version; whoever waits hears of it."""
        self.routes_version += 1
        self.end_watches()

    def watch_routes(self, version: int, wake: Callable[[], None], *, seconds: float) -> Callable[[], None]:
        if self.watches_refused:
            raise Overloaded
        self.waited.append((version, seconds))
        self.watches.append(wake)
        self.watched.set()
        return lambda: self.watches.remove(wake) if wake in self.watches else None

    async def wait_routes(self, version: int, seconds: float) -> None:
        if version == self.routes_version:
            changed = asyncio.get_running_loop().create_future()
            cancel = self.watch_routes(version, lambda: changed.set_result(None), seconds=seconds)
            await asyncio.wait((changed,), timeout=min(seconds, self.wait_seconds_max))
            cancel()

    def end_watches(self) -> None:
        watches, self.watches = self.watches, []
        for wake in watches:
            wake()

    def stamp_ms(self) -> int:
        return STAMP_MS


OPERATOR = {
    "id": 1,
    "kind": "repair",
    "shard": 2,
    "reason": "2 of 3 replicas",
    "state": "running",
    "error": "",
    "age_seconds": 1.5,
    "seconds": 1.5,
    "steps": [{"kind": "add learner", "node": "n3", "done": False}],
    "history": [{"seconds": 0.0, "event": "begun"}],
}


class FakePlacement:
    """Fulfils `router.protocol.Placement`, for the members and the calls of a FakeAdmin."""

    def __init__(self, admin: FakeAdmin) -> None:
        self._admin = admin

    async def drain(self, name: str) -> dict[str, Any]:
        self._admin.calls.append(("drain", name))
        return await self.drain_progress(name)

    async def undrain(self, name: str) -> dict[str, Any]:
        self._admin.require_member(name)
        self._admin.calls.append(("undrain", name))
        return {"draining": None}

    async def drain_progress(self, name: str) -> dict[str, Any]:
        self._admin.require_member(name)
        counts = {"leaders": 1, "replicas": 2, "bytes": 3, "moving": 0}
        blocked = [{"shard": 2, "reason": "no other node"}]
        flags = {"draining": True, "ready": True, "done": False}
        return {"node": name, "seconds_left": None, "blocked": blocked, **counts, **flags}

    async def settings(self) -> dict[str, Any]:
        return {"settings": [{"name": "rebalance", "value": True, "default": True, "changed": False}]}

    async def set_settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in changes.items():
            check_name(name)
            if value is not None:
                checked_setting(name, value)
        self._admin.calls.append(("set_settings", dict(changes)))
        return await self.settings()

    async def cancel_operator(self, operator: int) -> dict[str, Any]:
        if operator != 1:
            raise NotFound(f"no operator {operator} is running")
        self._admin.calls.append(("cancel_operator", operator))
        return OPERATOR


class FakeAdmin:
    """Fulfils `router.protocol.Admin`; remembers what it was asked for."""

    def __init__(self) -> None:
        self.placement = FakePlacement(self)
        self.is_ready = True
        self.calls: list[tuple[Any, ...]] = []
        self.known_members = {"n1", "n2"}
        self.known_shards = {2}

    def status(self) -> dict[str, Any]:
        return {"name": "n1", "cluster_id": "c0ffee", "shards": []}

    async def members(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "node_id": f"{number:032x}",
                "address": f"127.0.0.1:{7_000 + number}",
                "state": "alive" if number == 1 else "dead",
                "incarnation": 1_000_000 if number == 1 else None,
                "labels": {"zone": "a"},
                "version": "0.1.0",
                "round_trip_ms": 0.25 if number == 1 else None,
                "state_age_ms": 1_234 if number == 1 else None,
                "heard_age_ms": 17 if number == 1 else None,
            }
            for number, name in enumerate(sorted(self.known_members), 1)
        ]

    def shards(self) -> list[dict[str, Any]]:
        return [{"id": 2, "keyspace": "default", "replicas": [{"node": "n1", "role": "voter"}]}]

    async def operators(self) -> list[dict[str, Any]]:
        return [OPERATOR]

    async def join(self, *, name: str, node_id: str, address: str, labels: dict[str, str]) -> dict[str, Any]:
        return self._done("join", name, node_id, address, labels)

    async def remove_node(self, name: str) -> dict[str, Any]:
        self.require_member(name)
        return self._done("remove_node", name)

    async def add_replica(self, shard: int, node: str) -> dict[str, Any]:
        return self._on_shard("add_replica", shard, node)

    async def remove_replica(self, shard: int, node: str) -> dict[str, Any]:
        return self._on_shard("remove_replica", shard, node)

    async def transfer(self, shard: int, node: str) -> dict[str, Any]:
        return self._on_shard("transfer", shard, node)

    async def split(self, shard: int, key: bytes | None) -> dict[str, Any]:
        if shard not in self.known_shards:
            raise NotFound(f"there is no shard {shard}")
        self.calls.append(("split", shard, key))
        return {"shard": shard, "child": 9, "at": "m", "at_base64": "bQ=="}

    async def ready(self) -> dict[str, Any]:
        if not self.is_ready:
            raise Unavailable("no quorum")
        return {"ready": True}

    def _on_shard(self, what: str, shard: int, node: str) -> dict[str, Any]:
        if shard not in self.known_shards:
            raise NotFound(f"there is no shard {shard}")
        self.require_member(node)
        return self._done(what, shard, node)

    def require_member(self, name: str) -> None:
        if name not in self.known_members:
            raise NotFound(f"there is no member {name[:64]!r}")

    def _done(self, *call: Any) -> dict[str, Any]:
        self.calls.append(call)
        return {"done": call[0]}


def refusal(code: Code, **fields: Any) -> Callable[[Mutate | Read], Refused]:
    """For `FakeRouter.refuse`: everything is refused so."""

    def refuse(frame: Mutate | Read) -> Refused:
        error = ERRORS[code]()
        return Refused(frame.id, STAMP_MS, code, error.message, error.definite, error.retry_after_ms, **fields)

    return refuse
