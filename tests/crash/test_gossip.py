"""Goal: gossip tells paused, killed and restarted processes apart, and the cluster's secret is changed while all run.

Method: real processes; what they believe is read from their metrics and logs. Gossip is five times as fast as usual, so
that a suspicion is dropped or becomes a death within seconds.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import time
from pathlib import Path

import aiohttp
import pytest

from kvstore.gossip.member import INCARNATIONS_PER_BOOT
from kvstore.gossip.seal import Seal
from tests.crash.load import Load
from tests.crash.processes import ProcessCluster, until

QUICK = ("--gossip-ms", "200")
OLD, NEW = "the old secret, long enough", "the new secret, long enough"
_MEMBER = re.compile(r"member (\S+) \(node ([0-9a-f]{8}) at \S+, incarnation (\d+)\) is (\w+)")


async def gossip(cluster: ProcessCluster, name: str, kind: str = "members") -> dict[str, float]:
    """The node's kvstore_gossip_... by its label; empty when it does not answer."""
    url = f"http://{cluster[name].address}/metrics"
    try:
        async with aiohttp.ClientSession() as http, http.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return {}
    found = re.findall(rf'^kvstore_gossip_{kind}(?:_total)?{{\w+="(\w+)"}} (\S+)$', text, re.MULTILINE)
    return {label: float(number) for label, number in found}


async def all_alive(cluster: ProcessCluster) -> None:
    names = [name for name, node in cluster.nodes.items() if node.running]

    async def alive() -> bool:
        return all([(await gossip(cluster, name)).get("alive") == len(names) for name in names])

    await until(alive)


def told(cluster: ProcessCluster, by: str, of: str, since: int = 0) -> list[tuple[str, int, str]]:
    """(node id, incarnation, state) at each change of the member's state, as the node's log has them."""
    lines = cluster[by].output(since)
    found = [match.groups() for line in lines if (match := _MEMBER.search(line)) is not None]
    return [(node, int(incarnation), state) for name, node, incarnation, state in found if name == of]


async def until_told(cluster: ProcessCluster, by: str, of: str, state: str, *, since: int, seconds: float = 30) -> None:
    async def is_told() -> bool:
        return state in [one for *_, one in told(cluster, by, of, since)]

    await until(is_told, seconds=seconds)


@pytest.mark.slow
async def test_a_paused_process_comes_back_as_the_same_member(tmp_path: Path) -> None:
    """Once it wakes while it is only suspected, and refutes; once after it was declared dead."""
    async with ProcessCluster(tmp_path, flags=QUICK) as cluster:
        await all_alive(cluster)
        node, first, _ = told(cluster, "n1", "n3")[0]
        for state in ("suspect", "dead"):
            since = cluster["n1"].output_bytes
            cluster["n3"].send(signal.SIGSTOP)
            await until_told(cluster, "n1", "n3", state, since=since)
            cluster["n3"].send(signal.SIGCONT)
            await until_told(cluster, "n1", "n3", "alive", since=since)
            await all_alive(cluster)
            changes = told(cluster, "n1", "n3", since)
            assert {one for one, *_ in changes} == {node}
            assert [one for *_, one in changes].count("dead") == (state == "dead")
            _, incarnation, last = changes[-1]
            assert last == "alive"
            assert incarnation > first  # it has refuted, and is still the same process
            assert incarnation // INCARNATIONS_PER_BOOT == 1
            first = incarnation
        await cluster.wait_ready()


