"""Puts the HTTP application together: one table of routes, one middleware, one set of limits.

Called by: kvstore/node.py, which adds its peers' WebSocket routes by `extra_routes` and serves the application with
`server.ApiRunner` (without it the connection bounds are missing).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from kvstore.api.admin import AdminEndpoint
from kvstore.api.batch import BatchEndpoint
from kvstore.api.body import BodyReader, permission
from kvstore.api.kv import KeyEndpoint
from kvstore.api.middleware import Fatal, edge
from kvstore.api.openapi import openapi_document
from kvstore.api.placement import PlacementEndpoint
from kvstore.api.ranges import RangeEndpoint
from kvstore.api.stream_socket import STREAMS, StreamEndpoint
from kvstore.base.limits import Limits
from kvstore.base.metrics import Metrics
from kvstore.router.protocol import Admin, Router

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the table; `operation` is the operationId of openapi.py."""

    method: str
    path: str
    operation: str
    handler: Handler


class KeyResource(web.Resource):
    """/v1/kv/{keyspace}/{key}, where the key may hold anything, slashes and all.

    aiohttp would match and decode the key by a regular expression for every request; arguments.address_of does it from
    the path as it was sent. `canonical` is what the dispatcher indexes by, and the route's name in the metrics.
    """

    _PREFIX = "/v1/kv/"

    @property
    def canonical(self) -> str:
        return "/v1/kv/{keyspace}/{key}"

    def _match(self, path: str) -> dict[str, str] | None:
        return {} if path.startswith(self._PREFIX) and "/" in path[len(self._PREFIX) :] else None

    def raw_match(self, path: str) -> bool:
        return path == self.canonical

    def get_info(self) -> dict[str, object]:  # type: ignore[override]  # aiohttp's TypedDict is private
        return {"formatter": self.canonical}

    def add_prefix(self, prefix: str) -> None:
        raise NotImplementedError("the API is served at the root")

    def url_for(self, **parts: str) -> web.URL:  # type: ignore[name-defined]
        raise NotImplementedError("keys are bytes: build the path with percent-encoding")


def build_app(
    router: Router,
    admin: Admin,
    *,
    limits: Limits,
    metrics: Metrics,
    node_name: str,
    cluster_id: str,
    fatal: Fatal,
    extra_routes: Iterable[web.AbstractRouteDef] = (),
    bodies: BodyReader | None = None,
) -> web.Application:
    """The application of one node.

    `fatal` is called with an AssertionError or StorageFault that a handler ran into; it must end the process (the
    error is raised on afterwards, never answered as if nothing had happened).
    """
    bodies = bodies or BodyReader()
    streams = StreamEndpoint(router, limits=limits, metrics=metrics, node=node_name, cluster=cluster_id)
    app = web.Application(middlewares=(edge(metrics=metrics, fatal=fatal),), client_max_size=limits.request_bytes_max)
    app[STREAMS] = streams

    keys = KeyResource()
    app.router.register_resource(keys)
    keys_endpoint = KeyEndpoint(router, limits=limits, bodies=bodies)
    keys.add_route("GET", keys_endpoint.get)
    keys.add_route("HEAD", keys_endpoint.get)
    keys.add_route("PUT", keys_endpoint.put, expect_handler=permission(limits.value_bytes_max))
    keys.add_route("DELETE", keys_endpoint.delete)

    for endpoint in _endpoints(
        RangeEndpoint(router, limits=limits),
        BatchEndpoint(router, limits=limits, bodies=bodies),
        AdminEndpoint(
            router,
            admin,
            limits=limits,
            metrics=metrics,
            bodies=bodies,
            node_name=node_name,
            cluster_id=cluster_id,
        ),
        PlacementEndpoint(admin.placement, bodies=bodies),
        streams,
    ):
        app.router.add_route(
            endpoint.method, endpoint.path, endpoint.handler, expect_handler=permission(limits.request_bytes_max)
        )
        if endpoint.method == "GET" and endpoint.path != "/v1/stream":
            app.router.add_route("HEAD", endpoint.path, endpoint.handler)

    described = msgspec.json.encode(openapi_document(limits))

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(body=described, content_type="application/json")

    app.router.add_get("/openapi.json", openapi)
    app.add_routes(extra_routes)
    return app


def _endpoints(
    ranges: RangeEndpoint,
    batch: BatchEndpoint,
    admin: AdminEndpoint,
    placement: PlacementEndpoint,
    streams: StreamEndpoint,
) -> tuple[Endpoint, ...]:
    """All routes but those of a single key and of the document that describes them."""
    return (
        Endpoint("GET", "/v1/kv/{keyspace}", "scan", ranges.scan),
        Endpoint("DELETE", "/v1/kv/{keyspace}", "deleteRange", ranges.delete),
        Endpoint("POST", "/v1/batch/{keyspace}", "batch", batch.post),
        Endpoint("GET", "/v1/routes", "listRoutes", admin.routes),
        Endpoint("GET", "/v1/members", "listMembers", admin.members),
        Endpoint("POST", "/v1/members", "joinMember", admin.join),
        Endpoint("DELETE", "/v1/members/{name}", "removeMember", admin.remove_node),
        Endpoint("GET", "/v1/shards", "listShards", admin.shards),
        Endpoint("POST", "/v1/shards/{id}/transfer", "transferLeadership", admin.transfer),
        Endpoint("POST", "/v1/shards/{id}/split", "splitShard", admin.split),
        Endpoint("POST", "/v1/shards/{id}/replicas", "addReplica", admin.add_replica),
        Endpoint("DELETE", "/v1/shards/{id}/replicas/{node}", "removeReplica", admin.remove_replica),
        Endpoint("GET", "/v1/operators", "listOperators", admin.operators),
        Endpoint("DELETE", "/v1/operators/{id}", "cancelOperator", placement.cancel_operator),
        Endpoint("GET", "/v1/members/{name}/drain", "drainProgress", placement.drain_progress),
        Endpoint("POST", "/v1/members/{name}/drain", "drainMember", placement.drain),
        Endpoint("DELETE", "/v1/members/{name}/drain", "undrainMember", placement.undrain),
        Endpoint("GET", "/v1/settings", "listSettings", placement.settings),
        Endpoint("PATCH", "/v1/settings", "changeSettings", placement.set_settings),
        Endpoint("GET", "/v1/status", "status", admin.status),
        Endpoint("GET", "/v1/limits", "limits", admin.limits),
        Endpoint("GET", "/v1/stream", "stream", streams.handle),
        Endpoint("GET", "/metrics", "metrics", admin.metrics),
        Endpoint("GET", "/healthz", "healthz", admin.healthz),
        Endpoint("GET", "/readyz", "readyz", admin.readyz),
        Endpoint("GET", "/", "index", admin.index),
    )
