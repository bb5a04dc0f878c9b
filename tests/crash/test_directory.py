"""Directories that are not what the node's start finds them to be: wiped, in use, of another node, of nobody.

Method: real processes; each refusal is one line on stderr and exit code 2.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.crash.processes import NodeProcess, ProcessCluster
from tests.ports import free_port

ALL = ("n1", "n2", "n3")


async def _refusal(node: NodeProcess, *flags: str) -> str:
    """Start it, and the one line with which it refuses."""
    since = node.output_bytes
    await node.start(*flags)
    assert await node.ended() == 2, node.output(since)
    lines = [line for line in node.output(since) if line.startswith("kvstore: ")]
    assert len(lines) == 1, node.output(since)
    assert "Traceback" not in "".join(node.output(since))
    return lines[0]


@pytest.mark.slow
async def test_wiped_node_joins_as_a_new_one_once_the_old_is_removed(tmp_path: Path) -> None:
    """Under its old name it would vote twice in one term, so the name is taken until the old node is declared gone."""
    async with ProcessCluster(tmp_path) as cluster, cluster.client() as kv:
        written = {b"key-%03d" % n: b"v" * 100 for n in range(200)}
        await kv.put_many(written)
        old_id = (await cluster.get("n3", "/v1/status"))["node_id"]
        await cluster.kill("n3")
        shutil.rmtree(cluster["n3"].data)
        refusal = await _refusal(cluster["n3"])
        assert "belongs to another node" in refusal
        assert "kvctl node remove n3" in refusal
        await cluster.remove_member("n1", "n3")
        await cluster.start("n3")
        await cluster.wait_ready()
        await cluster.wait_replicated(*ALL)
        assert (await cluster.get("n3", "/v1/status"))["node_id"] != old_id
        await cluster.kill("n1")  # now the new one is needed
        await kv.put(b"after", b"1")
        assert {item.key: item.value async for item in kv.scan(prefix=b"key-")} == written


@pytest.mark.slow
async def test_directories_that_are_refused(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:
        second = NodeProcess("n1", tmp_path, port=free_port(), flags=[])
        refusal = await _refusal(second)
        assert f"is in use by process {cluster['n1'].pid}" in refusal
        await cluster["n1"].stop()

        (tmp_path / "n2").symlink_to(tmp_path / "n1")
        refusal = await _refusal(NodeProcess("n2", tmp_path, port=free_port(), flags=[]))
        assert "belongs to node n1, not n2" in refusal

        (tmp_path / "n3").mkdir()
        (tmp_path / "n3" / "holiday.jpg").touch()
        refusal = await _refusal(NodeProcess("n3", tmp_path, port=free_port(), flags=[]))
        assert "is no directory of kvstore" in refusal

        format_file = tmp_path / "n1" / "FORMAT"
        sound = format_file.read_text()
        format_file.write_text(sound.replace("format 1", "format 999"))
        assert "format 999" in await _refusal(second)
        format_file.write_text("")
        assert "is damaged" in await _refusal(second)
        format_file.write_text(sound)
        await cluster.start("n1")
        await cluster.wait_ready()
