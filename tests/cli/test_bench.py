"""Goal: bench measures what it says, reports in the agreed form, and cleans up. Method: short runs against a real
cluster, compared with what the store counted; a client that fails."""

from __future__ import annotations

import asyncio
import random

import pytest

from kvstore.base.errors import Overloaded
from kvstore.cli.bench import latency_json
from kvstore.cli.histogram import Histogram
from kvstore.cli.load import Load
from kvstore.cli.workloads import KEY_PREFIX, WORKLOADS, Kind, Plan
from tests.cli.conftest import Kvctl

SHORT = ("--duration", "0.3", "--warmup", "0.05", "--clients", "8", "--keys", "300", "--value-size", "20")


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_every_workload_runs_and_reports(ctl: Kvctl, workload: str) -> None:
    told = ctl.json("bench", "--workload", workload, *SHORT)
    assert told["errors"] == 0
    assert told["operations"] > 0
    assert told["ops_per_second"] == pytest.approx(told["operations"] / told["seconds"], rel=0.01)
    latency = told["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99_9"] <= latency["max"]
    assert sum(part["operations"] for part in told["by_operation"].values()) == told["operations"]
    assert (told["workload"], told["clients"], told["keys"], told["value_size"]) == (workload, 8, 300, 20)
    assert set(told["by_operation"]) <= {kind.name.lower() for kind, _ in WORKLOADS[workload].shares}
    assert ctl.json("scan")["items"] == []


def test_the_store_counted_at_least_as_many_writes(ctl: Kvctl) -> None:
    """Each measured put raised the revision; those of the warm-up and the last ones did so, too."""
    before = ctl.json("put", "probe", "x")["revision"]
    told = ctl.json("bench", "--workload", "put", *SHORT, "--keep")
    after = ctl.json("put", "probe", "x")["revision"]
    assert told["operations"] <= after - before - 1
    kept = ctl.json("scan", "--limit", "1000")["items"]
    assert 0 < sum(item["key"].startswith(KEY_PREFIX.decode()) for item in kept) <= 300
    assert all(len(item.get("value_base64", item.get("value"))) > 0 for item in kept)


def test_the_table_for_people(ctl: Kvctl) -> None:
    shown = ctl("bench", "--workload", "mixed", *SHORT).stdout
    assert shown.startswith("mixed: 8 callers, 300 keys (uniform), values of 20 bytes")
    assert "operations a second, 0 errors" in shown
    assert [line.split()[0] for line in shown.splitlines() if line][2:] == [
        "OPERATION",
        shown.splitlines()[4].split()[0],
        "read",
        "update",
        "all",
    ]


class Refusing:
    """Every third call is refused."""

    def __init__(self) -> None:
        self.calls = 0
        self.enough = asyncio.Event()

    async def get(self, key: bytes) -> bytes:
        self.calls += 1
        number = self.calls
        if number >= 30:
            self.enough.set()
        await asyncio.sleep(0)
        if number % 3 == 0:
            raise Overloaded
        return b""


async def test_errors_are_counted_by_code_and_not_as_operations() -> None:
    client = Refusing()
    plan = Plan(WORKLOADS["get"], 10, "uniform", random.Random(1))
    load = Load(client, plan, clients=5, value_size=1, rng=random.Random(1))  # type: ignore[arg-type]
    running = asyncio.create_task(load.run())
    await client.enough.wait()
    load.stop()
    await running
    tally = load.begin_interval()
    assert tally.errors == {"OVERLOADED": client.calls // 3}
    assert tally.operations == client.calls - client.calls // 3
    assert tally.latencies[Kind.READ].count == tally.operations


async def test_an_error_that_is_not_the_store_s_ends_the_run() -> None:
    class Broken:
        def get(self, key: bytes) -> None:
            raise TypeError("a bug")

    plan = Plan(WORKLOADS["get"], 10, "uniform", random.Random(1))
    load = Load(Broken(), plan, clients=2, value_size=1, rng=random.Random(1))  # type: ignore[arg-type]
    with pytest.raises(ExceptionGroup) as caught:
        await load.run()
    assert caught.group_contains(TypeError)


def test_intervals_split_what_is_counted() -> None:
    plan = Plan(WORKLOADS["get"], 10, "uniform", random.Random(1))
    load = Load(Refusing(), plan, clients=1, value_size=1, rng=random.Random(1))  # type: ignore[arg-type]
    load.tally.latencies[Kind.READ].record(5)
    first = load.begin_interval()
    load.tally.latencies[Kind.SCAN].record(7)
    second = load.begin_interval()
    assert (first.operations, second.operations) == (1, 1)
    assert second.together().maximum == 7


def test_latencies_are_in_milliseconds() -> None:
    histogram = Histogram()
    histogram.record(2_000_000)
    assert latency_json(histogram) == dict.fromkeys(("p50", "p90", "p99", "p99_9", "max", "mean"), 2.0)
