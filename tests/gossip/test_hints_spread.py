"""Leader hints in whole clusters on virtual time: how soon everybody knows a new leader, and what it costs.

Method: the simulated network of the gossip cores, each with hints of its own. Bounds are some times what was seen, so
that only a change for the worse in kind fails.
"""

from __future__ import annotations

import random

from benchmarks.gossip_sim import Network, SimNode, World
from kvstore.gossip.driver import CARGO_PACKET_BYTES, CARGO_PACKETS_MAX
from kvstore.gossip.hint import Hint
from kvstore.gossip.leader_hints import LeaderHints
from kvstore.gossip.member import Member
from kvstore.gossip.seal import PAYLOAD_BYTES_MAX
from kvstore.gossip.swim import Swim
from tests.gossip.histories import Shard, even_shards


class HintWorld(World):
    """A world whose nodes lead shards."""

    def __init__(self, *, seed: int, count: int, shards: int, network: Network | None = None) -> None:
        super().__init__(seed=seed, network=network)
        self.hints: dict[str, LeaderHints] = {}
        self.led: dict[str, dict[int, Hint]] = {}  # by node, by shard: what is true
        self.shards = even_shards(shards, version=1)
        nodes = self.found(count)
        for number, shard in enumerate(self.shards):
            self.lead(shard, nodes[number % count])
        for node in nodes:
            self.announce(node)

    def _swim(self, member: Member, rng: random.Random) -> Swim:
        hints = self.hints[member.node] = LeaderHints(member.node, settings=self.settings)
        return Swim(member, settings=self.settings, rng=rng, now=self.now, cargo=hints, budget=PAYLOAD_BYTES_MAX)

    def lead(self, shard: Shard, node: SimNode) -> None:
        """An election; nobody is told yet."""
        for led in self.led.values():
            led.pop(shard.id, None)
        shard.term += 1
        shard.replicas = (1, 2, 3)
        hint = Hint(
            shard.id, 1, shard.start, shard.end, 1, 1, shard.term, bytes.fromhex(node.node), shard.hint().replicas
        )
        self.led.setdefault(node.node, {})[shard.id] = hint

    def announce(self, node: SimNode) -> None:
        self.hints[node.node].announce(list(self.led.get(node.node, {}).values()))
        self._settle(node)

    def truth(self) -> list[Hint]:
        return sorted((hint for led in self.led.values() for hint in led.values()), key=lambda hint: hint.start)

    def ignorant(self) -> list[str]:
        """Nodes that run and do not know all leaders."""
        truth = self.truth()
        return [node.name for node in self.nodes if node.runs and self.hints[node.node].table() != truth]

    def agree(self, seconds_max: float) -> float:
        """How long it took."""
        began = self.now
        assert self.run_until(lambda: not self.ignorant(), seconds_max=seconds_max, step=0.1), self.ignorant()
        return self.now - began

    def packets(self) -> int:
        return sum(node.swim.counters.packets_sent for node in self.nodes)

    def _exchange(self, one: SimNode, other: SimNode) -> bool:
        """As the driver does it: members, then what each lacks."""
        if not super()._exchange(one, other):
            return False
        here, there = self.hints[one.node], self.hints[other.node]
        buckets = here.buckets(), there.buckets()
        for giver, taker, theirs in ((here, there, buckets[1]), (there, here, buckets[0])):
            packets = giver.differing(theirs, bytes_max=CARGO_PACKET_BYTES, packets_max=CARGO_PACKETS_MAX)
            taker.receive([item for packet in packets for item in packet], self.now)
        self._settle(one)
        self._settle(other)
        return True


def settled(*, seed: int, count: int, shards: int, loss: float = 0.0) -> HintWorld:
    world = HintWorld(seed=seed, count=count, shards=shards, network=Network(loss=loss))
    world.agree(60.0)
    world.run(20.0)  # until nothing waits to be told
    return world


def test_one_election_is_known_to_all_within_a_second() -> None:
    for loss, seconds_max in ((0.0, 0.5), (0.2, 2.0)):
        world = settled(seed=1, count=20, shards=200, loss=loss)
        for number in range(5):
            node = world.nodes[number]
            world.lead(world.shards[number + 50], node)
            world.announce(node)
            assert world.agree(20.0) <= seconds_max
            world.run(5.0)


def test_what_is_known_costs_nothing() -> None:
    """Probes carry digests; nothing else is sent on account of hints that all have."""
    bare = World(seed=3)
    bare.found(10)
    bare.run(20.0)
    world = settled(seed=3, count=10, shards=500)
    before, bare_before = world.packets(), sum(node.swim.counters.packets_sent for node in bare.nodes)
    world.run(60.0)
    bare.run(60.0)
    assert world.packets() - before <= 1.05 * (
        sum(node.swim.counters.packets_sent for node in bare.nodes) - bare_before
    )
    assert world.truth() == world.hints[world.nodes[0].node].table()


def test_a_node_with_a_thousand_leaderships_dies() -> None:
    """The others lead its shards a moment later, all at once. Nine in ten are known after 4 s, all after 8."""
    world = settled(seed=5, count=5, shards=2_000, loss=0.05)
    dead, *others = world.nodes
    world.crash(dead)
    world.run(1.0)
    for number, shard in enumerate(world.shards[::2]):
        world.lead(shard, others[number % 4])
    before = world.packets()
    for node in others:
        world.announce(node)
    world.run(4.0)
    truth = world.truth()
    for node in others:
        hints = world.hints[node.node]
        assert sum(hints.get(hint.id) == hint for hint in truth) >= 0.9 * len(truth)
    assert world.agree(60.0) <= 16.0
    assert world.packets() - before <= 4_000


def test_what_two_halves_decided_is_known_to_all_when_they_meet() -> None:
    world = settled(seed=7, count=10, shards=300)
    left, right = world.nodes[:5], world.nodes[5:]
    world.partition(left, right)
    for number, shard in enumerate(world.shards[:100]):
        world.lead(shard, (left if number % 2 else right)[number % 5])
    for node in world.nodes:
        world.announce(node)
    world.run(120.0)
    assert len(world.ignorant()) == 10
    world.heal()
    world.agree(60.0)


def test_a_node_that_joins_is_told_everything_at_once() -> None:
    world = settled(seed=9, count=5, shards=2_000)
    new = world.add("new")
    before = world.packets()
    world.join(new, world.nodes[0])
    assert world.agree(5.0) <= 1.5
    world.run(10.0)
    assert world.packets() - before <= 500, "the others are not told again what all of them know"


def test_a_restarted_node_does_not_claim_what_it_led() -> None:
    """Others still tell that it leads; it holds that, passes it on to nobody, and hears of its successor."""
    world = settled(seed=11, count=5, shards=50)
    node = world.nodes[0]
    world.crash(node)
    world.run(2.0)
    world.restart(node, world.nodes[1])
    world.run(3.0)
    hints = world.hints[node.node]
    assert hints.table() == world.truth()
    assert hints.pending == 0
    for shard in [shard for shard in world.shards if shard.id in world.led[node.node]]:
        world.lead(shard, world.nodes[2])
    world.announce(world.nodes[2])
    world.agree(20.0)
