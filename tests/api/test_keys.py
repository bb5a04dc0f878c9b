"""One key over REST. Method: a real server and client, a dict behind; each test is one promise of docs/http.md."""

from __future__ import annotations

import json
from hashlib import blake2b

import msgspec
import pytest

from kvstore.base.errors import CODES, ERRORS, Code, Timeout
from kvstore.base.limits import Limits
from kvstore.base.operations import Cas, Delete, Get, Put
from tests.api.conftest import Serve, Served
from tests.api.fake_backend import STAMP_MS


async def test_put_and_get_keep_every_byte_and_tell_revisions(api: Served) -> None:
    value = bytes(range(256))
    put, body = await api.call("PUT", "/v1/kv/default/k", data=value)
    assert (put.status, put.headers["ETag"], json.loads(body)) == (200, '"1"', {"revision": 1})
    await api.call("PUT", "/v1/kv/default/k", data=value)
    got, body = await api.call("GET", "/v1/kv/default/k")
    assert (got.status, body, got.content_type) == (200, value, "application/octet-stream")
    assert got.headers["ETag"] == '"2"'
    assert [got.headers[f"Kv-{name}"] for name in ("Mod-Revision", "Create-Revision", "Version")] == ["2", "1", "2"]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a%2Fb", b"a/b"),
        ("a/b/c", b"a/b/c"),
        ("%00", b"\0"),
        ("%FF%fe", b"\xff\xfe"),
        ("%0A", b"\n"),
        ("a+b", b"a+b"),
        ("%25zz", b"%zz"),
        ("a//", b"a//"),
        ("{x}", b"{x}"),
        ("%2e%2E", b".."),
    ],
)
async def test_a_key_is_any_bytes(api: Served, path: str, key: bytes) -> None:
    response, _ = await api.call("PUT", f"/v1/kv/default/{path}", data=b"v")
    assert response.status == 200
    assert list(api.router.state.data) == [key]
    assert (await api.call("GET", f"/v1/kv/default/{path}"))[1] == b"v"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", Code.INVALID),
        ("%", Code.INVALID),
        ("%4", Code.INVALID),
        ("%zz", Code.INVALID),
        ("a%", Code.INVALID),
        ("a" * 481, Code.TOO_LARGE),
        ("%00" * 481, Code.TOO_LARGE),
    ],
)
async def test_what_is_no_key_is_refused_before_the_router(api: Served, path: str, code: Code) -> None:
    for method in ("GET", "PUT", "DELETE"):
        document = await api.problem(method, f"/v1/kv/default/{path}")
        assert document["code"] == code.name
        assert document["outcome"] == "failed"
    assert not api.router.calls


async def test_the_longest_key_and_value_are_taken(api: Served) -> None:
    response, _ = await api.call("PUT", "/v1/kv/default/" + "%00" * 480, data=bytes(1 << 20))
    assert response.status == 200


async def test_a_value_over_the_limit_is_refused(start: Serve) -> None:
    api: Served = await start(limits=Limits(value_bytes_max=1_000))
    assert (await api.call("PUT", "/v1/kv/default/k", data=bytes(1_000)))[0].status == 200
    assert (await api.problem("PUT", "/v1/kv/default/k", data=bytes(1_001)))["code"] == "TOO_LARGE"


@pytest.mark.parametrize("keyspace", ["nope", "%00", "a%2Fb", "%FF", "-x", "x" * 64])
async def test_an_unknown_keyspace_is_not_found(api: Served, keyspace: str) -> None:
    assert (await api.problem("GET", f"/v1/kv/{keyspace}/k"))["code"] == "NOT_FOUND"
    assert (await api.problem("GET", f"/v1/kv/{keyspace}"))["code"] == "NOT_FOUND"


async def test_a_missing_key_is_not_found_and_head_tells_without_a_body(api: Served) -> None:
    document = await api.problem("GET", "/v1/kv/default/k")
    assert (document["code"], document["definite"], document["retry"]) == ("NOT_FOUND", True, "never")
    await api.call("PUT", "/v1/kv/default/k", data=b"value")
    response, body = await api.call("HEAD", "/v1/kv/default/k")
    assert (response.status, response.headers["Content-Length"], body) == (200, "5", b"")


async def test_if_match_is_compare_and_set_and_a_failure_carries_the_value(api: Served) -> None:
    await api.call("PUT", "/v1/kv/default/k", data=b"old")
    document = await api.problem("PUT", "/v1/kv/default/k", data=b"new", headers={"If-Match": '"7"'})
    assert (document["code"], document["status"]) == ("CONFLICT", 412)
    assert document["current"] == {"value": "old", "mod_revision": 1, "create_revision": 1, "version": 1}
    response, _ = await api.call("PUT", "/v1/kv/default/k", data=b"new", headers={"If-Match": '"1"'})
    assert response.status == 200
    assert api.router.calls[-1]["operations"] == [Cas(0, b"k", b"new", 1, None)]
    await api.problem("DELETE", "/v1/kv/default/k", headers={"If-Match": '"1"'})
    response, body = await api.call("DELETE", "/v1/kv/default/k", headers={"If-Match": '"2"'})
    assert json.loads(body) == {"deleted": True, "revision": 3}


