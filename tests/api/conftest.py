"""A real HTTP server on a free port in front of the fake backend, and a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import uvloop
from aiohttp import web
from yarl import URL

from kvstore.api.app import build_app
from kvstore.api.body import BodyReader
from kvstore.api.server import ApiRunner
from kvstore.base.limits import Limits
from kvstore.base.metrics import Metrics
from tests.api.fake_backend import FakeAdmin, FakeRouter


@dataclass
class Served:
    """One node's API with nothing behind it."""

    router: FakeRouter
    admin: FakeAdmin
    metrics: Metrics
    runner: ApiRunner
    port: int
    http: aiohttp.ClientSession
    bodies: BodyReader
    fatal: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def call(self, method: str, path: str, **options: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        """A request whose path goes out as written."""
        url = URL(self.url + path, encoded=True)
        async with self.http.request(method, url, **options) as response:
            return response, await response.read()

    async def problem(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The problem document of a request that is refused."""
        response, body = await self.call(method, path, **options)
        assert response.content_type == "application/problem+json", (response.status, body)
        document: dict[str, Any] = json.loads(body)
        assert document["status"] == response.status
        return document

    async def raw(self, data: bytes, *, wait: float = 5.0) -> bytes:
        """Send bytes on a connection of their own; everything that comes back until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await read_to_end(reader, wait)
        finally:
            writer.close()


async def read_to_end(reader: asyncio.StreamReader, wait: float = 5.0) -> bytes:
    """Everything until the other side closes or resets the connection; fails when it does neither in time."""
    data = b""
    async with asyncio.timeout(wait):
        try:
            while chunk := await reader.read(1 << 16):
                data += chunk
        except ConnectionResetError:
            pass
    return data


async def serve(
    *,
    limits: Limits | None = None,
    cuts: tuple[bytes, ...] = (),
    bodies: BodyReader | None = None,
    **bounds: Any,
) -> Served:
    bodies = bodies or BodyReader()
    limits = limits or Limits()
    router, admin, metrics = FakeRouter(limits=limits, cuts=cuts), FakeAdmin(), Metrics(node="n1", process=False)
    fatal: list[BaseException] = []
    app = build_app(
        router,
        admin,
        limits=limits,
        metrics=metrics,
        node_name="n1",
        cluster_id="c0ffee",
        fatal=fatal.append,
        bodies=bodies,
    )
    runner = ApiRunner(app, metrics=metrics, **{"linger_seconds": 0.1, **bounds})
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1_024)
    await site.start()
    http = aiohttp.ClientSession(auto_decompress=False)
    return Served(router, admin, metrics, runner, runner.addresses[0][1], http, bodies, fatal)


Serve = Callable[..., Any]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """The loop that nodes run on, for the tests here: its transports and sockets are not asyncio's own."""
    return {"uvloop": uvloop.new_event_loop} if item.path.parent == Path(__file__).parent else None


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Serve]:
    """Starts a server with options of one's own."""
    started: list[Served] = []

    async def one(**options: Any) -> Served:
        served = await serve(**options)
        started.append(served)
        return served

    yield one
    for served in started:
        await served.http.close()
        await served.runner.cleanup()


@pytest_asyncio.fixture
async def api(start: Serve) -> Served:
    served: Served = await start()
    return served


@pytest.fixture
def limits() -> Limits:
    return Limits()
