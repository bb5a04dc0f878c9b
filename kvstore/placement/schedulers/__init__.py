"""The schedulers: each a pure function from the view to plans, in a file of its own.

A scheduler is a generator: whoever runs it begins each plan (`View.begin`) before asking for the next, so that the next
one is decided on a view in which the first is done. It ends by itself when nothing is to be done or no room is left.

They are ranked, and together they come to rest: an earlier one acts when its own measure is out of bounds, and a later
one makes no move that would bring it there. So nothing is moved to and fro.

    repair      replicas on lost nodes, missing and surplus ones, additions that broke off; the meta group's number
    drain       leaderships, then replicas, off the nodes that are drained
    spread      replicas over zones and hosts
    split       shards that are too large or too busy
    replicas    the number of replicas of each node, then their bytes
    leaders     the number of leaderships
    load        hot shards
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvstore.placement.operators import Plan
from kvstore.placement.schedulers.drain import drain
from kvstore.placement.schedulers.leaders import balance_leaders
from kvstore.placement.schedulers.load import balance_load
from kvstore.placement.schedulers.repair import repair
from kvstore.placement.schedulers.replicas import balance_bytes, balance_replicas
from kvstore.placement.schedulers.split import split
from kvstore.placement.schedulers.spread import spread
from kvstore.placement.view import View

Scheduler = Callable[[View], Iterator[Plan]]

KEEPING: tuple[Scheduler, ...] = (repair, drain, spread, split)
"""Always."""
BALANCING: tuple[Scheduler, ...] = (balance_replicas, balance_bytes, balance_leaders, balance_load)
"""Where the setting `rebalance` is on."""


def schedulers_of(view: View) -> tuple[Scheduler, ...]:
    return (*KEEPING, *BALANCING) if view.thresholds.rebalance else KEEPING
