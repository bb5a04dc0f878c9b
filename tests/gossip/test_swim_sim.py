"""Whole clusters on virtual time: what a network and the processes on it may do, and what must hold in the end.

Method: seeded worlds (benchmarks/gossip_sim.py); faults, then a whole network, then everybody must agree with what is.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gossip_sim import Network, SimNode, World
from kvstore.gossip.events import Event, MemberChanged
from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.settings import GossipSettings
from tests.gossip.cores import ALIVE, DEAD, LEFT, SUSPECT

ROOT = Path(__file__).parent.parent.parent


class Record:
    """What was believed of one node, in order, by whom."""

    def __init__(self, world: World, subject: SimNode) -> None:
        self.states: list[tuple[float, str, MemberState]] = []
        self._subject = subject
        world.listeners.append(self._listen)

    def _listen(self, now: float, node: SimNode, event: Event) -> None:
        if isinstance(event, MemberChanged) and event.new.node == self._subject.node:
            self.states.append((now, node.name, event.new.state))

    def believers(self, state: MemberState) -> set[str]:
        return {name for _, name, each in self.states if each is state}


def belief(node: SimNode, of: SimNode) -> Member:
    found = node.swim.member(of.node)
    assert found is not None
    return found


def settled(seed: int, count: int, network: Network | None = None, settings: GossipSettings | None = None) -> World:
    world = World(seed=seed, network=network, settings=settings)
    world.found(count)
    world.run(5.0)
    assert world.disagreements() == []
    return world


def agree(world: World, seconds_max: float) -> None:
    assert world.run_until(lambda: not world.disagreements(), seconds_max=seconds_max, step=1.0), "\n".join(
        [f"at {world.now:.1f} s:", *world.disagreements()[:5]]
    )


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_members_join_one_by_one(loss: float) -> None:
    world = World(seed=3, network=Network(loss=loss))
    (first,) = world.found(1)
    for number in range(20):
        each = world.add(f"m{number}")
        world.join(each, first)
        world.run(0.1)
    agree(world, 30.0)


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
def test_a_crash_is_known_to_all_and_accuses_nobody_else(loss: float) -> None:
    world = settled(4, 20, Network(loss=loss))
    victim = world.nodes[7]
    world.crash(victim)
    agree(world, 40.0)
    assert sum(each.swim.counters.deaths for each in world.nodes) >= 1
    assert all(belief(each, victim).state is DEAD for each in world.nodes if each.up)


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_leave_is_no_death(loss: float) -> None:
    world = settled(5, 20, Network(loss=loss))
    leaver = world.nodes[3]
    record = Record(world, leaver)
    world.leave(leaver)
    assert world.run_until(leaver.swim.left_spread, seconds_max=3.0)
    world.crash(leaver)
    agree(world, 10.0)
    world.run(60.0)
    assert record.believers(DEAD) == record.believers(SUSPECT) == set()
    assert len(record.believers(LEFT)) == 19


def test_who_is_suspected_wrongly_refutes() -> None:
    """A node hears nothing for a while, then again: it is suspected, and says that it lives, in time."""
    world = settled(6, 20)
    victim = world.nodes[3]
    record = Record(world, victim)
    victim.deaf = True
    assert world.run_until(lambda: bool(record.believers(SUSPECT)), seconds_max=10.0)
    victim.deaf = False
    agree(world, 5.0)
    assert record.believers(DEAD) == set()
    assert victim.swim.counters.refutations >= 1
    assert victim.swim.me.incarnation % 1_000_000 == victim.swim.counters.refutations
    assert sum(each.swim.counters.deaths for each in world.nodes) == 0


def test_a_paused_process_comes_back_as_the_same_member() -> None:
    world = settled(7, 15)
    victim = world.nodes[3]
    record = Record(world, victim)
    world.pause(victim, 30.0)
    world.run(29.9)
    assert len(record.believers(DEAD)) == 14
    agree(world, 2.0)
    assert belief(world.nodes[0], victim).incarnation // 1_000_000 == 1, "the same start"
    assert belief(world.nodes[0], victim).incarnation > 1_000_000
    world.run(30.0)
    assert victim.swim.counters.deaths == 0, "it slept itself: it may blame nobody"
    assert all(each.swim.counters.refutations == 0 for each in world.nodes if each is not victim)


@pytest.mark.parametrize("down_seconds", [0.2, 20.0])
def test_a_restarted_node_has_a_higher_incarnation(down_seconds: float) -> None:
    """Also one that was back before anybody missed it."""
    world = settled(8, 15)
    victim = world.nodes[3]
    world.crash(victim)
    world.run(down_seconds)
    world.restart(victim, world.nodes[0])
    agree(world, 5.0)
    assert all(belief(each, victim).incarnation == 2_000_000 for each in world.nodes)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("seconds", [10.0, 90.0])
def test_a_cut_network_heals(streams: bool, seconds: float) -> None:
    """Also where push-pull does not get through, and where both halves have long given each other up."""
    world = settled(9, 16, Network(streams=streams))
    world.partition(world.nodes[:6], world.nodes[6:])
    world.run(seconds)
    if seconds > 30:
        assert {belief(world.nodes[0], each).state for each in world.nodes[6:]} == {DEAD}
        assert {belief(world.nodes[0], each).state for each in world.nodes[1:6]} == {ALIVE}
    world.heal()
    agree(world, 60.0)


def test_a_slow_node_harms_itself_at_most() -> None:
    """It handles everything 0.8 s late, so it misses its own deadlines. Lifeguard: it doubts itself, not the others."""
    world = settled(10, 20)
    slow = world.nodes[3]
    slow.slow_seconds = 0.8
    world.run(120.0)
    assert slow.swim.health > 0
    for each in world.nodes:
        assert all(belief(other, each).state is not DEAD for other in world.nodes if each is not slow)
    slow.slow_seconds = 0.0
    agree(world, 30.0)
    world.run(60.0)
    assert slow.swim.health == 0


def test_who_is_deaf_accuses_few() -> None:
    """It sends and hears nothing: without local health it would suspect somebody each second."""
    world = settled(11, 20)
    deaf = world.nodes[3]
    deaf.deaf = True
    world.run(30.0)
    assert deaf.swim.health == world.settings.health_max - 1
    assert deaf.swim.counters.probes_failed <= 8
    assert all(not belief(world.nodes[0], each).is_gone for each in world.nodes if each is not deaf)


def test_a_new_node_at_an_old_address_is_another_member() -> None:
    world = settled(12, 10)
    old = world.nodes[3]
    world.crash(old)
    new = world.add("n3", address=old.address)
    world.join(new, world.nodes[0])
    agree(world, 40.0)
    assert belief(world.nodes[0], old).state is DEAD
    assert belief(world.nodes[0], new).state is ALIVE


@pytest.mark.parametrize("seed", range(12))
def test_swarm(seed: int) -> None:
    """Faults of all kinds at random, then peace: everybody agrees."""
    rng = random.Random(seed)
    network = Network(
        loss=rng.choice([0.0, 0.05, 0.2]),
        delay_max=rng.choice([0.002, 0.1, 0.3]),
        doubled=rng.choice([0.0, 0.1]),
    )
    world = World(seed=seed, network=network)
    world.found(12)
    down: list[SimNode] = []
    for step in range(25):
        live = [each for each in world.nodes if each.runs and not each.leaving]
        one = rng.choice(live)
        what = rng.choice(["crash", "restart", "pause", "partition", "heal", "slow", "deaf", "join", "leave", "quiet"])
        if what == "crash" and len(live) > 6:
            world.crash(one)
            down.append(one)
        elif what == "restart" and down:
            again = down.pop(rng.randrange(len(down)))
            world.restart(again, *(each for each in world.nodes[:12] if each is not again))
        elif what == "pause":
            world.pause(one, rng.uniform(0.5, 30.0))
        elif what == "partition":
            half = rng.sample(world.nodes, len(world.nodes) // 2)
            world.partition([], half)
        elif what == "heal":
            world.heal()
        elif what == "slow":
            one.slow_seconds = rng.uniform(0.1, 2.0)
        elif what == "deaf":
            one.deaf = True
        elif what == "join":
            world.join(world.add(f"s{step}"), *world.nodes[:12])
        elif what == "leave" and len(live) > 6:
            world.leave(one)
        world.run(rng.uniform(0.1, 6.0))
    world.heal()
    world.run(30.0)  # the last pause ends
    for each in world.nodes:
        each.slow_seconds, each.deaf = 0.0, False
    agree(world, 150.0)
    for each in world.nodes:
        assert set(each.swim.counters.refused) <= {"misdirected", "stranger"}, each.swim.counters


def busy_fingerprint(seed: int) -> str:
    world = World(seed=seed, network=Network(loss=0.1, doubled=0.05), transcript=True)
    world.found(8)
    world.run(2.0)
    world.crash(world.nodes[1])
    world.pause(world.nodes[2], 6.0)
    world.leave(world.nodes[3])
    world.join(world.add("new"), world.nodes[0])
    world.run(20.0)
    world.restart(world.nodes[1], world.nodes[0])
    world.run(5.0)
    return world.fingerprint()


def test_same_seed_same_transcript() -> None:
    """Also where texts hash otherwise: nothing depends on the order of a set."""
    here = busy_fingerprint(1)
    assert here == busy_fingerprint(1)
    assert here != busy_fingerprint(2)
    code = "from tests.gossip.test_swim_sim import busy_fingerprint; print(busy_fingerprint(1))"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == here


@pytest.mark.parametrize("count", [5, 10, 40])
def test_who_misses_news_hears_it_from_its_next_probe(count: int) -> None:
    """News is told a few times only, and a fifth of the packets is lost: what somebody missed does not wait for
    push-pull."""
    world = settled(20, count, Network(loss=0.2))
    for number in range(20):
        new = world.add(f"m{number}")
        world.network.streams = True
        world.join(new, world.nodes[number])
        world.network.streams = False
        agree(world, 6.0)


def test_traffic_does_not_grow_with_the_cluster() -> None:
    """At rest each node sends one ping and one ack a second."""
    rates = []
    for count in (10, 80):
        world = settled(13, count)
        world.run(20.0)  # the news of the founding is told
        before = sum(each.swim.counters.packets_sent for each in world.nodes)
        world.run(30.0)
        rates.append((sum(each.swim.counters.packets_sent for each in world.nodes) - before) / count / 30)
    assert rates == pytest.approx([2.0, 2.0], abs=0.1)


@pytest.mark.slow
def test_hundreds_of_nodes() -> None:
    """benchmarks/gossip_sim.py does it with a thousand, which takes minutes."""
    world = settled(14, 400, Network(loss=0.05))
    new = world.add("new")
    world.join(new, world.nodes[5])
    world.crash(world.nodes[0])
    agree(world, 60.0)
