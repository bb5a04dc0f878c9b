"""Asks the nodes for the routes: one after the other until one knows them, and then one for what changes.

While the client is in use, one request waits on one node for a change (a second after the first operation, so that who
asks once and goes does not leave it there). When the node is lost, another one is asked.

Invariant: at most one round of asking is under way, and at most one request that waits.
Invariant: however often routes turn out to be wrong, rounds are REFRESH_PAUSE_SECONDS apart; answers to requests that
           wait are asked for LISTEN_PAUSE_SECONDS apart at least.
Invariant: a client that is not in use asks for nothing.
Called by: dispatcher.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from kvstore.base.errors import KVError
from kvstore.base.stream import Routes
from kvstore.client.link import Link
from kvstore.client.nodes import Nodes
from kvstore.client.retry import backoff_seconds

REFRESH_PAUSE_SECONDS = 0.05
ASK_SECONDS = 1.0  # for an answer to GetRoutes, beyond what it waits for
STAGGER_SECONDS = 0.25  # how long one node may take to connect before the next one is asked too
LISTEN_AFTER_SECONDS = 1.0  # from the first operation, or from the first one after a rest
LISTEN_SECONDS = 10.0  # one request waits; also how long a node that says nothing any more is listened to
LISTEN_PAUSE_SECONDS = 0.1
LISTEN_FAILED_SECONDS = 1.0  # after a node that does not let us wait


class RouteKeeper:
    def __init__(
        self,
        nodes: Nodes,
        *,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        learn: Callable[[Routes], bool],
    ) -> None:
        """`learn` says whether the answer was of use; if not, the next node is asked."""
        self._nodes = nodes
        self._loop = loop
        self._rng = rng
        self._spawn = spawn
        self._learn = learn
        self._task: asyncio.Task[None] | None = None
        self._learned_at = float("-inf")  # loop time
        self.used = False  # since the listener looked
        self._listener: asyncio.Task[None] | None = None
        self._listen_timer: asyncio.TimerHandle | None = None
        self._source: Link | None = None  # whose version it is
        self._version = 0
        self._shunned: Link | None = None  # the last one that did not let us wait

    def refresh(self) -> None:
        """Ask, unless that is under way."""
        if self._task is None:
            self._task = self._spawn(self._run())

    def on_use(self) -> None:
        """An operation was sent, the first one since `used` was reset."""
        self.used = True
        if self._listener is None and self._listen_timer is None:
            self._listen_timer = self._loop.call_later(LISTEN_AFTER_SECONDS, self._begin_to_listen)

    def close(self) -> None:
        """The owner cancels the tasks."""
        if self._listen_timer is not None:
            self._listen_timer.cancel()

    async def wait(self, seconds: float) -> bool:
        """Ask; whether an answer came within that time."""
        self.refresh()
        task = self._task
        assert task is not None
        await asyncio.wait((task,), timeout=seconds)
        return task.done() and not task.cancelled()

    # -- asking all

    async def _run(self) -> None:
        rounds = 0
        try:
            await asyncio.sleep(self._learned_at + REFRESH_PAUSE_SECONDS - self._loop.time())
            while True:
                for link in self._nodes.to_ask():
                    if await self._ask(link):
                        return
                rounds += 1
                await asyncio.sleep(backoff_seconds(min(rounds, 4), 0, self._rng))
        finally:
            self._task = None

    async def _ask(self, link: Link) -> bool:
        if not await link.wait_open(STAGGER_SECONDS):
            return False
        try:
            answer = await link.get_routes(ASK_SECONDS)
        except (KVError, TimeoutError):
            return False
        return self._take(link, answer)

    def _take(self, link: Link, answer: Routes) -> bool:
        if not self._learn(answer):
            return False
        self._learned_at = self._loop.time()
        self._source = link
        self._version = answer.version
        return True

    # -- listening to one

    def _begin_to_listen(self) -> None:
        self._listen_timer = None
        self._listener = self._spawn(self._listen())

    async def _listen(self) -> None:
        """As long as the client is in use."""
        try:
            while self.used:
                self.used = False
                await asyncio.sleep(max(LISTEN_PAUSE_SECONDS, await self._listen_once()))
        finally:
            self._listener = None

    async def _listen_once(self) -> float:
        """Seconds to wait before the next time."""
        link = self._to_listen_to()
        if link is None:
            self.refresh()
            return LISTEN_FAILED_SECONDS
        version = self._version if link is self._source else 0
        self._source = None  # until it has answered
        began = self._loop.time()
        try:
            answer = await link.get_routes(
                LISTEN_SECONDS + ASK_SECONDS, version=version, wait_ms=int(LISTEN_SECONDS * 1_000)
            )
        except TimeoutError:
            link.drop(f"no answer within {LISTEN_SECONDS + ASK_SECONDS:.0f} s")
            return 0.0
        except KVError as error:
            self._shunned = link
            return max(LISTEN_FAILED_SECONDS, error.retry_after_ms / 1_000) if link.is_open else 0.0
        if not self._take(link, answer):
            self._shunned = link
            return LISTEN_FAILED_SECONDS
        if answer.version == version and self._loop.time() < began + LISTEN_SECONDS / 2:
            self._shunned = link  # it stops, or is of a version that does not wait
            return LISTEN_FAILED_SECONDS
        return 0.0

    def _to_listen_to(self) -> Link | None:
        """The same one as before, if that can be; only who is connected."""
        links = [link for link in self._nodes.to_ask() if link.is_open]
        good = [link for link in links if link is not self._shunned] or links
        return self._source if self._source in good else next(iter(good), None)
