"""The asynchronous client.

    async with Client(["127.0.0.1:7001", "127.0.0.1:7002"]) as kv:
        await kv.put("a", "1")
        assert await kv.get("a") == b"1"

Calls that are made at the same time travel together; nothing need be batched by hand. An error says by `outcome`
whether the operation certainly had no effect ("failed") or may have had one ("unknown").

Invariant: a call returns or raises within its timeout, whatever the cluster does (delete_range, scan and the *_many
           calls: each of their steps).
Invariant: what the store would refuse for its size or form is refused here, before it can spoil a frame that others
           share.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from kvstore.base.errors import Conflict, Invalid, KVError, Unavailable
from kvstore.base.ids import DEFAULT_KEYSPACE_NAME
from kvstore.base.limits import DELETE_RANGE_KEYS_MAX, KEY_BYTES_MAX, MIB, SCAN_BYTES_MAX, SCAN_KEYS_MAX
from kvstore.base.operations import (
    BatchDone,
    Delete,
    DeleteRange,
    Found,
    Get,
    Item,
    Mismatch,
    Mutation,
    Page,
    Put,
    RangeDeleted,
    ReadOperation,
    Scan,
    check_key,
)
from kvstore.base.shards import Route
from kvstore.base.stream import LINEARIZABLE
from kvstore.client.answers import StaleRead, conflict_text, half_done, outcome_of, unexpected, value_of
from kvstore.client.batch import (
    BatchBuilder,
    BatchConflict,
    BatchOperation,
    check_cas,
    check_size,
    make_batch,
    make_cas,
)
from kvstore.client.connection import Connector, WebSocketConnector, parse_endpoints
from kvstore.client.dispatcher import Dispatcher, StaleAnswer
from kvstore.client.keys import Key, Pairs, Value, range_of, to_bytes
from kvstore.client.pending import MUTATION, DeleteSpan, KeySet, Pending, ScanSpan, Shape

TIMEOUT_SECONDS = 5.0
WAITING_MAX = 100_000  # operations of one client; past it calls raise Overloaded at once
MANY_WINDOW = 8_192  # operations of one get_many or put_many that wait at a time
MANY_BYTES = 32 * MIB
STALENESS_SECONDS = 10.0  # of read_mode "stale" when nothing else is said

ReadMode = Literal["linearizable", "stale"]


class Client:
    """A session with one keyspace of one cluster. To be used on one loop; any number of tasks may share it."""

    def __init__(
        self,
        endpoints: Sequence[str] | str,
        *,
        keyspace: str = DEFAULT_KEYSPACE_NAME,
        timeout: float = TIMEOUT_SECONDS,
        read_mode: ReadMode = "linearizable",
        max_staleness: float = STALENESS_SECONDS,
        waiting_max: int = WAITING_MAX,
        connector: Connector | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`endpoints`: HOST:PORT or http://HOST:PORT of some nodes, a list or one string with commas; the others are
        learned. `timeout`: seconds that one call may take, retries included. `max_staleness`: seconds, for read_mode
        "stale". `connector` and `rng` are for simulations. Raises ValueError."""
        if timeout <= 0 or max_staleness < 0 or waiting_max < 1:
            raise ValueError("timeout and waiting_max are positive, max_staleness is not negative")
        if read_mode not in ("linearizable", "stale"):
            raise ValueError(f"read_mode is linearizable or stale, not {read_mode!r}")
        self._endpoints = parse_endpoints(endpoints)
        self._keyspace = keyspace
        self._timeout = timeout
        self._read_mode_ms = LINEARIZABLE if read_mode == "linearizable" else int(max_staleness * 1000)
        self._waiting_max = waiting_max
        self._connector = connector
        self._rng = rng if rng is not None else random.SystemRandom()
        self._dispatcher: Dispatcher | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life
    async def open(self) -> Self:
        """Begin to connect, in the background; the first call waits for it. `async with` does the same."""
        if self._dispatcher is not None:
            raise RuntimeError("the client was opened before")
        self._loop = asyncio.get_running_loop()
        if self._connector is None:
            self._connector = WebSocketConnector()
        self._dispatcher = Dispatcher(
            self._endpoints,
            keyspace=self._keyspace,
            connector=self._connector,
            rng=self._rng,
            loop=self._loop,
            waiting_max=self._waiting_max,
            spawn=self._spawn,
        )
        self._dispatcher.refresh()
        return self

    async def close(self) -> None:
        """End what is under way (as failed or unknown, as the case may be) and close the connections."""
        dispatcher = self._dispatcher
        if dispatcher is None or self._connector is None:
            return
        if not dispatcher.closed:
            dispatcher.close(Unavailable("the client was closed"))
        for task in self._tasks:
            task.cancel()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            await self._connector.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- one key
    async def put(self, key: Key, value: Value, *, timeout: float | None = None) -> int:
        """Store the value; the revision of the change."""
        if type(key) is not bytes:
            key = to_bytes(key)
        if type(value) is not bytes:
            value = to_bytes(value)
        if not 0 < len(key) <= KEY_BYTES_MAX:
            check_key(key)
        dispatcher = self._running()
        if len(value) > dispatcher.value_bytes_max:
            check_size(value, dispatcher.value_bytes_max)
        result = await self._change(dispatcher, Put(0, key, value), key, timeout)
        if type(result) is int:
            return result
        raise unexpected(result)

    async def get(self, key: Key, *, max_staleness: float | None = None, timeout: float | None = None) -> bytes | None:
        """The value, or None. `max_staleness`: any replica may answer that is not older than these seconds."""
        if type(key) is not bytes:
            key = to_bytes(key)
        if max_staleness is None and self._read_mode_ms == LINEARIZABLE:
            if not 0 < len(key) <= KEY_BYTES_MAX:
                check_key(key)
            result = await self._get(self._running(), key, timeout)
        else:
            result = (await self._read_stale(key, max_staleness, timeout)).record
        if result is None:
            return None
        if type(result) is Found:
            return result.value
        raise unexpected(result)

    async def get_record(
        self, key: Key, *, max_staleness: float | None = None, timeout: float | None = None
    ) -> Found | None:
        """The value with its revisions, or None."""
        key = to_bytes(key)
        if max_staleness is not None or self._read_mode_ms != LINEARIZABLE:
            return (await self._read_stale(key, max_staleness, timeout)).record
        check_key(key)
        result = await self._get(self._running(), key, timeout)
        if result is None or type(result) is Found:
            return result
        raise unexpected(result)

    async def get_stale(
        self, key: Key, *, max_staleness: float = STALENESS_SECONDS, timeout: float | None = None
    ) -> StaleRead:
        """What some replica knows, with its applied index and age."""
        return await self._read_stale(to_bytes(key), max_staleness, timeout)

    async def delete(self, key: Key, *, timeout: float | None = None) -> bool:
        """Whether there was anything to delete."""
        key = to_bytes(key)
        check_key(key)
        result = await self._change(self._running(), Delete(0, key), key, timeout)
        if type(result) is int:
            return result > 0
        raise unexpected(result)

    async def cas(
        self,
        key: Key,
        value: Value | None,
        *,
        revision: int | None = None,
        expected: Value | None = None,
        absent: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Store the value (None = delete) if the key is at `revision`, or has the value `expected`, or is `absent`;
        the revision of the change. Raises Conflict with the current Found (or None) as `detail`."""
        operation = make_cas(key, value, revision=revision, expected=expected, absent=absent)
        check_key(operation.key)
        dispatcher = self._running()
        check_cas(operation, dispatcher.value_bytes_max)
        result = await self._change(dispatcher, operation, operation.key, timeout)
        if type(result) is int:
            return result
        if type(result) is Mismatch:
            raise Conflict(conflict_text(result), detail=result.current)
        raise unexpected(result)

    # -- several keys
    @overload
    def batch(self) -> BatchBuilder: ...
    @overload
    def batch(
        self, operations: Iterable[BatchOperation], *, timeout: float | None = None
    ) -> Coroutine[Any, Any, BatchDone]: ...
    def batch(
        self, operations: Iterable[BatchOperation] | None = None, *, timeout: float | None = None
    ) -> BatchBuilder | Coroutine[Any, Any, BatchDone]:
        """All or nothing, on keys of one shard. Without operations: a builder, whose `commit()` does it.
        Raises BatchConflict, Invalid when the keys lie in different shards."""
        if operations is None:
            return BatchBuilder(self.batch)
        return self._commit(operations, timeout)

    async def _commit(self, operations: Iterable[BatchOperation], timeout: float | None) -> BatchDone:
        dispatcher = self._running()
        batch = make_batch(
            operations,
            operations_max=dispatcher.batch_operations_max,
            value_bytes_max=dispatcher.value_bytes_max,
        )
        keys = [operation.key for operation in batch.operations]
        result = await self._submit(batch, keys[0], MUTATION, KeySet(keys), timeout)
        if type(result) is BatchDone:
            return result
        if type(result) is Mismatch:
            raise BatchConflict(conflict_text(result), index=result.index, detail=result.current)
        raise unexpected(result)

    async def get_many(
        self, keys: Iterable[Key], *, max_staleness: float | None = None, timeout: float | None = None
    ) -> list[bytes | KVError | None]:
        """One result a key, in their order: the value, None, or the error of that key. Not one snapshot."""
        mode = self._mode(max_staleness)

        def submit() -> Iterator[tuple[asyncio.Future[Any], int]]:
            for key in keys:
                data = to_bytes(key)
                yield self._submit_checked(Get(0, data), data, mode, timeout), 64

        results = await self._many(submit())
        return [value_of(result) for result in results]

    async def put_many(self, items: Pairs, *, timeout: float | None = None) -> list[int | KVError]:
        """Each put is on its own. One result an item, in their order: the revision, or the error of that item.
        The timeout is for each of them; the iterable is read as far as there is room for more."""
        pairs: Iterable[tuple[Key, Value]] = items.items() if isinstance(items, Mapping) else items

        def submit() -> Iterator[tuple[asyncio.Future[Any], int]]:
            for key, value in pairs:
                data, stored = to_bytes(key), to_bytes(value)
                yield self._submit_checked(Put(0, data, stored), data, MUTATION, timeout), len(stored)

        results = await self._many(submit())
        return [result if isinstance(result, (int, KVError)) else unexpected(result) for result in results]

    # -- ranges
    async def scan(
        self,
        *,
        prefix: Key | None = None,
        start: Key | None = None,
        end: Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        page_keys: int = SCAN_KEYS_MAX,
        page_bytes: int = SCAN_BYTES_MAX,
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Item]:
        """The items of [start, end) or with the prefix, in order, over all shards, read page by page. A page is
        consistent in itself; pages are not one snapshot. `timeout` is for each page."""
        first, last = range_of(prefix, start, end)
        left = limit
        while left is None or left > 0:
            page = await self.scan_page(
                start=first,
                end=last,
                limit=page_keys if left is None else min(page_keys, left),
                bytes_max=page_bytes,
                reverse=reverse,
                max_staleness=max_staleness,
                timeout=timeout,
            )
            for item in page.items:
                yield item
            if page.cursor is None:
                return
            if left is not None:
                left -= len(page.items)
            if reverse:
                last = page.cursor
            else:
                first = page.cursor

    async def scan_page(
        self,
        *,
        prefix: Key | None = None,
        start: Key | None = None,
        end: Key | None = None,
        limit: int = SCAN_KEYS_MAX,
        bytes_max: int = SCAN_BYTES_MAX,
        reverse: bool = False,
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Page:
        """One page, from one shard; it may be empty. `cursor` is the next `start` (in reverse: the next `end`), or
        None when the whole range has been read."""
        first, last = range_of(prefix, start, end)
        if not 0 < limit <= SCAN_KEYS_MAX or not 0 < bytes_max <= SCAN_BYTES_MAX:
            raise Invalid(f"a page has 1 to {SCAN_KEYS_MAX} keys and 1 to {SCAN_BYTES_MAX} bytes")
        span = ScanSpan(first, last, reverse=reverse)
        operation = Scan(0, first, last, limit, bytes_max, reverse)
        result = await self._submit(operation, first, self._mode(max_staleness), span, timeout)
        page = result.result if type(result) is StaleAnswer else result
        if type(page) is not Page:
            raise unexpected(page)
        rest = span.rest(page.cursor)
        cursor = None if rest is None else rest[1] if reverse else rest[0]
        if cursor is not None and cursor == (last if reverse else first):
            raise Unavailable("the node's page made no progress")
        return Page(page.items, cursor, page.revision)

    async def delete_range(
        self,
        start: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> int:
        """Delete all keys of [start, end) or with the prefix; how many there were. Done in steps of at most 1,000 keys
        of a shard, each atomic; `timeout` is for each step. When a later step fails, the error's outcome is unknown,
        and its `detail` is the number of keys deleted for certain."""
        if prefix is None and (start is None or end is None):
            raise Invalid('a delete-range needs prefix=, or start and end (b"" = no bound)')
        rest: tuple[bytes, bytes] | None = range_of(prefix, start, end)
        deleted = 0
        while rest is not None:
            span = DeleteSpan(*rest)
            operation = DeleteRange(0, *rest, DELETE_RANGE_KEYS_MAX)
            try:
                result = await self._submit(operation, rest[0], MUTATION, span, timeout)
                if type(result) is not RangeDeleted:
                    raise unexpected(result)
            except KVError as error:
                if deleted == 0:
                    raise
                raise half_done(error, deleted) from error
            deleted += result.deleted
            before, rest = rest, span.rest(result.cursor)
            if rest is not None and rest[0] <= before[0]:
                raise half_done(Unavailable("the node made no progress"), deleted)
        return deleted

    async def routes(self, *, timeout: float | None = None) -> list[Route]:
        """The keyspace's shards in key order, with their leaders, as some node knows them now."""
        return await self._running().fresh_routes(self._timeout if timeout is None else timeout)

    # -- submitting
    def _running(self) -> Dispatcher:
        dispatcher = self._dispatcher
        if dispatcher is None or dispatcher.closed:
            raise RuntimeError("the client is not open: use `async with Client(...)`")
        return dispatcher

    def _change(
        self, dispatcher: Dispatcher, operation: Mutation, key: bytes, timeout: float | None
    ) -> asyncio.Future[Any]:
        """The fast path of a mutation on one key, checked already."""
        dispatcher.admit()
        loop = self._loop
        future: asyncio.Future[Any] = loop.create_future()
        deadline = loop.time() + (self._timeout if timeout is None else timeout)
        batcher = dispatcher.batcher
        batcher.mutations.append(Pending(future, operation, key, deadline, MUTATION))
        if not batcher.scheduled:
            batcher.schedule()
        return future

    def _get(self, dispatcher: Dispatcher, key: bytes, timeout: float | None) -> asyncio.Future[Any]:
        """The fast path of a linearizable read of one key, checked already."""
        dispatcher.admit()
        loop = self._loop
        future: asyncio.Future[Any] = loop.create_future()
        deadline = loop.time() + (self._timeout if timeout is None else timeout)
        batcher = dispatcher.batcher
        batcher.gets.append(Pending(future, Get(0, key), key, deadline, LINEARIZABLE))
        if not batcher.scheduled:
            batcher.schedule()
        return future

    def _submit(
        self,
        operation: Mutation | ReadOperation,
        key: bytes,
        mode: int,
        shape: Shape | None,
        timeout: float | None,
    ) -> asyncio.Future[Any]:
        """The general way."""
        dispatcher = self._running()
        dispatcher.admit()
        future: asyncio.Future[Any] = self._loop.create_future()
        deadline = self._loop.time() + (self._timeout if timeout is None else timeout)
        dispatcher.batcher.others.append(Pending(future, operation, key, deadline, mode, shape))
        if not dispatcher.batcher.scheduled:
            dispatcher.batcher.schedule()
        return future

    def _submit_checked(
        self, operation: Put | Get, key: bytes, mode: int, timeout: float | None
    ) -> asyncio.Future[Any]:
        """For the *_many calls: what is refused here becomes the result of this one."""
        dispatcher = self._running()
        try:
            check_key(key)
            if type(operation) is Put:
                check_size(operation.value, dispatcher.value_bytes_max)
                return self._change(dispatcher, operation, key, timeout)
            if mode == LINEARIZABLE:
                return self._get(dispatcher, key, timeout)
            return self._submit(operation, key, mode, None, timeout)
        except KVError as error:
            future: asyncio.Future[Any] = self._loop.create_future()
            future.set_exception(error)
            return future

    async def _many(self, submitting: Iterator[tuple[asyncio.Future[Any], int]]) -> list[Any]:
        """Results, or errors in their places. A window of operations is kept under way."""
        under_way: deque[tuple[asyncio.Future[Any], int]] = deque()
        results: list[Any] = []
        size = 0
        window = max(1, min(MANY_WINDOW, self._waiting_max // 2))
        try:
            for future, size_one in submitting:
                under_way.append((future, size_one))
                size += size_one
                while len(under_way) >= window or size > MANY_BYTES:
                    size -= under_way[0][1]
                    results.append(await outcome_of(under_way[0][0]))
                    under_way.popleft()
            while under_way:
                results.append(await outcome_of(under_way[0][0]))
                under_way.popleft()
        finally:
            for future, _ in under_way:
                future.cancel()
        return results

    async def _read_stale(self, key: bytes, max_staleness: float | None, timeout: float | None) -> StaleRead:
        check_key(key)
        answer = await self._submit(Get(0, key), key, self._mode(max_staleness), None, timeout)
        if type(answer) is not StaleAnswer or not (answer.result is None or type(answer.result) is Found):
            raise unexpected(answer)
        return StaleRead(record=answer.result, applied_index=answer.applied, age_seconds=answer.age_ms / 1000)

    def _mode(self, max_staleness: float | None) -> int:
        if max_staleness is None:
            return self._read_mode_ms
        if max_staleness < 0:
            raise Invalid("max_staleness is not negative")
        return int(max_staleness * 1000)

    # -- tasks
    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A task ends by itself or by being cancelled. Anything else is our own error: no call may hang for it."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._loop.call_exception_handler({"message": "the client failed", "exception": error, "task": task})
        if self._dispatcher is not None and not self._dispatcher.closed:
            self._dispatcher.abandon(Unavailable(f"the client failed: {error!r}"))
