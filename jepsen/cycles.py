"""Cycles in the graph of who depends on whom, and the names that Adya gave them.

Edges: ww (wrote the next version), wr (read what the other wrote), rw (read what the other overwrote), realtime (began
after the other was answered).
  G0        a cycle of ww only                     G1c   of ww and wr
  G-single  with exactly one rw                    G2    with more than one rw
`-realtime` behind a name: the cycle needs the order of time, so the history may be serializable, but not strictly.
Invariant: a cycle that is told is one: each of its edges is in the graph, and its name follows from its edges.
Source: Adya 1999; Kingsbury & Alvaro (Elle) 2020; Tarjan 1972.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

WW, WR, RW, REALTIME = "ww", "wr", "rw", "realtime"
KINDS = (("G0", WW, (WW,)), ("G1c", WR, (WW, WR)), ("G-single", RW, (WW, WR)), ("G2", RW, (WW, WR, RW)))
"""A name, an edge that such a cycle has, and what the way back from it may be made of."""
TRIED_MAX = 300
"""Edges of one component from which a cycle of one kind is looked for: the shortest of those is told."""


@dataclass(slots=True)
class Edge:
    source: int
    target: int
    kind: str
    why: str


@dataclass(slots=True)
class Cycle:
    name: str
    edges: list[Edge]


@dataclass(slots=True)
class Graph:
    """Nodes are numbers. Of several edges between two nodes of one kind the first one is kept."""

    _edges: dict[int, dict[tuple[int, str], Edge]] = field(default_factory=dict)

    def add(self, source: int, target: int, kind: str, why: str) -> None:
        if source != target:
            self._edges.setdefault(source, {}).setdefault((target, kind), Edge(source, target, kind, why))

    def edges(self, source: int, kinds: Collection[str]) -> Iterator[Edge]:
        return (edge for edge in self._edges.get(source, {}).values() if edge.kind in kinds)

    def sources(self) -> list[int]:
        return list(self._edges)


def find(graph: Graph) -> list[Cycle]:
    """The shortest cycle that was found of each kind in each strongly connected component, the worst kind first."""
    found: list[Cycle] = []
    for extra, suffix in (((), ""), ((REALTIME,), "-realtime")):
        for name, must, back in KINDS:
            for component in components(graph, {must, *back, *extra}):
                edges = _shortest(graph, component, must, {*back, *extra})
                if edges and classify(edges) == name + suffix:
                    found.append(Cycle(name + suffix, edges))
    return found


def classify(edges: list[Edge]) -> str:
    """What a cycle is called."""
    kinds = [edge.kind for edge in edges]
    if kinds.count(RW) > 1:
        name = "G2"
    elif RW in kinds:
        name = "G-single"
    else:
        name = "G1c" if WR in kinds else "G0"
    return name + ("-realtime" if REALTIME in kinds else "")


def components(graph: Graph, kinds: Collection[str]) -> list[set[int]]:
    """The strongly connected components of more than one node. Iterative: a history is deeper than the stack."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[set[int]] = []
    for root in graph.sources():
        if root in index:
            continue
        work = [(root, graph.edges(root, kinds))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, edges = work[-1]
            edge = next(edges, None)
            if edge is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    _pop_component(stack, on_stack, node, found)
            elif edge.target not in index:
                index[edge.target] = low[edge.target] = len(index)
                stack.append(edge.target)
                on_stack.add(edge.target)
                work.append((edge.target, graph.edges(edge.target, kinds)))
            elif edge.target in on_stack:
                low[node] = min(low[node], index[edge.target])
    return found


def _pop_component(stack: list[int], on_stack: set[int], node: int, found: list[set[int]]) -> None:
    component = set()
    while True:
        member = stack.pop()
        on_stack.discard(member)
        component.add(member)
        if member == node:
            break
    if len(component) > 1:
        found.append(component)


def _shortest(graph: Graph, component: set[int], must: str, kinds: Collection[str]) -> list[Edge]:
    """The shortest cycle through an edge of the kind that it must have; the way back uses `kinds`. Empty if none."""
    best: list[Edge] = []
    firsts = (edge for node in sorted(component) for edge in graph.edges(node, (must,)) if edge.target in component)
    for first in islice(firsts, TRIED_MAX):
        back = _path(graph, first.target, first.source, component, kinds)
        if back is not None and (not best or len(back) + 1 < len(best)):
            best = [first, *back]
    return best


def _path(graph: Graph, start: int, goal: int, component: set[int], kinds: Collection[str]) -> list[Edge] | None:
    """A shortest path inside of a component, by breadth."""
    came: dict[int, Edge] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node == goal:
            path = []
            while node != start:
                path.append(came[node])
                node = came[node].source
            return path[::-1]
        for edge in graph.edges(node, kinds):
            if edge.target in component and edge.target not in came and edge.target != start:
                came[edge.target] = edge
                queue.append(edge.target)
    return None
