"""Scans and delete-ranges over shards and pages, also while the shards change."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.sim.loop import simulate, simulated
from kvstore.base.errors import Code
from kvstore.client import Forbidden, KVError, Timeout
from tests.client.fake_client import client_of
from tests.client.fake_cluster import Act, Cluster, Refuse

KEYS = [f"{letter}{number}" for letter in "abcdefg" for number in range(4)]
bounds = st.sampled_from(["", *KEYS, "a", "b", "c2x", "g", "zz"])


@settings(max_examples=60, deadline=None)
@given(
    splits=st.sets(st.sampled_from([b"b", b"b2", b"d1", b"f", b"g3"])).map(sorted),
    start=bounds,
    end=bounds,
    limit=st.one_of(st.none(), st.integers(0, 30)),
    page_keys=st.integers(1, 10),
    page_bytes=st.integers(1, 30),
    reverse=st.booleans(),
)
def test_a_scan_is_the_slice_of_all_keys(
    splits: list[bytes], start: str, end: str, limit: int | None, page_keys: int, page_bytes: int, reverse: bool
) -> None:
    if end and start > end:
        start, end = end, start
    expected = sorted(key for key in KEYS if start <= key and (not end or key < end))
    expected = (expected[::-1] if reverse else expected)[:limit]

    async def body() -> None:
        async with client_of(Cluster(splits=tuple(splits))) as kv:
            await kv.put_many((key, key) for key in KEYS)
            items = kv.scan(
                start=start, end=end, limit=limit, reverse=reverse, page_keys=page_keys, page_bytes=page_bytes
            )
            assert [item.key.decode() async for item in items] == expected

    simulate(body())


@simulated
async def test_a_scan_by_prefix_and_a_page() -> None:
    async with client_of(Cluster(splits=(b"c1",))) as kv:
        await kv.put_many((key, "v") for key in KEYS)
        assert [item.key async for item in kv.scan(prefix="c")] == [b"c0", b"c1", b"c2", b"c3"]
        page = await kv.scan_page(prefix="c")
        assert [item.key for item in page.items] == [b"c0"]
        assert page.cursor == b"c1"
        page = await kv.scan_page(start=page.cursor, end="d", limit=2)
        assert (len(page.items), page.cursor) == (2, b"c3")
        page = await kv.scan_page(prefix="c", reverse=True)
        assert [item.key for item in page.items] == [b"c3", b"c2", b"c1"]
        assert page.cursor == b"c1"


@simulated
async def test_a_scan_survives_splits_merges_and_lost_connections() -> None:
    cluster = Cluster(splits=(b"d",))
    async with client_of(cluster) as kv:
        await kv.put_many((key, "v") for key in KEYS)
        seen = []
        async for item in kv.scan(page_keys=3):
            seen.append(item.key.decode())
            if len(seen) == 3:
                cluster.split(2, b"b1", child=7, leader="n3")
            if len(seen) == 9:
                cluster.then(Act.DROP_BEFORE, Act.GARBAGE)
            if len(seen) == 12:
                cluster.merge(7, 3)
        assert seen == KEYS


@simulated
async def test_leaving_a_scan_early() -> None:
    async with client_of(Cluster()) as kv:
        await kv.put_many((key, "v") for key in KEYS)
        items = kv.scan(page_keys=2)
        async for item in items:
            assert item.key == b"a0"
            break
        await items.aclose()  # type: ignore[attr-defined]


@simulated
async def test_delete_range() -> None:
    cluster = Cluster(splits=(b"c", b"e2"))
    async with client_of(cluster) as kv:
        await kv.put_many((key, "v") for key in KEYS)
        assert await kv.delete_range("b1", "e3") == 14
        assert await kv.delete_range("b1", "e3") == 0
        assert await kv.delete_range(prefix="a") == 4
        assert [item.key.decode() async for item in kv.scan()] == ["b0", *KEYS[19:]]
        assert await kv.delete_range("", "") == 10


@simulated
async def test_delete_range_in_many_steps() -> None:
    cluster = Cluster(splits=(b"k1500",))
    async with client_of(cluster) as kv:
        await kv.put_many((f"k{i:04}", "") for i in range(3_500))
        assert await kv.delete_range(prefix="k") == 3_500
        assert [item async for item in kv.scan()] == []


@simulated
async def test_a_step_whose_answer_was_lost_is_counted_once() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put_many((f"k{i:04}", "") for i in range(2_500))
        cluster.then(Act.DROP_AFTER, Act.DROP_AFTER, Act.DROP_AFTER)
        assert await kv.delete_range("", "") == 2_500


@simulated
async def test_a_merge_between_two_attempts_of_a_step_leaves_nothing_out() -> None:
    """The first attempt deleted the left shard and its answer was lost; then the shards merged. The answer to the
    retry is that of the left part, and must not be taken for the whole."""
    cluster = Cluster(splits=(b"d",))
    async with client_of(cluster) as kv:
        await kv.put_many((key, "v") for key in KEYS)
        cluster.then(Act.HANG_AFTER)
        call = asyncio.ensure_future(kv.delete_range("", ""))
        await asyncio.sleep(0.1)
        cluster.merge(2, 3)
        for peer in list(cluster.nodes["n1"].connections):
            peer.close()
        assert await call == len(KEYS)
        assert [item async for item in kv.scan()] == []


@simulated
async def test_a_split_between_two_attempts_of_a_step() -> None:
    for act in (Act.HANG, Act.HANG_AFTER):
        cluster = Cluster()
        async with client_of(cluster) as kv:
            await kv.put_many((key, "v") for key in KEYS)
            cluster.then(act)
            call = asyncio.ensure_future(kv.delete_range("", ""))
            await asyncio.sleep(0.1)
            cluster.split(2, b"d", child=9, leader="n2")
            for peer in list(cluster.nodes["n1"].connections):
                peer.close()
            assert await call == len(KEYS)
            assert [item async for item in kv.scan()] == []


@simulated
async def test_a_failure_after_the_first_step_is_unknown_and_tells_the_count() -> None:
    cluster = Cluster(splits=(b"d",))
    async with client_of(cluster) as kv:
        await kv.put_many((key, "v") for key in KEYS)
        cluster.then(None, Refuse(Code.FORBIDDEN))
        with pytest.raises(Timeout, match="12 keys were deleted") as caught:
            await kv.delete_range("", "")
        assert (caught.value.outcome, caught.value.detail) == ("unknown", 12)
        cluster.then(Refuse(Code.FORBIDDEN))
        with pytest.raises(Forbidden) as forbidden:
            await kv.delete_range("", "")
        assert forbidden.value.outcome == "failed"


@simulated
async def test_a_batch_that_a_split_cut_in_two() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.split(2, b"m", child=9, leader="n2")
        with pytest.raises(KVError, match="different") as caught:
            await kv.batch().put("a", "2").put("z", "2").commit()
        assert caught.value.outcome == "failed"
        assert await kv.get_many(["a", "z"]) == [b"1", None]


@simulated
async def test_a_batch_that_may_have_been_done_before_the_split_is_unknown() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.then(Act.HANG_AFTER)
        call = asyncio.ensure_future(kv.batch().put("a", "2").put("z", "2").commit())
        await asyncio.sleep(0.1)
        cluster.split(2, b"m", child=9, leader="n2")
        for peer in list(cluster.nodes["n1"].connections):
            peer.close()
        with pytest.raises(Timeout) as caught:
            await call
        assert caught.value.outcome == "unknown"
