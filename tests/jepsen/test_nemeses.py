"""Goal: faults stay survivable, whatever is drawn: a minority, one loss at a time, one damaged node. Method: many
seeds against a cluster that only says who runs; files damaged for real."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jepsen.nemeses import GROUPS, NEMESES
from jepsen.nemeses.base import Attack, Nemesis
from jepsen.nemeses.storage import BitFlip, Truncate, Wipe

RECORD = b"\x00key-1\x00[12,345,6,78]\x00"


class Nodes:
    """What an attack asks a cluster."""

    def __init__(self, folder: Path, count: int) -> None:
        self.names = [f"n{number}" for number in range(1, count + 1)]
        self.running = list(self.names)
        self.nodes = {name: SimpleNamespace(data=folder / name) for name in self.names}
        for name in self.names:
            for part in ("log", "state"):
                (folder / name / part).mkdir(parents=True)
                (folder / name / part / "data.mdb").write_bytes(b"page" * 100 + RECORD * 3)
        self.rows: list[dict[str, Any]] = []

    async def shards(self) -> list[dict[str, Any]]:
        return self.rows

    async def ask(self, name: str, path: str) -> tuple[int, Any]:
        return 200, {"shards": [{"damaged": False, "role": "follower"}]}


def attack(folder: Path, count: int = 3, seed: int = 1) -> Attack:
    return Attack(Nodes(folder, count), None, random.Random(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_a_minority_is_struck_at_most(tmp_path: Path, count: int) -> None:
    one = attack(tmp_path, count)
    others = [one.of(random.Random(seed)) for seed in range(4)]
    struck = [name for each in others * 3 for name in each.pick(2)]
    assert len(struck) == len(set(struck)) == (count - 1) // 2
    assert one.pick_all(["n1"]) == ([] if struck else ["n1"])


async def test_nobody_loses_anything_before_the_last_one_is_whole_again(tmp_path: Path) -> None:
    one = attack(tmp_path, 5)
    (loser,) = one.lose()
    assert one.of(random.Random(2)).lose() == []
    assert not one.lose_new("newcomer")
    assert one.pick() != []  # that may be down for a while, and loses nothing
    cluster: Any = one.cluster
    sound = [{"role": "voter", "match": 10} for _ in range(3)]
    row = {"id": 1, "joint": False, "leader": "n1", "told_by": "n1", "applied": 10, "replicas": sound}
    for wrong in (
        {"joint": True},
        {"leader": None},
        {"told_by": "n2"},
        {"replicas": sound[:2]},
        {"replicas": [*sound[:2], {"role": "learner", "match": 10}]},
        {"replicas": [*sound[:2], {"role": "voter", "match": 9}]},
    ):
        cluster.rows = [row | wrong]
        assert not await one._whole({}), wrong
    cluster.rows = [row]
    await one.regain([loser])
    assert one.lose_new("newcomer")
    assert one.lose() == []  # the newcomer's replicas are lost when it is removed
    await one.regain(["newcomer"])
    assert one.lose() != []


@pytest.mark.parametrize("seed", range(20))
def test_bits_flip_inside_of_values_and_on_one_node_only(tmp_path: Path, seed: int) -> None:
    shared = attack(tmp_path, seed=seed)
    nemeses = [kind(shared.of(random.Random(seed + number))) for number, kind in enumerate((BitFlip, Truncate))]
    victims = {tuple(nemesis.among() or ()) for nemesis in nemeses for _ in range(5)}
    assert len(victims) == 1
    ((victim,),) = victims
    flipped = BitFlip(shared)
    where, count = flipped.lose(victim)  # type: ignore[misc]
    content = (tmp_path / victim / where / "data.mdb").read_bytes()
    before = b"page" * 100 + RECORD * 3
    changed = [place for place, byte in enumerate(content) if byte != before[place]]
    assert len(changed) == count > 0
    begin, end = RECORD.index(b"["), RECORD.index(b"]") + 1
    assert all(begin <= (place - 400) % len(RECORD) < end for place in changed)


def test_a_file_is_cut_and_a_disk_is_wiped(tmp_path: Path) -> None:
    shared = attack(tmp_path)
    where, size = Truncate(shared).lose("n1")  # type: ignore[misc]
    assert (tmp_path / "n1" / where / "data.mdb").stat().st_size == size < 400 + 3 * len(RECORD)
    Wipe(shared).lose("n2")
    assert not (tmp_path / "n2").exists()


def test_every_fault_has_a_name_and_is_reached_by_it() -> None:
    assert all(kind.name == name and issubclass(kind, Nemesis) for name, kind in NEMESES.items())
    assert all(set(names) <= set(NEMESES) for names in GROUPS.values())
    for name in ("kill", "pause", "partition", "clock", "disk-full", "bit-flip", "lost-writes", "kill-placement"):
        assert name in {*NEMESES, *GROUPS}
