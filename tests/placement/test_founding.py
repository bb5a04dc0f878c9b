"""Founding without a network: whatever the order and the crashes, all founders end in one cluster with one list.

Method: nodes whose questions are answered straight from the others' memory; what a node has durable is its identity.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvstore.base.config import NodeConfig
from kvstore.base.errors import DuplicateName, StartRefused, Unauthenticated, Unavailable
from kvstore.base.ids import random_id
from kvstore.placement import founding
from kvstore.placement.founding import Founding, FoundingState, founding_shards
from kvstore.replica.membership import FOUNDERS_IDS_MAX
from kvstore.storage.protocol import NodeIdentity

NAMES = ("n1", "n2", "n3")
ADDRESSES = {name: f"127.0.0.1:{7_000 + number}" for number, name in enumerate(NAMES, 1)}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(founding, "PAUSE_SECONDS", 0.001)


class World:
    """The nodes that listen, by address, and the members that joined."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.disks: dict[str, NodeIdentity] = {}  # by name; outlives a crash
        self.listening: dict[str, str] = {}  # address -> name
        self.joined: dict[str, str] = {}  # name -> node id
        self.refuses: set[str] = set()  # addresses that want another secret

    async def founding(self, address: str) -> FoundingState:
        await asyncio.sleep(0)
        name = self.listening.get(address)
        if name is None:
            raise Unavailable(f"no answer from {address}")
        if address in self.refuses:
            raise Unauthenticated("signed with another cluster secret")
        identity = self.disks[name]
        return FoundingState(identity.name, identity.node, identity.cluster, identity.founders)

    async def join(self, address: str, *, name: str, node_id: str, own_address: str, labels: Mapping[str, str]) -> str:
        state = await self.founding(address)
        if not state.cluster:
            raise Unavailable("not founded")
        bound = {founder: node for founder, node, _ in state.founders} | self.joined
        if bound.get(name, node_id) != node_id:
            raise DuplicateName(f"the name {name} belongs to another node")
        self.joined[name] = node_id
        return state.cluster

    def wipe(self, name: str) -> None:
        self.disks.pop(name, None)

    async def start(self, name: str, *, crashes: bool = False, timeout_ms: int = 5_000, **options: object) -> None:
        """Run a founding node until its identity is durable. `crashes`: the process dies just before."""
        if name not in self.disks:
            self.disks[name] = NodeIdentity(format_version=1, node=random_id(self.rng), name=name)
        settings: dict[str, object] = {"initial_cluster": ADDRESSES, **options}
        config = NodeConfig(
            name=name,
            data=Path("/nowhere"),
            listen=ADDRESSES.get(name, "127.0.0.1:7009"),
            start_timeout_ms=timeout_ms,
            **settings,  # type: ignore[arg-type]
        )
        self.listening[config.listen] = name
        if self.disks[name].cluster:
            return
        identity = await Founding(config, self.disks[name], self, self.rng).run()
        if crashes:
            del self.listening[config.listen]
            return
        self.disks[name] = identity

    def check_one_cluster(self) -> None:
        identities = [self.disks[name] for name in NAMES]
        assert len({identity.cluster for identity in identities}) == 1
        assert len({identity.founders for identity in identities}) == 1
        assert identities[0].cluster
        nodes = {name: node for name, node, _ in identities[0].founders}
        assert nodes == {identity.name: identity.node for identity in identities}


@pytest.mark.parametrize("order", list(itertools.permutations(NAMES)))
async def test_any_order_of_start_gives_one_cluster(order: tuple[str, ...]) -> None:
    world = World()
    starts = []
    for name in order:
        starts.append(asyncio.ensure_future(world.start(name)))
        await asyncio.sleep(0.003)
    await asyncio.gather(*starts)
    world.check_one_cluster()


@pytest.mark.parametrize("crashing", NAMES)
@pytest.mark.parametrize("seed", range(3))
async def test_crash_before_the_identity_is_durable_is_repeated(crashing: str, seed: int) -> None:
    """n1's list goes down with it: nobody has seen it. The others read it only once it is durable."""
    world = World(seed)

    async def run(name: str) -> None:
        if name == crashing:
            await world.start(name, crashes=True)
            await asyncio.sleep(0.005 * seed)
        await world.start(name)

    await asyncio.gather(*map(run, NAMES))
    world.check_one_cluster()


async def test_founder_that_was_not_there_in_time_takes_part_later() -> None:
    world = World()
    late = asyncio.ensure_future(world.start("n2"))
    await asyncio.gather(world.start("n1"), world.start("n3"))
    await late
    world.disks["n2"] = NodeIdentity(format_version=1, node=world.disks["n2"].node, name="n2")  # died before it wrote
    await world.start("n2")
    world.check_one_cluster()


