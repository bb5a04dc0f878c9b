"""Shards that are too large or too busy are split; where, their leader decides, since only it has the keys.

A shard whose leader finds no legal key (one key group) says so in its report and is not asked again.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.base.ids import META_SHARD
from kvstore.base.limits import MIB
from kvstore.placement.moves import make_plan
from kvstore.placement.operators import Kind, Plan, Step, StepKind
from kvstore.placement.view import View


def split(view: View) -> Iterator[Plan]:
    for shard in [view.shards[one] for one in view.oversize]:
        if not view.has_room():
            return
        if shard.id == META_SHARD or not view.is_calm(shard.id):
            continue
        size = shard.data_bytes >= view.thresholds.split_bytes
        reason = f"{shard.data_bytes // MIB} MiB" if size else f"{shard.load} operations a second"
        kind = Kind.SPLIT if size else Kind.SPLIT_LOAD
        yield make_plan(view, shard, kind, [Step(StepKind.SPLIT)], shard.nodes, shard.leader, reason)
