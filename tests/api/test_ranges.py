"""Pages over REST: scans and delete-ranges by prefix, bounds, cursor. (test_cursors has the hard cases.)"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kvstore.base.operations import DeleteRange, Scan
from tests.api.conftest import Serve, Served


async def fill(api: Served, *keys: str) -> None:
    for key in keys:
        await api.call("PUT", f"/v1/kv/default/{key}", data=key.encode())


def split_once(api: Served, key: bytes) -> None:
    """When the next operation arrives, there are two shards, and the router follows silently."""

    def split() -> None:
        api.router.on_call = lambda: None
        api.router.state.cut([key])

    api.router.on_call = split


async def scan(api: Served, query: str) -> tuple[list[str], str | None]:
    response, body = await api.call("GET", f"/v1/kv/default?{query}")
    assert response.status == 200, body
    page: dict[str, Any] = json.loads(body)
    return [item["key"] for item in page["items"]], page["cursor"]


async def scan_all(api: Served, query: str) -> list[str]:
    keys, cursor = await scan(api, query)
    while cursor:
        more, cursor = await scan(api, f"{query}&cursor={cursor}")
        keys += more
    return keys


async def test_a_page_has_keys_values_and_revisions(api: Served) -> None:
    await fill(api, "a", "b")
    _, body = await api.call("GET", "/v1/kv/default")
    item = {"mod_revision": 1, "create_revision": 1, "version": 1}
    assert json.loads(body)["items"][0] == {"key": "a", "value": "a", **item}
    assert json.loads(body)["revision"] == 2
    _, body = await api.call("GET", "/v1/kv/default", headers={"Accept": "application/msgpack"})
    assert msgspec.msgpack.decode(body)["items"][0] == {"key": b"a", "value": b"a", **item}


@pytest.mark.parametrize("cuts", [(), (b"b",), (b"a2", b"b", b"b1")])
async def test_prefix_bounds_limit_and_reverse(start: Serve, cuts: tuple[bytes, ...]) -> None:
    api: Served = await start(cuts=cuts)
    await fill(api, "a", "a1", "a2", "a3", "b", "b1", "c")
    assert await scan_all(api, "prefix=a&limit=2") == ["a", "a1", "a2", "a3"]
    assert await scan_all(api, "start=a2&end=b1") == ["a2", "a3", "b"]
    assert await scan_all(api, "start=a2&limit=1") == ["a2", "a3", "b", "b1", "c"]
    assert await scan_all(api, "reverse=true&limit=2") == ["c", "b1", "b", "a3", "a2", "a1", "a"]
    assert await scan_all(api, "prefix=a&reverse=true&limit=3") == ["a3", "a2", "a1", "a"]
    assert await scan_all(api, "start=x") == []
    assert await scan_all(api, "start=a&end=a") == []
    assert await scan_all(api, "prefix=%FF") == []


async def test_a_split_under_way_loses_no_key(start: Serve) -> None:
    api: Served = await start()
    await fill(api, "a", "b", "c")
    split_once(api, b"b")
    keys, cursor = await scan(api, "limit=10")
    assert (keys, cursor is not None) == (["a"], True)
    assert await scan_all(api, "limit=10") == ["a", "b", "c"]
    split_once(api, b"c")
    assert await scan_all(api, "reverse=true") == ["c", "b", "a"]


async def test_delete_range_goes_on_with_its_cursor(api: Served) -> None:
    await fill(api, "a1", "a2", "a3", "b")
    _, body = await api.call("DELETE", "/v1/kv/default?prefix=a&limit=2")
    first = json.loads(body)
    assert (first["deleted"], first["revision"]) == (2, 5)
    _, body = await api.call("DELETE", f"/v1/kv/default?prefix=a&limit=2&cursor={first['cursor']}")
    assert json.loads(body) == {"deleted": 1, "revision": 6, "cursor": None}
    assert list(api.router.state.data) == [b"b"]
    _, body = await api.call("DELETE", "/v1/kv/default?start=a&end=a")
    assert json.loads(body) == {"deleted": 0, "revision": 0, "cursor": None}
    _, body = await api.call("DELETE", "/v1/kv/default?all=true", headers={"Idempotency-Key": "x"})
    assert api.router.calls[-1]["operations"] == [DeleteRange(1, b"", b"", 1_000)]
    assert not api.router.state.data


async def test_delete_range_over_a_split_says_that_it_is_not_done(api: Served) -> None:
    await fill(api, "a", "b", "c")
    split_once(api, b"b")
    _, body = await api.call("DELETE", "/v1/kv/default?all=true")
    document = json.loads(body)
    assert (document["deleted"], document["cursor"] is not None) == (1, True)
    query = f"/v1/kv/default?all=true&cursor={document['cursor']}"
    for _ in range(2):
        _, body = await api.call("DELETE", query)
        document = json.loads(body)
        query = f"/v1/kv/default?all=true&cursor={document['cursor']}"
    assert document["cursor"] is None
    assert not api.router.state.data


async def test_deleting_needs_to_be_told_what(api: Served) -> None:
    await fill(api, "a")
    for query in ("", "?prefix=", "?start=", "?all=false", "?prefix=a&all=true", "?limit=1"):
        assert (await api.problem("DELETE", f"/v1/kv/default{query}"))["code"] == "INVALID"
    assert api.router.state.data


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "INVALID"),
        ("limit=1001", "INVALID"),
        ("limit=x", "INVALID"),
        ("reverse=yes", "INVALID"),
        ("prefix=a&start=b", "INVALID"),
        ("start=b&end=a", "INVALID"),
        ("start=%", "INVALID"),
        ("cursor=", "INVALID"),
        ("cursor=AA", "INVALID"),
        ("cursor=%FF%FF", "INVALID"),
        ("cursor=AQBh&reverse=true", "INVALID"),
        ("cursor=AQBh&prefix=b", "INVALID"),
        ("key=a", "INVALID"),
        ("prefix=a&prefix=b", "INVALID"),
        ("max_staleness_ms=1", "INVALID"),
        ("start=" + "a" * 481, "TOO_LARGE"),
        ("prefix=" + "%FF" * 481, "TOO_LARGE"),
    ],
)
async def test_a_malformed_page_is_refused(api: Served, query: str, code: str) -> None:
    assert (await api.problem("GET", f"/v1/kv/default?{query}"))["code"] == code
    assert not api.router.calls


async def test_the_router_gets_one_scan_with_the_limits(api: Served) -> None:
    response, _ = await api.call("GET", "/v1/kv/default?prefix=a&limit=7&consistency=stale&timeout_ms=99")
    call = api.router.calls[-1]
    assert call["operations"] == [Scan(0, b"a", b"b", 7, 1 << 20, False)]
    assert call["max_staleness_ms"] == 10_000
    assert 0 < call["timeout_ms"] <= 99
    assert response.headers["Kv-Age-Ms"] == "7"


async def test_a_range_that_stays_stale_is_told_so(api: Served) -> None:
    api.router.on_call = lambda: api.router.state.cut([])
    document = await api.problem("GET", "/v1/kv/default?timeout_ms=2000")
    assert (document["code"], document["retry"]) == ("STALE_ROUTE", "reroute")
