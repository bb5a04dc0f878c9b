"""How fast news travels, what it costs, and how often the living are declared dead: gossip simulated.

    python -m benchmarks.gossip [--nodes 10,100,1000] [--loss 0,5,20] [--seeds 3] [--minutes 5] [--events 10]
                                [--jobs 1] [--plot OUT.png] [--json OUT.json] [--from EARLIER.json]

The real cores run on a virtual clock (benchmarks/gossip_sim.py); packets take 0.2 to 2 ms, each is lost with the given
chance (percent), and a TCP probe fails when one of its four packets is lost. First the cluster is left alone, which
gives the traffic and the false positives; then members join, leave and crash one after another, and for each it is
measured how long it takes until every member that lives knows it. The last table repeats Lifeguard's question: some
members are slow; how often are members declared dead that live, with local health and without?

What the papers say is printed only as far as it is in their abstracts, or follows from their formulas.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gossip_sim import Network, SimNode, World
from kvstore.gossip.events import Event, MemberChanged
from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.seal import OVERHEAD_BYTES
from kvstore.gossip.settings import GossipSettings

WARM_SECONDS = 30.0  # until the founding is no news any more
WAIT_SECONDS_MAX = 240.0  # for one event; none should come near it
IP_UDP_BYTES = 28
DATAGRAM_BYTES = OVERHEAD_BYTES + IP_UDP_BYTES  # beside the payload: seal with HMAC, UDP and IPv4 heads
SLOW_NODES, SLOW_MEMBERS = 50, 8
SLOW_CASES = ((4.0, 0.001), (8.0, 0.001), (16.0, 0.001))  # seconds of each pause, and of running between two
WITHOUT_LIFEGUARD = GossipSettings(
    health_max=1, suspicion_stretch=1.0, confirmations=0, late_seconds=float("inf"), ping_again_seconds=60.0
)
"""SWIM as in its paper, but for the buddy system, which is always on here."""


@dataclass
class Cell:
    """What was measured for one size and one loss, over all seeds. Seconds."""

    nodes: int
    loss_percent: float
    joins: list[float] = field(default_factory=list)
    leaves: list[float] = field(default_factory=list)
    crashes: list[float] = field(default_factory=list)
    first_suspicions: list[float] = field(default_factory=list)  # of the crashes, by anybody
    quiet_seconds: float = 0.0
    packets: float = 0.0  # sent by all nodes in the quiet time
    wire_bytes: float = 0.0
    push_pull_bytes: float = 0.0
    watched_seconds: float = 0.0  # quiet time and events, for what follows
    false_suspicions: int = 0  # of members that run, begun by somebody's own probe
    false_deaths: int = 0  # declared, of members that run
    cpu_seconds: float = 0.0  # that the simulation took

    def add(self, other: Cell) -> None:
        for each in dataclasses.fields(self):
            if each.name not in ("nodes", "loss_percent"):
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def per_node_second(self, total: float) -> float:
        return total / self.nodes / self.quiet_seconds

    def per_hour(self, count: int) -> float:
        return count * 3600 / self.watched_seconds


class Judge:
    """Who is accused although it runs. Each accused incarnation counts once, not once for each node that hears it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.suspicions: dict[tuple[str, int], None] = {}
        self.deaths: dict[tuple[str, int], None] = {}
        world.listeners.append(self)

    def __call__(self, now: float, node: SimNode, event: Event) -> None:
        if not isinstance(event, MemberChanged) or event.new.state not in (MemberState.SUSPECT, MemberState.DEAD):
            return
        subject = self._world.by_id[event.new.node]
        if subject.up and not subject.leaving:
            accused = self.suspicions if event.new.state == MemberState.SUSPECT else self.deaths
            accused[event.new.node, event.new.incarnation] = None