async def test_if_none_match_star_creates_only(api: Served) -> None:
    condition = {"If-None-Match": "*"}
    response, _ = await api.call("PUT", "/v1/kv/default/k", data=b"1", headers=condition)
    assert response.status == 200
    document = await api.problem("PUT", "/v1/kv/default/k", data=b"2", headers=condition)
    assert (document["code"], document["current"]["value"]) == ("CONFLICT", "1")
    assert (await api.problem("DELETE", "/v1/kv/default/k", headers=condition))["code"] == "INVALID"


async def test_a_write_may_expect_a_value(api: Served) -> None:
    await api.call("PUT", "/v1/kv/default/k", data=b"a b\xff")
    assert (await api.problem("PUT", "/v1/kv/default/k?expect=x", data=b"new"))["code"] == "CONFLICT"
    response, _ = await api.call("PUT", "/v1/kv/default/k?expect=a+b%FF", data=b"new")
    assert response.status == 200
    response, _ = await api.call("PUT", "/v1/kv/default/k?expect_base64=bmV3", data=b"newer")
    assert response.status == 200
    document = await api.problem("DELETE", "/v1/kv/default/absent?expect=")
    assert (document["code"], document["current"]) == ("CONFLICT", None)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"If-Match": "1"}, ""),
        ({"If-Match": '"x"'}, ""),
        ({"If-Match": '"0"'}, ""),
        ({"If-Match": 'W/"1"'}, ""),
        ({"If-Match": '"1", "2"'}, ""),
        ({"If-Match": "*"}, ""),
        ({"If-Match": '"99999999999999999999"'}, ""),
        ({"If-None-Match": '"1"'}, ""),
        ({"If-Match": '"1"', "If-None-Match": "*"}, ""),
        ({"If-Match": '"1"'}, "?expect=x"),
        ({}, "?expect=x&expect_base64=eA"),
        ({}, "?expect=x&expect=y"),
        ({}, "?expect_base64=%21"),
        ({}, "?expect=%zz"),
        ({}, "?expct=x"),
        ({}, "?timeout_ms=0"),
        ({}, "?timeout_ms=60001"),
        ({}, "?timeout_ms=-1"),
        ({}, "?timeout_ms=1e3"),
        ({"Kv-Timeout-Ms": "soon"}, ""),
        ({"Idempotency-Key": ""}, ""),
        ({"Idempotency-Key": "x" * 256}, ""),
        ({"Idempotency-Key": "x", "Kv-Issued-At": "now"}, ""),
        ({"Content-Encoding": "gzip"}, ""),
    ],
)
async def test_a_condition_or_option_that_cannot_be_kept_is_refused(
    api: Served, headers: dict[str, str], query: str
) -> None:
    document = await api.problem("PUT", f"/v1/kv/default/k{query}", data=b"v", headers=headers)
    assert document["code"] == "INVALID"
    assert not api.router.state.data


async def test_reads_know_etags(api: Served) -> None:
    await api.call("PUT", "/v1/kv/default/k", data=b"v")
    for known in ('"1"', 'W/"1"', '"9", "1"', "*"):
        response, body = await api.call("GET", "/v1/kv/default/k", headers={"If-None-Match": known})
        assert (response.status, response.headers["ETag"], body) == (304, '"1"', b"")
    response, _ = await api.call("GET", "/v1/kv/default/k", headers={"If-None-Match": '"2"'})
    assert response.status == 200
    response, _ = await api.call("GET", "/v1/kv/default/k", headers={"If-Match": "*"})
    assert response.status == 200
    assert (await api.problem("GET", "/v1/kv/default/k", headers={"If-Match": '"2"'}))["code"] == "CONFLICT"


async def test_deleting_what_is_not_there_succeeds(api: Served) -> None:
    response, body = await api.call("DELETE", "/v1/kv/default/k")
    assert (response.status, json.loads(body)) == (200, {"deleted": False, "revision": 0})


