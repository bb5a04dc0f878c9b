"""Asks the nodes for the routes, one node after the other, until one knows them.

Invariant: at most one round of asking is under way.
Invariant: however often routes turn out to be wrong, rounds are REFRESH_PAUSE_SECONDS apart.
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

REFRESH_SECONDS = 5.0  # while the client is in use, so that it hears of new nodes before all old ones are gone
REFRESH_PAUSE_SECONDS = 0.05
ASK_SECONDS = 1.0  # for an answer to GetRoutes
STAGGER_SECONDS = 0.25  # how long one node may take to connect before the next one is asked too


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

    def refresh(self) -> None:
        """Ask, unless that is under way."""
        if self._task is None:
            self._task = self._spawn(self._run())

    def refresh_if_old(self) -> None:
        if self._loop.time() - self._learned_at > REFRESH_SECONDS:
            self.refresh()

    async def wait(self, seconds: float) -> bool:
        """Ask; whether an answer came within that time."""
        self.refresh()
        task = self._task
        assert task is not None
        await asyncio.wait((task,), timeout=seconds)
        return task.done() and not task.cancelled()

    async def _run(self) -> None:
        rounds = 0
        try:
            await asyncio.sleep(self._learned_at + REFRESH_PAUSE_SECONDS - self._loop.time())
            while True:
                for link in self._nodes.to_ask():
                    if await self._ask(link):
                        self._learned_at = self._loop.time()
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
        return self._learn(answer)
