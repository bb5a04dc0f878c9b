"""What is there and how it is: routes, members, shards, status, limits, health; and what an operator may change.

Invariant: /healthz says that the process turns, nothing more (a restart would cure it); /readyz that it can commit and
           read (a load balancer may send requests).
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import asdict
from html import escape
from typing import Annotated, TypeVar

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from kvstore import __version__
from kvstore.api.arguments import NAME_PATTERN, decode_name, integer, integer_in, query_of, segment_of
from kvstore.api.body import BodyReader
from kvstore.api.encoding import document, route_json
from kvstore.base.errors import Invalid, NotFound
from kvstore.base.limits import KIB, ROUTES_WAIT_MS_MAX, Limits
from kvstore.base.metrics import Metrics
from kvstore.router.protocol import Admin, Router

_ADMIN_BODY_BYTES_MAX = 64 * KIB
_T = TypeVar("_T")
_NO_PARAMETERS: frozenset[str] = frozenset()
_VERSION_MAX = (1 << 63) - 1


Filled = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class JoinBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    node_id: Filled
    address: Filled
    labels: dict[str, str] = {}


class SplitBody(msgspec.Struct, forbid_unknown_fields=True):
    """Where to cut: a key as text or in base64; neither = in the middle of the data."""

    at: str | None = None
    at_base64: str | None = None


class NodeBody(msgspec.Struct, forbid_unknown_fields=True):
    node: Filled


class AdminEndpoint:
    """Everything but the data."""

    def __init__(
        self,
        router: Router,
        admin: Admin,
        *,
        limits: Limits,
        metrics: Metrics,
        bodies: BodyReader,
        node_name: str,
        cluster_id: str,
    ) -> None:
        self._router = router
        self._admin = admin
        self._limits = limits
        self._metrics = metrics
        self._bodies = bodies
        self._node_name = node_name
        self._cluster_id = cluster_id

    # -- what there is

    async def routes(self, request: web.Request) -> web.Response:
        query = query_of(request, frozenset({"keyspace", "version", "wait_ms"}))
        wait_ms = integer_in(query, "wait_ms", 0, low=0, high=ROUTES_WAIT_MS_MAX)
        if "version" in query:
            version = integer_in(query, "version", 0, low=0, high=_VERSION_MAX)
            await self._router.wait_routes(version, wait_ms / 1_000)
        elif wait_ms:
            raise Invalid("wait_ms needs the version that is known already")
        routing = self._router.routing()
        names = {number: name for name, number in routing.keyspaces.items()}
        shards = [
            {**route_json(route), "keyspace": names.get(route.keyspace, str(route.keyspace))}
            for route in routing.routes
        ]
        if "keyspace" in query:
            wanted = query["keyspace"].decode("utf-8", "replace")
            if wanted not in routing.keyspaces:
                raise NotFound(f"there is no keyspace {wanted[:64]!r}")
            shards = [shard for shard in shards if shard["keyspace"] == wanted]
        nodes = [{"name": name, "address": address} for name, address in routing.nodes]
        return document(request, {"version": routing.version, "shards": shards, "nodes": nodes})

    async def members(self, request: web.Request) -> web.Response:
        query_of(request, _NO_PARAMETERS)
        return document(request, await self._admin.members())

    async def shards(self, request: web.Request) -> web.Response:
        query_of(request, _NO_PARAMETERS)
        return document(request, self._admin.shards())

    async def operators(self, request: web.Request) -> web.Response:
        query_of(request, _NO_PARAMETERS)
        return document(request, await self._admin.operators())

    async def status(self, request: web.Request) -> web.Response:
        query_of(request, _NO_PARAMETERS)
        return document(request, self._admin.status())

    async def limits(self, request: web.Request) -> web.Response:
        query_of(request, _NO_PARAMETERS)
        return document(request, asdict(self._limits))

    # -- health

    async def healthz(self, request: web.Request) -> web.Response:
        return document(request, {"status": "alive", "node": self._node_name})

    async def readyz(self, request: web.Request) -> web.Response:
        return document(request, await self._admin.ready())

    async def metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})

    async def index(self, _: web.Request) -> web.Response:
        page = _INDEX.format(
            node=escape(self._node_name), cluster=escape(self._cluster_id), version=escape(__version__)
        )
        return web.Response(text=page, content_type="text/html")

    # -- changes

    async def join(self, request: web.Request) -> web.Response:
        body = await self._body(request, JoinBody)
        return document(
            request,
            await self._admin.join(name=body.name, node_id=body.node_id, address=body.address, labels=body.labels),
        )

    async def remove_node(self, request: web.Request) -> web.Response:
        query_of(request, _NO_PARAMETERS)
        return document(request, await self._admin.remove_node(decode_name(segment_of(request, 3), "member")))

    async def transfer(self, request: web.Request) -> web.Response:
        shard = shard_of(request)
        body = await self._body(request, NodeBody)
        return document(request, await self._admin.transfer(shard, body.node))

    async def split(self, request: web.Request) -> web.Response:
        shard = shard_of(request)
        body = await self._body(request, SplitBody)
        if body.at is not None and body.at_base64 is not None:
            raise Invalid("give the key as at or as at_base64, not as both")
        key = None if body.at is None else body.at.encode()
        if body.at_base64 is not None:
            try:
                key = b64decode(body.at_base64, validate=True)
            except ValueError:
                raise Invalid("at_base64 is not base64") from None
        return document(request, await self._admin.split(shard, key))

    async def add_replica(self, request: web.Request) -> web.Response:
        shard = shard_of(request)
        body = await self._body(request, NodeBody)
        return document(request, await self._admin.add_replica(shard, body.node))

    async def remove_replica(self, request: web.Request) -> web.Response:
        query_of(request, _NO_PARAMETERS)
        node = decode_name(segment_of(request, 5), "member")
        return document(request, await self._admin.remove_replica(shard_of(request), node))

    async def _body(self, request: web.Request, kind: type[_T]) -> _T:
        query_of(request, _NO_PARAMETERS)
        data = await self._bodies.read(request, _ADMIN_BODY_BYTES_MAX, "body")
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"malformed body: {error}") from None


def shard_of(request: web.Request) -> int:
    return integer(segment_of(request, 3), "the shard's id", low=1, high=(1 << 63) - 1)


_INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>kvstore: {node}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}}
code{{background:#8882;padding:.1em .3em}}</style>
<h1>kvstore</h1>
<p>Node <b>{node}</b> of cluster <code>{cluster}</code>, version {version}.</p>
<ul>
<li><a href="/v1/status">status</a>, <a href="/v1/members">members</a>, <a href="/v1/shards">shards</a>,
<a href="/v1/routes">routes</a>, <a href="/v1/operators">operators</a>, <a href="/v1/limits">limits</a></li>
<li><a href="/healthz">healthz</a>, <a href="/readyz">readyz</a>, <a href="/metrics">metrics</a></li>
<li><a href="/openapi.json">openapi.json</a> describes the REST API; <code>/v1/stream</code> is the WebSocket of the
client library.</li>
</ul>
<p>Try <code>curl -X PUT --data-binary hello http://HOST:PORT/v1/kv/default/greeting</code>.</p>
</html>
"""
