"""The client on real nodes in this process: the guide's programs as they stand, and a leader that dies."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path

from kvstore.client import Conflict, KVError
from kvstore.testing import LocalCluster

GUIDE = Path(__file__).parents[2] / "docs" / "client.md"


async def test_the_programs_of_the_guide_run() -> None:
    programs = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(programs) == 3
    async with LocalCluster(nodes=1) as cluster:
        for text in programs:
            program = await asyncio.create_subprocess_exec(
                sys.executable,
                "-X",
                "dev",
                "-c",
                re.sub(r"127\.0\.0\.1:700\d", cluster.address("n1"), text),
                stderr=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            _, errors = await program.communicate()
            assert program.returncode == 0, errors.decode()
            assert errors == b""


async def test_counters_over_the_death_of_a_leader() -> None:
    """Compare-and-set increments: each acknowledged one counts once, and no caller sees an error."""
    acknowledged: Counter[str] = Counter()
    progress: asyncio.Queue[None] = asyncio.Queue()
    stop = asyncio.Event()
    async with LocalCluster(nodes=3) as cluster, cluster.client(timeout=20) as kv:

        async def count(name: str) -> None:
            while not stop.is_set():
                record = await kv.get_record(name)
                try:
                    await kv.cas(
                        name,
                        str(int(record.value) + 1 if record is not None else 1),
                        revision=record.mod_revision if record is not None else 0,
                    )
                except Conflict:
                    continue
                acknowledged[name] += 1
                progress.put_nowait(None)

        async def go_on() -> None:
            """Until a hundred more are acknowledged."""
            while not progress.empty():
                progress.get_nowait()
            for _ in range(100):
                await progress.get()

        async with asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(count(f"c{number % 4}"))
            await go_on()
            leader = await cluster.leader()
            await cluster.kill(leader)
            await go_on()
            await cluster.start(leader)
            await go_on()
            stop.set()
        assert {name: int(await kv.get(name) or 0) for name in acknowledged} == acknowledged


async def test_without_a_quorum_calls_end_with_the_right_outcome() -> None:
    async with LocalCluster(nodes=3) as cluster, cluster.client() as kv:
        await kv.put("a", "1")
        leader = await cluster.leader()
        for name in [name for name in cluster.nodes if name != leader]:
            await cluster.kill(name)
        outcomes = await asyncio.gather(kv.put("a", "2", timeout=0.5), kv.get("a", timeout=0.5), return_exceptions=True)
        assert isinstance(outcomes[1], KVError)
        assert outcomes[1].outcome == "failed"
        assert isinstance(outcomes[0], KVError)
        assert outcomes[0].outcome == "unknown"
