"""A cluster inside the caller's process: it leaves nothing behind, and comes as a pytest fixture."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from kvstore.base.errors import StartRefused
from kvstore.testing import LocalCluster
from tests.node.test_http import FAST, running, url


def _held() -> set[str]:
    """What this process has: threads, and what is open, as far as it is a file or a socket."""
    found = {f"thread {thread.ident} {thread.name}" for thread in threading.enumerate()}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(("/", "socket:")):
            found.add(target)
    return found


async def _nothing_left(before: set[str], folders: set[str]) -> None:
    async with asyncio.timeout(5):
        while {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    gc.collect()
    left = {one for one in _held() - before if " asyncio_" not in one}  # the loop's own pool
    assert not left
    assert set(os.listdir(tempfile.gettempdir())) & {name for name in folders if name.startswith("kvstore-")} == set()


def _folders() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("kvstore-")}


@pytest.mark.parametrize("nodes", [1, 3])
async def test_nothing_is_left_behind(nodes: int) -> None:
    before, own = _held(), ""
    async with LocalCluster(nodes=nodes, **FAST) as cluster, cluster.client() as kv:
        await kv.put(b"k", b"v")
        own = cluster.folder.name
        if nodes == 3:
            await cluster.kill("n3")
            await kv.get(b"k")
    await _nothing_left(before, {own} & _folders())


async def test_cluster_that_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    """One node is refused at once; the others, which wait for it, are stopped."""
    async with LocalCluster(nodes=1, data=tmp_path, **FAST):
        pass
    (tmp_path / "n1").rename(tmp_path / "n2")
    before = _held()
    with pytest.raises(StartRefused, match="belongs to node n1, not n2"):
        async with LocalCluster(nodes=3, data=tmp_path, **FAST):
            pytest.fail("it started")
    await _nothing_left(before, set())


async def test_cancelled_start_leaves_nothing_behind() -> None:
    """Ctrl-C while the founders wait for each other."""
    before = _held()

    async def enter() -> None:
        async with LocalCluster(nodes=3, **FAST):
            await asyncio.sleep(60)

    for seconds in (0.01, 0.05, 0.2, 0.6):
        entering = asyncio.ensure_future(enter())
        await asyncio.sleep(seconds)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
    await _nothing_left(before, set())


async def test_given_folder_is_kept_and_used_again(tmp_path: Path) -> None:
    for value in (None, b"v"):
        async with LocalCluster(nodes=1, data=tmp_path, **FAST) as cluster, cluster.client() as kv:
            assert await kv.get(b"k") == value
            await kv.put(b"k", b"v")
    assert (tmp_path / "n1").is_dir()


def test_fixture_comes_with_the_package(tmp_path: Path) -> None:
    """As a user has it: a test file anywhere, no conftest, no import of the plugin."""
    (tmp_path / "test_user.py").write_text(
        "import pytest\n"
        "@pytest.mark.asyncio\n"
        "async def test_store(kvstore_cluster):\n"
        "    async with kvstore_cluster.client() as kv:\n"
        "        await kv.put(b'k', b'v')\n"
        "        await kvstore_cluster.kill(await kvstore_cluster.leader())\n"
        "        assert await kv.get(b'k') == b'v'\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


# -- the cluster's secret


async def test_cluster_with_a_secret_works_and_grows() -> None:
    async with running(nodes=1, cluster_secrets=(b"s" * 32,)) as (cluster, http):
        await cluster.add("n2")

        async def grown() -> bool:
            rows = [row for row in cluster.nodes["n1"].admin.shards() if row["id"] == 2]
            return len([one for one in rows[0]["replicas"] if one["role"] == "voter"]) == 2

        await cluster.until(grown)
        async with http.put(url(cluster, "n2", "/v1/kv/default/k"), data=b"v") as response:
            assert response.status == 200


@pytest.mark.parametrize("secrets", [(), (b"t" * 32,)])
async def test_other_secret_is_refused_and_named_on_both_sides(
    secrets: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"cluster_secrets": (b"s" * 32,), "start_timeout_ms": 1_500}
    async with LocalCluster(nodes=1, **FAST, **settings) as cluster:
        cluster._settings["cluster_secrets"] = secrets
        with pytest.raises(StartRefused, match="cluster secret"):
            await cluster.add("n2")
        told = [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()]
        assert len(told) == 1
        assert "cluster secret" in told[0]
        assert [row["name"] for row in await cluster.nodes["n1"].admin.members()] == ["n1"]