class Watch:
    """Until when every member that runs believes something of one node."""

    def __init__(self, world: World, subject: SimNode, accept: Callable[[Member], bool]) -> None:
        self._world = world
        self._node = subject.node
        self._accept = accept
        self._began = self._last = world.now
        self.first: float | None = None
        self._left = {each.name: None for each in world.nodes if each.up and not each.leaving and each is not subject}
        for each in world.nodes:
            known = each.swim.member(self._node)
            if known is not None and accept(known):
                self._left.pop(each.name, None)
        world.listeners.append(self)

    def __call__(self, now: float, node: SimNode, event: Event) -> None:
        if isinstance(event, MemberChanged) and event.new.node == self._node and self._accept(event.new):
            if self.first is None:
                self.first = now - self._began
            if self._left.pop(node.name, self) is None:
                self._last = now

    def seconds(self) -> float:
        """Runs the world until all know."""
        reached = self._world.run_until(lambda: not self._left, seconds_max=WAIT_SECONDS_MAX, step=0.25)
        assert reached, f"{len(self._left)} nodes never knew it"
        self.stop()
        return self._last - self._began

    def stop(self) -> None:
        self._world.listeners.remove(self)


def measure(nodes: int, loss_percent: float, seed: int, *, minutes: float, events: int) -> Cell:
    """One cluster from its founding to the last event."""
    cpu = time.process_time()
    cell = Cell(nodes, loss_percent)
    world = World(seed=seed, network=Network(loss=loss_percent / 100))
    world.found(nodes)
    world.run(WARM_SECONDS)
    judge, began = Judge(world), world.now
    _quiet(world, cell, minutes * 60)
    for number in range(events):
        _events(world, cell, number)
    cell.watched_seconds = world.now - began
    cell.false_suspicions, cell.false_deaths = len(judge.suspicions), len(judge.deaths)
    cell.cpu_seconds = time.process_time() - cpu
    return cell


def _quiet(world: World, cell: Cell, seconds: float) -> None:
    def totals() -> tuple[int, int, int]:
        counters = [each.swim.counters for each in world.nodes]
        packets = sum(each.packets_sent for each in counters)
        return packets, sum(each.bytes_sent for each in counters) + packets * DATAGRAM_BYTES, world.push_pull_bytes

    before = totals()
    world.run(seconds)
    cell.packets, cell.wire_bytes, cell.push_pull_bytes = (
        after - start for after, start in zip(totals(), before, strict=True)
    )
    cell.quiet_seconds = seconds


def _events(world: World, cell: Cell, number: int) -> None:
    """A join, a leave, a crash; the size of the cluster stays as it is, but for one."""

    def somebody() -> SimNode:
        return world.rng.choice([each for each in world.nodes if each.up and not each.leaving])

    seed, new = somebody(), world.add(f"j{number}")
    joined = Watch(world, new, lambda member: not member.is_gone)
    world.join(new, seed)
    cell.joins.append(joined.seconds())

    leaver = somebody()
    left = Watch(world, leaver, lambda member: member.state == MemberState.LEFT)
    world.leave(leaver)
    cell.leaves.append(left.seconds())
    world.crash(leaver)

    seed, successor = somebody(), world.add(f"r{number}")
    world.join(successor, seed)
    world.run(5.0)
    victim = somebody()
    suspected = Watch(world, victim, lambda member: member.state >= MemberState.SUSPECT)
    died = Watch(world, victim, lambda member: member.state == MemberState.DEAD)
    world.crash(victim)
    cell.crashes.append(died.seconds())
    suspected.stop()
    assert suspected.first is not None
    cell.first_suspicions.append(suspected.first)


@dataclass
class SlowCell:
    """Members that are declared dead though they live, where some are stopped again and again."""

    pause_seconds: float
    run_seconds: float
    lifeguard: bool
    hours: float
    healthy: int  # of members that are never stopped: their accusers are at fault
    all: int


def measure_slow(pause_seconds: float, run_seconds: float, lifeguard: bool, seed: int, minutes: float) -> SlowCell:
    world = World(seed=seed, settings=GossipSettings() if lifeguard else WITHOUT_LIFEGUARD)
    world.found(SLOW_NODES)
    world.run(WARM_SECONDS)
    judge = Judge(world)
    slow = world.nodes[:SLOW_MEMBERS]
    for each in slow:
        world.stutter(each, pause_seconds=pause_seconds, run_seconds=run_seconds)
    world.run(minutes * 60)
    names = {each.node for each in slow}
    healthy = sum(node not in names for node, _ in judge.deaths)
    return SlowCell(pause_seconds, run_seconds, lifeguard, minutes / 60, healthy, len(judge.deaths))