async def test_wiped_founder_does_not_come_back_under_its_name() -> None:
    world = World()
    await asyncio.gather(*map(world.start, NAMES))
    world.wipe("n2")
    with pytest.raises(StartRefused, match="n2 belongs to another node"):
        await world.start("n2")


async def test_wiped_first_founder_does_not_found_again() -> None:
    world = World()
    await asyncio.gather(*map(world.start, NAMES))
    cluster = world.disks["n3"].cluster
    world.wipe("n1")
    with pytest.raises(StartRefused, match="n1 belongs to another node"):
        await world.start("n1")
    assert world.disks["n3"].cluster == cluster


async def test_nobody_founds_while_one_is_silent() -> None:
    world = World()
    starts = [asyncio.ensure_future(world.start(name, timeout_ms=60)) for name in ("n1", "n2")]
    errors = await asyncio.gather(*starts, return_exceptions=True)
    assert all(isinstance(error, StartRefused) for error in errors)
    assert "waiting for n3" in str(errors[0])
    assert not any(identity.cluster for identity in world.disks.values())


async def test_other_name_at_an_address_is_said() -> None:
    world = World()
    world.disks["x"] = NodeIdentity(format_version=1, node="f" * 32, name="x")
    world.listening[ADDRESSES["n2"]] = "x"
    with pytest.raises(StartRefused, match=r"answers 'x', not 'n2'"):
        await world.start("n1")


async def test_other_secret_is_named() -> None:
    world = World()
    world.disks["n2"] = NodeIdentity(format_version=1, node="f" * 32, name="n2")
    world.listening[ADDRESSES["n2"]] = "n2"
    world.refuses.add(ADDRESSES["n2"])
    with pytest.raises(StartRefused, match=r"n2 \(signed with another cluster secret\), n3"):
        await world.start("n1", timeout_ms=50)


async def test_joining_tries_every_address() -> None:
    world = World()
    await asyncio.gather(*map(world.start, NAMES))
    await world.start("n4", initial_cluster={}, join=("127.0.0.1:7999", ADDRESSES["n3"]))
    assert world.disks["n4"].cluster == world.disks["n1"].cluster
    assert not world.disks["n4"].founders


async def test_alone_it_founds_at_once() -> None:
    world = World()
    await world.start("n9", initial_cluster={})
    assert [name for name, _, _ in world.disks["n9"].founders] == ["n9"]


def founders_of(count: int) -> tuple[tuple[str, str, str], ...]:
    names = sorted(f"n{number}" for number in range(1, count + 1))
    return tuple((name, f"{number:032x}", f"127.0.0.1:{7_000 + number}") for number, name in enumerate(names))


@pytest.mark.parametrize(
    ("count", "meta", "default"),
    [
        (1, [0], [0]),
        (2, [0, 1], [0, 1]),
        (3, [0, 1, 2], [0, 1, 2]),
        (4, [0, 1, 2], [3, 0, 1]),
        (5, [0, 1, 2, 3, 4], [0, 1, 2]),
        (7, [0, 1, 2, 3, 4], [5, 6, 0]),
        (15, [0, 1, 2, 3, 4], [5, 6, 7]),
    ],
)
def test_first_shards_are_spread_over_the_founders(count: int, meta: list[int], default: list[int]) -> None:
    """By position in the list: five of the founders keep the cluster's records, three the first data."""
    founders = founders_of(count)
    shards = founding_shards(founders)
    assert [descriptor.id for descriptor, _ in shards] == [1, 2]
    for (descriptor, conf_state), expected in zip(shards, (meta, default), strict=True):
        assert [place.node for place in descriptor.replicas] == [founders[position][1] for position in expected]
        assert conf_state.voters == tuple(place.replica_id for place in descriptor.replicas)
        assert descriptor.version == descriptor.conf == 1
    ids = [place.replica_id for descriptor, _ in shards for place in descriptor.replicas]
    assert len(set(ids)) == len(meta) + len(default)
    assert max(ids) <= FOUNDERS_IDS_MAX
    assert shards[0][0].end == shards[1][0].start


@pytest.mark.parametrize("count", range(1, 16))
def test_no_founder_has_two_replicas_where_another_one_has_none(count: int) -> None:
    shards = founding_shards(founders_of(count))
    held = Counter(place.node for descriptor, _ in shards for place in descriptor.replicas)
    counts = [held[node] for _, node, _ in founders_of(count)]
    assert max(counts) - min(counts) <= 1
    for descriptor, _ in shards:
        assert len({place.node for place in descriptor.replicas}) == len(descriptor.replicas)
