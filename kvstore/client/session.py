"""The client's session: what makes a retried mutation take effect once.

Each mutation gets a sequence number when it is first put into a frame, and keeps it. `low` tells the shards which
answers nobody waits for any more. Numbers are given out in blocks of one frame, and counted down by block: a whole
frame that is answered costs one subtraction.

Invariant: a number is never given twice.
Invariant: `low()` never passes a mutation that somebody still waits for. It may lag behind the lowest such number by
           the other numbers of its block; shards then keep a few answers longer, which is harmless.
It also keeps what the clock of each shard showed: the stamps of shards may differ (a jump of a wall clock is absorbed
at each shard's own pace), so a mutation is stamped by the clock of the shard that it goes to, where that was heard.
Called by: batcher.py (begin, low, stamp_ms), dispatcher.py (counts the blocks down, hears the stamps).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Container

from kvstore.base.limits import SESSION_BYTES


class SeqBlock:
    """The numbers of one frame's mutations."""

    __slots__ = ("first", "remaining")

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.remaining = count  # of them not settled yet


class Session:
    """One per client object, for its whole life."""

    def __init__(self, rng: random.Random) -> None:
        self.id = rng.getrandbits(8 * SESSION_BYTES).to_bytes(SESSION_BYTES, "big")
        self._next = 1  # 0 means "no sequence" on the wire
        self._blocks: deque[SeqBlock] = deque()
        self._stamps: dict[int, tuple[int, float]] = {}  # by shard: (ms, loop time of hearing it)

    def begin(self, count: int) -> SeqBlock:
        """A block of `count` new numbers, from `first` up."""
        assert count > 0
        block = SeqBlock(self._next, count)
        self._next += count
        self._blocks.append(block)
        return block

    def low(self) -> int:
        """The lowest number that may still be waited for; the next one to be given when none is."""
        blocks = self._blocks
        while blocks and blocks[0].remaining == 0:
            blocks.popleft()
        if not blocks:
            return self._next
        assert blocks[0].remaining > 0
        return blocks[0].first

    def heard(self, shard: int, stamp: int, now: float) -> None:
        """The shard's clock shows `stamp` (ms)."""
        self._stamps[shard] = (stamp, now)

    def stamp_ms(self, shard: int, now: float, default: int) -> int:
        """What the shard's clock shows by our reckoning; `default` if it was never heard."""
        heard = self._stamps.get(shard)
        if heard is None:
            return default
        stamp, heard_at = heard
        return stamp + max(0, int((now - heard_at) * 1000))

    def forget_stamps(self, shards: Container[int]) -> None:
        """Of shards that are not among these."""
        for shard in [shard for shard in self._stamps if shard not in shards]:
            del self._stamps[shard]
