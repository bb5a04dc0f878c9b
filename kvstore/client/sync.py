"""The same client for programs without asyncio: a thread with a loop of its own, and calls that wait.

Calls from several threads travel together like those of several tasks.

Invariant: the loop's thread ends with `close()`; it is a daemon, so that a program that forgets it still ends.
Invariant: an interrupted call (Ctrl-C) is cancelled; a mutation may have taken effect nevertheless.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from kvstore.base.errors import KVError
from kvstore.base.ids import DEFAULT_KEYSPACE_NAME
from kvstore.base.limits import SCAN_BYTES_MAX, SCAN_KEYS_MAX
from kvstore.base.operations import BatchDone, Found, Item, Page
from kvstore.base.shards import Route
from kvstore.client.answers import StaleRead
from kvstore.client.batch import BatchOperation, BatchOperations
from kvstore.client.client import STALENESS_SECONDS, TIMEOUT_SECONDS, WAITING_MAX, Client, ReadMode
from kvstore.client.connection import Connector
from kvstore.client.keys import Key, Pairs, Value, range_of

T = TypeVar("T")


class SyncBatchBuilder(BatchOperations):
    """`kv.batch().put("a", "1").put("b", "2").commit()`"""

    def __init__(self, client: SyncClient) -> None:
        super().__init__()
        self._client = client

    def commit(self, *, timeout: float | None = None) -> BatchDone:
        """As BatchBuilder.commit."""
        return self._client.batch(self.operations, timeout=timeout)


class SyncClient:
    """As `Client`, method by method; what they mean is told there. May be used by any number of threads."""

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
    ) -> None:
        """Open at once; close with `close()` or use `with`."""
        self._client = Client(
            endpoints,
            keyspace=keyspace,
            timeout=timeout,
            read_mode=read_mode,
            max_staleness=max_staleness,
            waiting_max=waiting_max,
            connector=connector,
        )
        self._closed = False
        self._lock = threading.Lock()  # of _closed: two threads may close at once
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kvstore-client", daemon=True)
        self._thread.start()
        try:
            self._wait(self._client.open())
        except BaseException:
            self.close()
            raise

    # -- life
    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- one key
    def put(self, key: Key, value: Value, *, timeout: float | None = None) -> int:
        return self._wait(self._client.put(key, value, timeout=timeout))

    def get(self, key: Key, *, max_staleness: float | None = None, timeout: float | None = None) -> bytes | None:
        return self._wait(self._client.get(key, max_staleness=max_staleness, timeout=timeout))

    def get_record(self, key: Key, *, max_staleness: float | None = None, timeout: float | None = None) -> Found | None:
        return self._wait(self._client.get_record(key, max_staleness=max_staleness, timeout=timeout))

    def get_stale(
        self, key: Key, *, max_staleness: float = STALENESS_SECONDS, timeout: float | None = None
    ) -> StaleRead:
        return self._wait(self._client.get_stale(key, max_staleness=max_staleness, timeout=timeout))

    def delete(self, key: Key, *, timeout: float | None = None) -> bool:
        return self._wait(self._client.delete(key, timeout=timeout))

    def cas(
        self,
        key: Key,
        value: Value | None,
        *,
        revision: int | None = None,
        expected: Value | None = None,
        absent: bool = False,
        timeout: float | None = None,
    ) -> int:
        return self._wait(
            self._client.cas(key, value, revision=revision, expected=expected, absent=absent, timeout=timeout)
        )

    # -- several keys
    @overload
    def batch(self) -> SyncBatchBuilder: ...
    @overload
    def batch(self, operations: Iterable[BatchOperation], *, timeout: float | None = None) -> BatchDone: ...
    def batch(
        self, operations: Iterable[BatchOperation] | None = None, *, timeout: float | None = None
    ) -> SyncBatchBuilder | BatchDone:
        if operations is None:
            return SyncBatchBuilder(self)
        return self._wait(self._client.batch(operations, timeout=timeout))

    def get_many(
        self, keys: Iterable[Key], *, max_staleness: float | None = None, timeout: float | None = None
    ) -> list[bytes | KVError | None]:
        return self._wait(self._client.get_many(list(keys), max_staleness=max_staleness, timeout=timeout))

    def put_many(self, items: Pairs, *, timeout: float | None = None) -> list[int | KVError]:
        """The iterable is read on the client's thread."""
        return self._wait(self._client.put_many(items, timeout=timeout))

    # -- ranges
    def scan(
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
    ) -> Iterator[Item]:
        first, last = range_of(prefix, start, end)
        left = limit
        while left is None or left > 0:
            page = self.scan_page(
                start=first,
                end=last,
                limit=page_keys if left is None else min(page_keys, left),
                bytes_max=page_bytes,
                reverse=reverse,
                max_staleness=max_staleness,
                timeout=timeout,
            )
            yield from page.items
            if page.cursor is None:
                return
            if left is not None:
                left -= len(page.items)
            if reverse:
                last = page.cursor
            else:
                first = page.cursor

    def scan_page(
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
        return self._wait(
            self._client.scan_page(
                prefix=prefix,
                start=start,
                end=end,
                limit=limit,
                bytes_max=bytes_max,
                reverse=reverse,
                max_staleness=max_staleness,
                timeout=timeout,
            )
        )

    def delete_range(
        self,
        start: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> int:
        return self._wait(self._client.delete_range(start, end, prefix=prefix, timeout=timeout))

    def routes(self, *, timeout: float | None = None) -> list[Route]:
        return self._wait(self._client.routes(timeout=timeout))

    # -- the thread
    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of use when this thread was interrupted; otherwise it is done
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            leftover = asyncio.all_tasks(self._loop)
            for task in leftover:
                task.cancel()
            if leftover:
                self._loop.run_until_complete(asyncio.wait(leftover))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
