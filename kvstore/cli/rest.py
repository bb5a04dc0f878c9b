"""The administrative side of the REST API, as kvctl uses it: any endpoint that answers will do.

Invariant: a request that changes something goes to one endpoint, and to the next one only when the first was certainly
           not reached; so it is never sent twice by accident.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from kvstore.cli import failure
from kvstore.cli.failure import CommandFailed

CONNECT_SECONDS = 2.0  # one dead endpoint must not eat the time of the live ones


class NotReached(Exception):
    """No whole answer came from the endpoint; the text says why."""


class Rest:
    """`async with Rest(endpoints, timeout=seconds) as rest: await rest.get("/v1/members")`."""

    def __init__(self, endpoints: tuple[str, ...], *, timeout: float) -> None:
        self.endpoints = endpoints
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_SECONDS))
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> Any:
        """From the first endpoint that answers. Raises CommandFailed."""
        problem: CommandFailed | None = None
        for endpoint in self.endpoints:
            try:
                return await self.get_from(endpoint, path)
            except CommandFailed as failed:
                if failed.code == "NOT_FOUND":
                    raise
                problem = problem or failed
            except NotReached:
                continue
        raise problem or unreachable(self.endpoints)

    async def get_from(self, endpoint: str, path: str) -> Any:
        """Raises CommandFailed for a refusal, NotReached when there is no answer."""
        assert self._session is not None, "use it as a context manager"
        try:
            async with self._session.get(endpoint + path) as response:
                return await _answer(response, reading=True)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotReached(describe(error)) from None

    async def change(self, method: str, path: str, body: Any = None) -> Any:
        """POST or DELETE. Raises CommandFailed, with an unknown outcome when the answer was lost."""
        assert self._session is not None, "use it as a context manager"
        for endpoint in self.endpoints:
            try:
                async with self._session.request(
                    method,
                    endpoint + path,
                    data=None if body is None else orjson.dumps(body),
                    headers={} if body is None else {"Content-Type": "application/json"},
                ) as response:
                    return await _answer(response, reading=False)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                continue  # never connected: certainly not sent
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise CommandFailed(
                    "TIMEOUT",
                    f"no answer from {endpoint}: {describe(error)}; it may have been done",
                    hint="Look with kvctl status, members or shards before you repeat it.",
                    exit_code=failure.UNKNOWN,
                ) from None
        raise unreachable(self.endpoints)


async def _answer(response: aiohttp.ClientResponse, *, reading: bool) -> Any:
    data = await response.read()
    try:
        content = orjson.loads(data) if data else None
    except orjson.JSONDecodeError:
        content = None
    if response.status < 400:
        return content
    raise failure.from_problem(response.status, content if isinstance(content, dict) else {}, reading=reading)


def unreachable(endpoints: tuple[str, ...]) -> CommandFailed:
    return CommandFailed(
        "UNREACHABLE",
        f"no node answers at {', '.join(endpoints)}",
        hint="Is the cluster running (kvstore dev)? Name its nodes with --endpoints or KVCTL_ENDPOINTS",
    )


def describe(error: BaseException) -> str:
    return str(error) or ("timed out" if isinstance(error, asyncio.TimeoutError) else type(error).__name__)