# --- what the papers say


def expected_first_suspicion(settings: GossipSettings) -> float:
    """SWIM's model: each of n members probes one of the others at random each period, so a member is probed with the
    chance 1 - 1/e, and the first probe after its crash begins after 1 / (1 - 1/e) periods at the mean; less the half of
    a period that has passed when it crashes, plus the period that the probe takes to fail."""
    return settings.probe_seconds * (1 / (1 - math.exp(-1)) - 0.5 + 1)


def expected_death(settings: GossipSettings, nodes: int) -> float:
    """Lifeguard's formula for the shortest suspicion (all confirmations are there), after the first suspicion."""
    return expected_first_suspicion(settings) + settings.suspicion_seconds_min(nodes)


# --- output


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _pair(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} / {_quantile(values, 0.99):.2f}"


def tell(cells: Sequence[Cell], slow: Sequence[SlowCell]) -> str:
    settings = GossipSettings()
    lines = [
        "Seconds until every member knows it, median / p99 (of so many events):",
        "",
        "| nodes | loss | events | join | leave | crash: first suspicion | crash: declared dead, known to all "
        "| the papers' formulas: first suspicion, mean | declared dead, mean |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {each.nodes:,} | {each.loss_percent:g} % | {len(each.joins)} | {_pair(each.joins)} | {_pair(each.leaves)} "
        f"| {_pair(each.first_suspicions)} | {_pair(each.crashes)} | {expected_first_suspicion(settings):.2f} "
        f"| {expected_death(settings, each.nodes):.1f} |"
        for each in cells
    ]
    lines += [
        "",
        "At rest, for each node; and what was wrongly said of members that live, in the whole cluster:",
        "",
        "| nodes | loss | packets/s sent | bytes/s sent, on the wire | push-pull bytes/s | false suspicions/h "
        "| false deaths/h | hours watched |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {each.nodes:,} | {each.loss_percent:g} % | {each.per_node_second(each.packets):.2f} "
        f"| {each.per_node_second(each.wire_bytes):.0f} | {each.per_node_second(each.push_pull_bytes):.0f} "
        f"| {each.per_hour(each.false_suspicions):.1f} | {each.per_hour(each.false_deaths):.1f} "
        f"| {each.watched_seconds / 3600:.2f} |"
        for each in cells
    ]
    lines += [
        "",
        "SWIM (Das, Gupta, Motivala 2002, abstract): the expected time to first detection and the expected message "
        "load per member do not vary with group size.",
        "",
        f"Simulated in {sum(each.cpu_seconds for each in cells):.0f} seconds of one core.",
    ]
    return "\n".join(lines + (_tell_slow(slow) if slow else []))


