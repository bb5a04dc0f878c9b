"""What a node tells about itself and what an operator may change; errors that end a process; request counters."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import msgspec
import pytest

from kvstore.base.errors import StorageFault
from kvstore.base.limits import Limits
from tests.api.conftest import Serve, Served


async def get(api: Served, path: str) -> object:
    response, body = await api.call("GET", path)
    assert response.status == 200, body
    return json.loads(body)


async def test_routes_have_the_documented_form(start: Serve) -> None:
    api: Served = await start(cuts=(b"m\xff",))
    document = await get(api, "/v1/routes")
    assert isinstance(document, dict)
    assert document["version"] == 3
    low, high = document["shards"]
    assert (low["id"], low["start"], low["end_base64"], low["leader"]) == (2, "", "bf8=", "n1")
    assert (high["start_base64"], high["end"], high["address"]) == ("bf8=", "", "127.0.0.1:7001")
    assert low["epoch"] == {"version": 1, "conf": 1}
    assert low["replicas"] == [{"node": "n1", "address": "127.0.0.1:7001", "role": "voter"}]
    assert document["nodes"] == [
        {"name": "n1", "address": "127.0.0.1:7001"},
        {"name": "n2", "address": "127.0.0.1:7002"},
    ]
    assert await get(api, "/v1/routes?keyspace=default") == document
    assert (await api.problem("GET", "/v1/routes?keyspace=x"))["code"] == "NOT_FOUND"


async def test_routes_may_be_waited_for(api: Served) -> None:
    """Answered at once with another version, with the next change, or with the same version after the time."""
    same = await get(api, "/v1/routes")
    for query in ("version=2&wait_ms=30000", "version=0&wait_ms=30000", "version=3", "version=3&wait_ms=1"):
        assert await get(api, f"/v1/routes?{query}") == same
    assert api.router.waited == [(3, 0.0), (3, 0.001)]
    api.router.wait_seconds_max = 30.0
    api.router.watched.clear()
    waiting = asyncio.ensure_future(get(api, "/v1/routes?version=3&wait_ms=30000"))
    await api.router.watched.wait()
    api.router.change_routes()
    changed = await waiting
    assert isinstance(changed, dict)
    assert changed["version"] == 4


async def test_a_wait_needs_a_version_and_has_a_bound(api: Served) -> None:
    for query in ("wait_ms=5", "version=3&wait_ms=30001", "version=-1", "version=x", "version=3&wait_ms=x"):
        assert (await api.problem("GET", f"/v1/routes?{query}"))["code"] == "INVALID"
    api.router.watches_refused = True
    assert (await api.problem("GET", "/v1/routes?version=3&wait_ms=5"))["code"] == "OVERLOADED"


async def test_a_stopping_node_answers_who_waits_for_routes(start: Serve) -> None:
    api: Served = await start()
    api.router.wait_seconds_max = 30.0
    api.router.watched.clear()
    waiting = asyncio.ensure_future(get(api, "/v1/routes?version=3&wait_ms=30000"))
    await api.router.watched.wait()
    async with asyncio.timeout(4.0):
        await api.runner.cleanup()
        assert await waiting is not None


async def test_lists_are_what_the_node_says(api: Served) -> None:
    assert await get(api, "/v1/members") == await api.admin.members()
    assert await get(api, "/v1/shards") == api.admin.shards()
    assert await get(api, "/v1/operators") == await api.admin.operators()
    assert await get(api, "/v1/status") == api.admin.status()
    assert await get(api, "/v1/limits") == asdict(Limits())
    _, body = await api.call("GET", "/v1/members", headers={"Accept": "application/msgpack"})
    assert msgspec.msgpack.decode(body) == await api.admin.members()
    assert (await api.problem("GET", "/v1/members?x=1"))["code"] == "INVALID"


async def test_changes_reach_the_node(api: Served) -> None:
    join = {"name": "n3", "node_id": "abc", "address": "h:1", "labels": {"zone": "a"}}
    for method, path, body in (
        ("POST", "/v1/members", join),
        ("DELETE", "/v1/members/n2", None),
        ("POST", "/v1/shards/2/transfer", {"node": "n2"}),
        ("POST", "/v1/shards/2/split", {}),
        ("POST", "/v1/shards/2/split", {"at": "grün"}),
        ("POST", "/v1/shards/2/split", {"at_base64": "/w=="}),
        ("POST", "/v1/shards/2/replicas", {"node": "n2"}),
        ("DELETE", "/v1/shards/2/replicas/n2", None),
    ):
        response, answer = await api.call(method, path, json=body)
        assert response.status == 200, answer
    assert api.admin.calls == [
        ("join", "n3", "abc", "h:1", {"zone": "a"}),
        ("remove_node", "n2"),
        ("transfer", 2, "n2"),
        ("split", 2, None),
        ("split", 2, "grün".encode()),
        ("split", 2, b"\xff"),
        ("add_replica", 2, "n2"),
        ("remove_replica", 2, "n2"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/v1/members", b"{}", "INVALID"),
        ("POST", "/v1/members", b'{"name": 1, "node_id": "", "address": ""}', "INVALID"),
        ("POST", "/v1/members", b"[" * 50_000, "INVALID"),
        ("POST", "/v1/members", b"x" * 70_000, "TOO_LARGE"),
        ("POST", "/v1/shards/x/transfer", b'{"node": "n1"}', "INVALID"),
        ("POST", "/v1/shards/2/transfer", b'{"node": "n1", "force": true}', "INVALID"),
        ("POST", "/v1/shards/9/transfer", b'{"node": "n1"}', "NOT_FOUND"),
        ("POST", "/v1/shards/2/split", b'{"at": "a", "at_base64": "YQ=="}', "INVALID"),
        ("POST", "/v1/shards/2/split", b'{"at_base64": "?"}', "INVALID"),
        ("POST", "/v1/shards/9/split", b"{}", "NOT_FOUND"),
        ("POST", "/v1/shards/2/replicas", b'{"node": "n9"}', "NOT_FOUND"),
        ("DELETE", "/v1/members/n9", b"", "NOT_FOUND"),
        ("DELETE", "/v1/members/%zz", b"", "INVALID"),
        ("DELETE", "/v1/members/a%2Fb", b"", "NOT_FOUND"),
    ],
)
async def test_malformed_changes_are_refused(api: Served, method: str, path: str, body: bytes, code: str) -> None:
    assert (await api.problem(method, path, data=body))["code"] == code
    assert not api.admin.calls


async def test_what_is_asked_of_the_placement_driver(api: Served) -> None:
    assert (await get(api, "/v1/members/n1/drain"))["blocked"] == [{"shard": 2, "reason": "no other node"}]
    assert (await get(api, "/v1/settings"))["settings"][0]["name"] == "rebalance"
    assert api.admin.calls == []
    for method, path, body in (
        ("POST", "/v1/members/n2/drain", None),
        ("DELETE", "/v1/members/n2/drain", None),
        ("PATCH", "/v1/settings", {"rebalance": False}),
        ("PATCH", "/v1/settings", {"rebalance": None}),
        ("DELETE", "/v1/operators/1", None),
    ):
        response, answer = await api.call(method, path, json=body)
        assert response.status == 200, answer
    assert api.admin.calls == [
        ("drain", "n2"),
        ("undrain", "n2"),
        ("set_settings", {"rebalance": False}),
        ("set_settings", {"rebalance": None}),
        ("cancel_operator", 1),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/v1/members/n9/drain", b"", "NOT_FOUND"),
        ("GET", "/v1/members/n9/drain", b"", "NOT_FOUND"),
        ("POST", "/v1/members/n1/drain?wait=1", b"", "INVALID"),
        ("PATCH", "/v1/settings", b"[]", "INVALID"),
        ("PATCH", "/v1/settings", b'{"rebalance": [1]}', "INVALID"),
        ("PATCH", "/v1/settings", b'{"nonsense": 1}', "INVALID"),
        ("PATCH", "/v1/settings", b"x" * 70_000, "TOO_LARGE"),
        ("DELETE", "/v1/operators/7", b"", "NOT_FOUND"),
        ("DELETE", "/v1/operators/x", b"", "INVALID"),
    ],
)
async def test_what_the_placement_driver_cannot_do(api: Served, method: str, path: str, body: bytes, code: str) -> None:
    assert (await api.problem(method, path, data=body))["code"] == code
    assert api.admin.calls == [] or code == "NOT_FOUND"


async def test_alive_is_not_ready(api: Served) -> None:
    assert (await api.call("GET", "/readyz"))[0].status == 200
    api.admin.is_ready = False
    document = await api.problem("GET", "/readyz")
    assert (document["status"], document["code"]) == (503, "UNAVAILABLE")
    assert await get(api, "/healthz") == {"status": "alive", "node": "n1"}


async def test_the_index_page_is_for_people(api: Served) -> None:
    response, body = await api.call("GET", "/")
    assert response.content_type == "text/html"
    assert b"n1" in body


@pytest.mark.parametrize("error", [AssertionError("broken"), StorageFault("fsync failed")])
async def test_a_broken_invariant_reaches_the_process(
    api: Served, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    api.router.fail = error
    response, _ = await api.call("PUT", "/v1/kv/default/k", data=b"v")
    assert api.fatal == [error]
    assert response.status == 500  # a test's hook does not end the process
    assert "broken invariant in PUT" in caplog.text


@pytest.mark.parametrize("error", [KeyError("bug"), ConnectionResetError("of another connection"), TimeoutError()])
async def test_a_bug_is_logged_and_its_outcome_is_unknown(
    api: Served, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    api.router.fail = error
    document = await api.problem("PUT", "/v1/kv/default/k", data=b"v")
    assert (document["status"], document["outcome"]) == (500, "unknown")
    assert "bug in PUT" in caplog.text
    assert not api.fatal


async def test_requests_are_counted_by_route_and_code(api: Served) -> None:
    await api.call("PUT", "/v1/kv/default/k", data=b"v")
    await api.call("GET", "/v1/kv/default/k")
    await api.call("GET", "/v1/kv/default/other")
    await api.call("GET", "/v1/kv/default")
    await api.call("GET", "/nope/" + "x" * 50)
    await api.call("POST", "/v1/kv/default/k")
    await api.call("BREW", "/v1/kv/default/k")
    text = (await api.call("GET", "/metrics"))[1].decode()
    for line in (
        'kvstore_http_requests_total{code="OK",method="PUT",route="/v1/kv/{keyspace}/{key}",status="200"} 1.0',
        'kvstore_http_requests_total{code="NOT_FOUND",method="GET",route="/v1/kv/{keyspace}/{key}",status="404"} 1.0',
        'kvstore_http_requests_total{code="OK",method="GET",route="/v1/kv/{keyspace}",status="200"} 1.0',
        'kvstore_http_requests_total{code="NOT_FOUND",method="GET",route="unknown",status="404"} 1.0',
        'kvstore_http_requests_total{code="INVALID",method="POST",route="unknown",status="405"} 1.0',
        'kvstore_http_requests_total{code="INVALID",method="other",route="malformed",status="400"} 1.0',
        'kvstore_http_request_seconds_count{route="/v1/kv/{keyspace}/{key}"} 3.0',
        'kvstore_http_connections{kind="open"} 1.0',
    ):
        assert line in text
    openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response, body = await api.call("GET", "/metrics", headers=openmetrics)
    assert response.content_type == "application/openmetrics-text"
    assert body.endswith(b"# EOF\n")