async def test_an_idempotency_key_is_a_session_of_one_mutation(api: Served) -> None:
    headers = {"Idempotency-Key": "order-7"}
    first, _ = await api.call("PUT", "/v1/kv/default/k", data=b"v", headers=headers)
    await api.call("PUT", "/v1/kv/default/k", data=b"other")
    again, body = await api.call("PUT", "/v1/kv/default/k", data=b"v", headers=headers)
    assert json.loads(body) == {"revision": 1}
    assert first.headers["ETag"] == again.headers["ETag"] == '"1"'
    assert api.router.state.data[b"k"].value == b"other"
    call = api.router.calls[-1]
    assert call["session"] == blake2b(b"default\0order-7", digest_size=16).digest()
    assert (call["low"], call["issued_at"]) == (1, STAMP_MS)
    assert call["operations"] == [Put(1, b"k", b"v")]
    await api.call("DELETE", "/v1/kv/default/k", headers={"Idempotency-Key": "x", "Kv-Issued-At": "123"})
    assert api.router.calls[-1]["issued_at"] == 123
    assert api.router.calls[-1]["operations"] == [Delete(1, b"k")]
    await api.call("DELETE", "/v1/kv/default/k")
    assert (api.router.calls[-1]["session"], api.router.calls[-1]["low"]) == (b"", 0)


async def test_stale_reads_tell_from_how_far_back(api: Served) -> None:
    await api.call("PUT", "/v1/kv/default/k", data=b"v")
    response, _ = await api.call("GET", "/v1/kv/default/k?consistency=stale&max_staleness_ms=50")
    assert (response.headers["Kv-Applied-Index"], response.headers["Kv-Age-Ms"]) == ("42", "7")
    assert api.router.calls[-1]["max_staleness_ms"] == 50
    response, _ = await api.call("GET", "/v1/kv/default/k")
    assert "Kv-Age-Ms" not in response.headers
    assert api.router.calls[-1]["operations"] == [Get(0, b"k")]
    for query in ("consistency=eventual", "max_staleness_ms=5", "consistency=stale&max_staleness_ms=x"):
        assert (await api.problem("GET", f"/v1/kv/default/k?{query}"))["code"] == "INVALID"


async def test_deadlines_reach_the_router(api: Served) -> None:
    await api.call("GET", "/v1/kv/default/k?timeout_ms=17")
    await api.call("GET", "/v1/kv/default/k", headers={"Kv-Timeout-Ms": "18"})
    await api.call("GET", "/v1/kv/default/k")
    assert [call["timeout_ms"] for call in api.router.calls] == [17, 18, 5_000]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/json"),
        ("application/msgpack", "application/msgpack"),
        ("text/html, */*;q=0.5", "application/octet-stream"),
        ("application/json;q=0.1, application/x-msgpack", "application/msgpack"),
        ("text/plain", "application/octet-stream"),
        ("application/json;q=nan", "application/octet-stream"),
    ],
)
async def test_accept_chooses_the_form(api: Served, accept: str, kind: str) -> None:
    await api.call("PUT", "/v1/kv/default/k%FF", data=b"text")
    response, body = await api.call("GET", "/v1/kv/default/k%FF", headers={"Accept": accept})
    assert response.headers["Content-Type"] == kind
    revisions = {"mod_revision": 1, "create_revision": 1, "version": 1}
    if kind == "application/json":
        assert json.loads(body) == {"key_base64": "a/8=", "value": "text", **revisions}
    elif kind == "application/msgpack":
        assert msgspec.msgpack.decode(body) == {"key": b"k\xff", "value": b"text", **revisions}
    else:
        assert body == b"text"


@pytest.mark.parametrize("code", list(Code))
async def test_every_code_has_its_status_and_says_whether_it_happened(api: Served, code: Code) -> None:
    info = CODES[code]
    api.router.fail = ERRORS[code]("because", retry_after_ms=1_500 if info.retry_after_ms else 0)
    response, body = await api.call("PUT", "/v1/kv/default/k", data=b"v")
    document = json.loads(body)
    assert (response.status, document["code"], document["detail"]) == (info.http_status, code.name, "because")
    assert document["outcome"] == ("failed" if info.definite else "unknown")
    assert response.headers.get("Retry-After") == ("2" if info.retry_after_ms else None)


async def test_an_error_may_be_less_definite_than_its_code(api: Served) -> None:
    api.router.fail = ERRORS[Code.UNAVAILABLE]("lost the leader", definite=False)
    assert (await api.problem("PUT", "/v1/kv/default/k", data=b"v"))["outcome"] == "unknown"
    api.router.fail = Timeout(detail=None)
    assert (await api.problem("PUT", "/v1/kv/default/k", data=b"v"))["outcome"] == "unknown"


async def test_paths_and_methods_that_are_not_there(api: Served) -> None:
    assert (await api.problem("GET", "/v2/kv"))["code"] == "NOT_FOUND"
    assert (await api.problem("GET", "/v1/kv"))["code"] == "NOT_FOUND"
    response, body = await api.call("POST", "/v1/kv/default/k", data=b"v")
    assert (response.status, response.headers["Allow"]) == (405, "DELETE,GET,HEAD,PUT")
    assert json.loads(body)["code"] == "INVALID"