@pytest.mark.slow
async def test_a_killed_and_restarted_process_has_a_higher_incarnation(tmp_path: Path) -> None:
    """Once after it was declared dead, once before anybody has missed it."""
    async with ProcessCluster(tmp_path, flags=QUICK) as cluster:
        await all_alive(cluster)
        since = cluster["n1"].output_bytes
        for starts in (2, 3):
            await cluster.kill("n3")
            if starts == 2:
                await until_told(cluster, "n1", "n3", "dead", since=since)
            await cluster.start("n3")

            async def is_back(starts: int = starts) -> bool:
                changes = told(cluster, "n1", "n3", since)
                return bool(changes) and (changes[-1][1] // INCARNATIONS_PER_BOOT, changes[-1][2]) == (starts, "alive")

            await until(is_back)
            await all_alive(cluster)
        assert len({node for node, *_ in told(cluster, "n1", "n3")}) == 1


@pytest.mark.slow
async def test_a_flood_of_noise_is_not_noticed(tmp_path: Path) -> None:
    """10,000 datagrams a second to each of three nodes in turn, forged and garbage, while clients write."""
    file = tmp_path / "secret"
    file.write_text(OLD)
    flags = (*QUICK, "--cluster-secret-file", str(file))
    async with ProcessCluster(tmp_path, flags=flags) as cluster, cluster.client() as kv, Load(kv, pause=0.01) as load:
        await all_alive(cluster)
        status = await cluster.get("n1", "/v1/status")
        since = {name: node.output_bytes for name, node in cluster.nodes.items()}
        for name, node in cluster.nodes.items():
            sent = await _flood(node.address, cluster_id=status["cluster_id"], seconds=1.0)
            await load.accepted(time.monotonic(), seconds=10)
            refused = await gossip(cluster, name, "refused")
            assert sum(refused.values()) > sent * 0.5, (sent, refused)  # the kernel may have dropped some
            assert {"forged", "size", "version"} <= set(refused)
        await load.stop()
        await load.check()
        assert not load.told.errors, load.told.errors[:3]
        await all_alive(cluster)
        for name in cluster.nodes:
            for other in cluster.nodes:
                assert told(cluster, name, other, since[name]) == []  # nobody has changed its state


async def _flood(address: str, *, cluster_id: str, seconds: float) -> int:
    """How many were sent."""
    host, _, port = address.rpartition(":")
    forger = Seal(cluster=cluster_id, node="f" * 32, boots=1, secrets=(b"a guess of the secret",))
    rng = random.Random(3)
    noise = [forger.wrap(rng.randbytes(rng.randrange(1, 1_300))) for _ in range(500)]
    noise += [rng.randbytes(rng.randrange(0, 1_500)) for _ in range(500)]
    sent, began = 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        while (passed := time.monotonic() - began) < seconds:
            for _ in range(round(passed * 10_000) - sent):
                attacker.sendto(noise[sent % len(noise)], (host, int(port)))
                sent += 1
            await asyncio.sleep(0.005)
    return sent


@pytest.mark.slow
async def test_the_secret_is_changed_by_its_file_while_clients_write(tmp_path: Path) -> None:
    """Each step reaches one node after the other; behind each, one is restarted and must be let in."""
    file = tmp_path / "secret"
    file.write_text(OLD)
    flags = (*QUICK, "--cluster-secret-file", str(file))
    async with ProcessCluster(tmp_path, flags=flags) as cluster, cluster.client() as kv, Load(kv, pause=0.01) as load:
        await all_alive(cluster)
        since = {name: node.output_bytes for name, node in cluster.nodes.items()}
        for number, lines in enumerate(([OLD, NEW], [NEW, OLD], [NEW])):
            file.write_text("\n".join(lines))
            for name in cluster.nodes:
                before = cluster[name].output_bytes
                cluster[name].send(signal.SIGHUP)
                await _until_logged(cluster, name, "was read again", since=before)
                await load.accepted(time.monotonic(), seconds=10)
            restarted = f"n{number + 1}"
            assert await cluster[restarted].stop() == 0
            since[restarted] = cluster[restarted].output_bytes
            await cluster.start(restarted)
            await cluster.wait_ready()
            await all_alive(cluster)
        file.write_text("short")
        before = cluster["n1"].output_bytes
        cluster["n1"].send(signal.SIGHUP)
        await _until_logged(cluster, "n1", "the cluster's secret stays as it was", since=before)
        await load.stop()
        await load.check()
        assert not load.told.errors, load.told.errors[:3]
        for name in cluster.nodes:
            for other in cluster.nodes:
                assert "dead" not in [state for *_, state in told(cluster, name, other, since[name])]
            refused = await gossip(cluster, name, "refused")
            assert not set(refused) & {"forged", "signed", "unsigned"}, refused


async def _until_logged(cluster: ProcessCluster, name: str, text: str, *, since: int) -> None:
    async def logged() -> bool:
        return any(text in line for line in cluster[name].output(since))

    await until(logged)
