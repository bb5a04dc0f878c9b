"""The counter from which new shards get their ids: one record of the meta group.

Invariant: an id is given at most once, whatever is lost or retried: the counter only rises, by compare-and-set, and an
           id belongs to the one attempt whose compare-and-set made it rise. An attempt whose answer was lost takes
           another one; the id that nobody heard of is never used.
Called by: router/split_admin, where the meta group is led.
"""

from __future__ import annotations

from kvstore.base.ids import DEFAULT_SHARD
from kvstore.base.operations import Cas
from kvstore.state.shard import ShardState

KEY = b"shard-ids/next"
FIRST = DEFAULT_SHARD + 1


def take_next(meta: ShardState) -> tuple[int, Cas]:
    """An id, and the mutation of the meta group that makes it the caller's if it holds."""
    found = meta.get(KEY)
    number = int(found.value) if found is not None else FIRST
    return number, Cas(0, KEY, b"%d" % (number + 1), found.mod_revision if found is not None else 0)
