"""The power of all nodes' disk fails while clients write: what was acknowledged had been synced, so it is there.

Method: the data of three real processes lies on one small ext4, which is shut down without a flush of its journal; that
loses what was only written, as a power cut does (SIGKILL does not: the kernel keeps what a dead process wrote).
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from kvstore.base.limits import MIB
from tests.crash.load import Load
from tests.crash.processes import ProcessCluster
from tests.crash.small_disk import small_disk

CUTS = 3
DISK_BYTES = 4_096 * MIB  # sparse; a smaller one would count as nearly full


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["all-nodes", "one-node"])
async def test_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path, whole: bool) -> None:
    """`whole`: all nodes lie on the disk; otherwise only n1, and the others go on."""
    rng = random.Random(7)
    with small_disk(tmp_path, size_bytes=DISK_BYTES) as disk:
        on_disk = ("n1", "n2", "n3") if whole else ("n1",)
        disks = dict.fromkeys(on_disk, disk.path)
        async with (
            ProcessCluster(tmp_path, disks=disks, flags=("--flush-interval-ms", "300")) as cluster,
            cluster.client() as kv,
            Load(kv, pause=0.002) as load,
        ):
            for number in range(CUTS):
                await asyncio.sleep(rng.uniform(0.3, 1.0))
                disk.cut_power()
                # Nothing can be acknowledged by these any more; who notices first ends by itself.
                await asyncio.sleep(0.1)
                await asyncio.gather(*(cluster[name].kill() for name in on_disk))
                disk.unmount()
                disk.mount()
                await cluster.start(*on_disk)
                await cluster.wait_ready()
                await load.check()
                print(f"power cut {number + 1}: {load.summary()}")
            await load.stop()
            await load.check()
            assert load.told.counters
            for name in on_disk:
                assert not [line for line in cluster[name].output() if "log records behind" in line]
