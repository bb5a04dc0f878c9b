"""The node's one port: a small application while it looks for its cluster, the whole one afterwards.

Both listen on the same socket, so that no connection is refused in between.

Invariant: before the cluster is known nothing is served but who this node is, and that it is alive.
Called by: kvstore/node.py.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Sequence

import msgspec
from aiohttp import web

from kvstore.api.app import build_app
from kvstore.api.problems import problem_of
from kvstore.api.server import ApiRunner
from kvstore.base.clock import Clock
from kvstore.base.config import NodeConfig, split_address
from kvstore.base.errors import Invalid, KVError, StartRefused, Unauthenticated
from kvstore.base.metrics import Metrics
from kvstore.router.admin import NodeAdmin
from kvstore.router.peer_api import ADMIN_PATH, AUTH_HEADER, FOUNDING_PATH, check_signature
from kvstore.router.router import ShardRouter
from kvstore.transport.listening import ListeningSite

logger = logging.getLogger(__name__)

BACKLOG = 1_024
ADMIN_BODY_BYTES_MAX = 64 * 1_024
SHUTDOWN_SECONDS = 2.0
REFUSAL_TOLD_MS = 10_000


class AdminRequest(msgspec.Struct, forbid_unknown_fields=True):
    """An administrative request from another node."""

    operation: str
    arguments: dict[str, object]


def bind(config: NodeConfig) -> socket.socket:
    """The listening socket. Raises StartRefused."""
    host, port = split_address(config.listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartRefused(f"can't listen at {config.listen}: {error.strerror}; is another process using it?") from None
    listener.setblocking(False)
    return listener


class NodeHttp:
    """Serves one node."""

    def __init__(
        self,
        config: NodeConfig,
        listener: socket.socket,
        clock: Clock,
        metrics: Metrics,
        *,
        founding_state: Callable[[], dict[str, object]],
    ) -> None:
        self._config = config
        self._listener = listener
        self._clock = clock
        self._metrics = metrics
        self._founding_state = founding_state
        self._secrets = config.cluster_secrets
        self._runners: list[web.AppRunner] = []  # the last one serves
        self._admin: NodeAdmin | None = None
        self._refusal_told_ms = -REFUSAL_TOLD_MS

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """What other nodes' requests may be signed with from now on."""
        self._secrets = tuple(secrets)

    async def serve_founding(self) -> None:
        """Tell other founders who this node is."""
        app = web.Application()
        app.router.add_get(FOUNDING_PATH, self._founding)
        app.router.add_get("/healthz", self._alive)
        await self._serve(web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS))

    async def serve(
        self,
        router: ShardRouter,
        admin: NodeAdmin,
        peer_routes: Iterable[web.RouteDef],
        *,
        cluster: str,
        fatal: Callable[[BaseException], None],
    ) -> None:
        """The whole API."""
        self._admin = admin
        app = build_app(
            router,
            admin,
            limits=self._config.limits,
            metrics=self._metrics,
            node_name=self._config.name,
            cluster_id=cluster,
            fatal=fatal,
            extra_routes=[
                web.get(FOUNDING_PATH, self._founding),
                web.post(ADMIN_PATH, self._administer),
                *peer_routes,
            ],
        )
        await self._serve(ApiRunner(app, metrics=self._metrics, shutdown_timeout=SHUTDOWN_SECONDS))

    async def _serve(self, runner: web.AppRunner) -> None:
        self._runners.append(runner)
        await runner.setup()
        while len(self._runners) > 1:
            await self._runners[0].cleanup()  # the listener stays open: who connects now waits a moment
            del self._runners[0]
        # No await between here and the start: a socket that was duplicated before would be left open by a cancellation.
        await ListeningSite(runner, self._listener.dup(), backlog=BACKLOG).start()

    async def close(self) -> None:
        """Stop listening; what is under way is finished, bounded."""
        self._listener.close()
        for runner in self._runners:
            await runner.cleanup()

    async def _alive(self, _: web.Request) -> web.Response:
        response = web.json_response({"alive": True, "cluster": None})
        response.force_close()
        return response

    async def _founding(self, request: web.Request) -> web.Response:
        try:
            self._check(request, FOUNDING_PATH, b"")
        except KVError as error:
            return problem_of(error)
        response = web.json_response(self._founding_state())
        response.force_close()  # the application behind the port changes: a kept connection would talk to the old one
        return response

    async def _administer(self, request: web.Request) -> web.Response:
        if (request.content_length or 0) > ADMIN_BODY_BYTES_MAX:
            raise Invalid("the request is too long")
        body = await request.read()
        self._check(request, ADMIN_PATH, body)
        assert self._admin is not None
        try:
            wanted = msgspec.json.decode(body, type=AdminRequest)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Invalid(f"malformed request: {error}") from None
        return web.json_response(await self._admin.perform(wanted.operation, wanted.arguments))

    def _check(self, request: web.Request, path: str, body: bytes) -> None:
        now_ms = self._clock.wall_ms()
        value = request.headers.get(AUTH_HEADER, "")
        try:
            check_signature(self._secrets, value, now_ms=now_ms, path=path, body=body)
        except Unauthenticated as error:
            if now_ms - self._refusal_told_ms >= REFUSAL_TOLD_MS:  # a node that waits for its cluster asks all the time
                self._refusal_told_ms = now_ms
                logger.warning("a node at %s is refused: its request is %s", request.remote, error.message)
            raise