def _tell_slow(slow: Sequence[SlowCell]) -> list[str]:
    lines = [
        "",
        f"{SLOW_MEMBERS} of {SLOW_NODES} members are stopped again and again; declared dead an hour though they live:",
        "",
        "| stopped for | runs for | healthy members, SWIM | healthy members, Lifeguard | all, SWIM | all, Lifeguard |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for pause, run in SLOW_CASES:
        rates = {}
        for lifeguard in (False, True):
            runs = [each for each in slow if (each.pause_seconds, each.lifeguard) == (pause, lifeguard)]
            hours = sum(each.hours for each in runs)
            rates[lifeguard] = (sum(each.healthy for each in runs) / hours, sum(each.all for each in runs) / hours)
        (swim_healthy, swim_all), (healthy, everybody) = rates[False], rates[True]
        lines.append(
            f"| {pause:g} s | {run:g} s | {swim_healthy:,.0f} | {healthy:,.0f} | {swim_all:,.0f} | {everybody:,.0f} |"
        )
    lines += [
        "",
        "Lifeguard (Dadgar, Phillips, Currey, arXiv:1707.00788v1, abstract): reduces the false positive rate by a "
        "factor of more than 50 over SWIM; tuned for speed, the median detection latency by 45 % with 3 times fewer "
        "false positives at healthy members.",
    ]
    return lines


def plot(cells: Sequence[Cell], path: Path) -> None:
    import matplotlib  # an extra: `pip install kvstore[bench]`

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(15, 8.5), layout="constrained")
    sizes = sorted({each.nodes for each in cells})
    colours = dict(zip(sorted({each.loss_percent for each in cells}), ("#1b6ca8", "#e08214", "#b2182b"), strict=False))
    rest = ("packets/s sent, per node", "bytes/s sent on the wire, per node", "living members suspected, an hour")
    titles = ("join known to all, s", "leave known to all, s", "crash declared and known to all, s", *rest)

    def values(each: Cell, panel: int) -> tuple[float, float]:
        if panel < 3:
            measured = (each.joins, each.leaves, each.crashes)[panel]
            return statistics.median(measured), _quantile(measured, 0.99)
        if panel == 5:
            return each.per_hour(each.false_suspicions), each.per_hour(each.false_deaths)
        rate = each.per_node_second(each.packets if panel == 3 else each.wire_bytes)
        return rate, rate

    for panel, (axes, title) in enumerate(zip(panels.flat, titles, strict=True)):
        for loss, colour in colours.items():
            row = sorted((each for each in cells if each.loss_percent == loss), key=lambda each: each.nodes)
            pairs = [values(each, panel) for each in row]
            xs = [each.nodes for each in row]
            what = f"{loss:g} % loss"
            axes.plot(xs, [low for low, _ in pairs], "o-", color=colour, label=f"{what}, median" if panel < 3 else what)
            if panel < 3:
                axes.plot(xs, [high for _, high in pairs], "^:", color=colour, label=f"{what}, p99")
            elif panel == 5:
                axes.plot(xs, [high for _, high in pairs], "x--", color=colour, label=f"{what}, declared dead")
        if panel == 2:
            dashed = [expected_death(GossipSettings(), size) for size in sizes]
            axes.plot(sizes, dashed, "k--", label="the papers' formulas, mean")
        axes.set(title=title, xlabel="nodes", xscale="log", xticks=sizes, xticklabels=[f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(0, max(axes.get_ylim()[1], 1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def _numbers(text: str) -> list[float]:
    return [float(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Gossip, simulated: times, traffic, false positives.")
    parser.add_argument("--nodes", type=_numbers, default=[10, 100, 1_000])
    parser.add_argument("--loss", type=_numbers, default=[0, 5, 20], help="percent")
    parser.add_argument("--seeds", type=int, default=3, help="clusters of each kind")
    parser.add_argument("--minutes", type=float, default=5.0, help="virtual minutes at rest, of each cluster")
    parser.add_argument("--events", type=int, default=10, help="joins, leaves and crashes of each cluster")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--json", type=Path, help="all measured values")
    parser.add_argument("--from", dest="earlier", type=Path, help="show what --json has kept of an earlier run")
    options = parser.parse_args()
    if options.earlier:
        found = json.loads(options.earlier.read_text())
        cells, slow = [Cell(**each) for each in found["cells"]], [SlowCell(**each) for each in found["slow"]]
    else:
        cells, slow = run(options)
    print(tell(cells, slow))
    if options.json:
        kept = {"cells": [dataclasses.asdict(each) for each in cells], "slow": [vars(each) for each in slow]}
        options.json.write_text(json.dumps(kept, indent=1))
    if options.plot:
        plot(cells, options.plot)


def run(options: argparse.Namespace) -> tuple[list[Cell], list[SlowCell]]:
    cells = [Cell(int(nodes), loss) for nodes in options.nodes for loss in options.loss]
    with ProcessPoolExecutor(options.jobs) as pool:
        pending: list[tuple[Cell, Any]] = [
            (cell, pool.submit(measure, cell.nodes, cell.loss_percent, seed,
                               minutes=options.minutes, events=options.events))
            for cell in cells
            for seed in range(1, options.seeds + 1)
        ]  # fmt: skip
        slow_pending = [
            pool.submit(measure_slow, pause, run, lifeguard, seed, options.minutes)
            for pause, run in SLOW_CASES
            for lifeguard in (False, True)
            for seed in range(1, options.seeds + 1)
        ]
        for cell, future in pending:
            cell.add(future.result())
        return cells, [future.result() for future in slow_pending]


if __name__ == "__main__":
    main()
