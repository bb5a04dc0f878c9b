"""Atomic batches over REST, in JSON and MessagePack. Fuzz: any body is a batch within the limits, or refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.api.batch import decode_batch
from kvstore.base.errors import Invalid, TooLarge
from kvstore.base.limits import Limits
from kvstore.base.operations import Batch, Cas, Delete, Get, Put
from tests.api.conftest import Served

PATH = "/v1/batch/default"
LIMITS = Limits()


async def test_a_batch_is_one_revision_and_answers_in_order(api: Served) -> None:
    await api.call("PUT", "/v1/kv/default/g", data=b"\xff")
    operations = [
        {"op": "put", "key": "a", "value": "1"},
        {"op": "put", "key_base64": "/w==", "value_base64": "/w=="},
        {"op": "delete", "key": "absent"},
        {"op": "get", "key": "g"},
        {"op": "get", "key": "absent"},
        {"op": "cas", "key": "c", "value": "new", "absent": True},
    ]
    response, body = await api.call("POST", PATH, json={"operations": operations})
    assert (response.status, response.headers["ETag"]) == (200, '"2"')
    found = {"value_base64": "/w==", "mod_revision": 1, "create_revision": 1, "version": 1}
    revision = {"revision": 2}
    assert json.loads(body) == {
        "revision": 2,
        "results": [revision, revision, {"revision": 0}, found, None, revision],
    }
    assert api.router.calls[-1]["operations"] == [
        Batch(
            0,
            [
                Put(0, b"a", b"1"),
                Put(0, b"\xff", b"\xff"),
                Delete(0, b"absent"),
                Get(0, b"g"),
                Get(0, b"absent"),
                Cas(0, b"c", b"new", 0, None),
            ],
        )
    ]


async def test_messagepack_carries_binary(api: Served) -> None:
    operations = [
        {"op": "put", "key": b"\xff", "value": b"\0"},
        {"op": "cas", "key": b"k", "value": None, "revision": 0},
        {"op": "get", "key": b"\xff"},
    ]
    response, body = await api.call(
        "POST",
        PATH,
        data=msgspec.msgpack.encode({"operations": operations}),
        headers={"Content-Type": "application/msgpack", "Accept": "application/msgpack", "Idempotency-Key": "7"},
    )
    assert response.status == 200
    assert msgspec.msgpack.decode(body)["results"][2] is None  # a batch reads what was there before it
    assert api.router.calls[-1]["operations"][0].seq == 1


async def test_a_failed_condition_undoes_nothing_and_says_which(api: Served) -> None:
    await api.call("PUT", "/v1/kv/default/k", data=b"old")
    operations = [{"op": "put", "key": "a", "value": "1"}, {"op": "cas", "key": "k", "value": "2", "expected": "x"}]
    document = await api.problem("POST", PATH, json={"operations": operations})
    assert (document["code"], document["index"], document["current"]["value"]) == ("CONFLICT", 1, "old")
    assert list(api.router.state.data) == [b"k"]
    operations[1] = {"op": "cas", "key": "k", "expected_base64": "b2xk"}
    response, _ = await api.call("POST", PATH, json={"operations": operations})
    assert response.status == 200
    assert list(api.router.state.data) == [b"a"]


def one(**fields: Any) -> bytes:
    return json.dumps({"operations": [fields]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"operations": []}',
        b'{"operations": [{}], "x": 1}',
        b'{"operations": [{"op": "put"}]}',
        b"[" * 100_000,
        b'{"operations": ' * 50_000,
        one(op="put", key="a"),
        one(op="put", key="", value="1"),
        one(op="put", key="a", key_base64="YQ==", value="1"),
        one(op="put", key="a", value="1", revision=1),
        one(op="put", key="a", value="1", expcted="x"),
        one(op="put", key_base64="!", value="1"),
        b'{"operations": [{"op": "put", "key": "\\ud800a", "value": "1"}]}',
        b'{"operations": [{"op": "put", "key": "\xff", "value": "1"}]}',
        one(op="delete", key="a", value="1"),
        one(op="get", key="a", absent=True),
        one(op="cas", key="a", value="1"),
        one(op="cas", key="a", value="1", absent=False),
        one(op="cas", key="a", value="1", absent=True, revision=0),
        one(op="cas", key="a", value="1", revision=-1),
        one(op="cas", key="a", value="1", revision=1 << 63),
        one(op="cas", key="a", value="1", revision=1.5),
        one(op="drop", key="a"),
        one(op="delete-range", key="a"),
    ],
)
async def test_a_malformed_batch_is_refused(api: Served, body: bytes) -> None:
    document = await api.problem("POST", PATH, data=body, headers={"Content-Type": "application/json"})
    assert document["code"] == "INVALID"
    assert not api.router.calls


async def test_limits_of_batches(api: Served) -> None:
    put = {"op": "put", "key": "a", "value": ""}
    response, _ = await api.call("POST", PATH, json={"operations": [put] * 1_000})
    assert response.status == 200
    long_value = {**put, "value": "x" * (LIMITS.value_bytes_max + 1)}
    for operations in ([put] * 1_001, [long_value], [{**put, "key": "k" * 481}]):
        with pytest.raises(TooLarge):
            decode_batch(json.dumps({"operations": operations}).encode(), "application/json", LIMITS)


async def test_other_kinds_of_body(api: Served) -> None:
    put = one(op="put", key="a", value="1")
    document = await api.problem("POST", PATH, data=put, headers={"Content-Type": "text/xml"})
    assert document["code"] == "INVALID"
    response, _ = await api.call("POST", PATH, data=put)  # nothing was said: JSON
    assert response.status == 200


MALFORMED_PACKED = [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x81\xaaoperations\xdd\xff\xff\xff\xff", b"\x91" * 100_000]


@pytest.mark.parametrize("body", MALFORMED_PACKED)
def test_hostile_messagepack_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        decode_batch(body, "application/msgpack", LIMITS)


FIELDS = st.fixed_dictionaries(
    {"op": st.sampled_from(["put", "delete", "cas", "get", "x"])},
    optional={
        "key": st.binary(max_size=3) | st.none() | st.text(max_size=3),
        "value": st.binary(max_size=3) | st.none() | st.integers(),
        "revision": st.integers() | st.none(),
        "expected": st.binary(max_size=3),
        "absent": st.booleans(),
        "more": st.none(),
    },
)


@settings(max_examples=300, deadline=None)
@given(operations=st.lists(FIELDS, max_size=3), junk=st.binary(max_size=8), cut=st.integers(0, 60))
def test_whatever_the_body_it_is_a_batch_or_refused(operations: list[Any], junk: bytes, cut: int) -> None:
    packed = _encode({"operations": operations})
    for body in (packed, packed[:cut] + junk + packed[cut:], junk):
        for kind in ("application/msgpack", "application/json"):
            try:
                batch = decode_batch(body, kind, LIMITS)
            except (Invalid, TooLarge):
                continue
            assert all(0 < len(operation.key) <= 480 for operation in batch)
            assert all(
                (operation.revision is None) != (operation.expected is None)
                for operation in batch
                if isinstance(operation, Cas)
            )


def _encode(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b"\xc1"
