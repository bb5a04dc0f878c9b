"""Hints that wait to be told: what was told least goes first, of these the newest, and nothing is told for ever.

Newest first, unlike news of members: after many elections at once the queue is long, and what is asked for is where the
shards are led now. What waits too long is found by the digests.

Invariant: one hint a shard at most; a newer one replaces it and starts anew.
Invariant: at most `hints_max` hints wait; past it the one told most, of these the oldest, is dropped.
Called by: leader_hints.   Source: SWIM, section 4.1.
"""

from __future__ import annotations

from msgspec import Raw

MISSES_MAX = 8
"""A packet is full after so many hints that did not fit: to look through a long queue costs more than it wins."""


class HintQueue:
    def __init__(self, hints_max: int) -> None:
        assert hints_max > 0
        self._hints_max = hints_max
        self._tiers: list[dict[int, Raw]] = []  # by times told; in each, by shard, the newest at the end
        self._tier_of: dict[int, int] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._tier_of)

    def put(self, shard: int, hint: Raw) -> None:
        self.drop(shard)
        if len(self._tier_of) >= self._hints_max:
            tier = next(tier for tier in reversed(self._tiers) if tier)
            self.drop(next(iter(tier)))
            self.dropped += 1
        self._insert(shard, hint, 0)

    def drop(self, shard: int) -> None:
        tier = self._tier_of.pop(shard, None)
        if tier is not None:
            del self._tiers[tier][shard]

    def take(self, bytes_max: int, *, limit: int) -> list[Raw]:
        """What fits, each counted as told once more; forgotten when it was told `limit` times."""
        picked = self._pick(bytes_max)
        for shard, hint in picked:
            tier = self._tier_of.pop(shard)
            del self._tiers[tier][shard]
            if tier + 1 < limit:
                self._insert(shard, hint, tier + 1)
        return [hint for _, hint in picked]

    def _pick(self, bytes_max: int) -> list[tuple[int, Raw]]:
        picked: list[tuple[int, Raw]] = []
        misses = 0
        for tier in self._tiers:
            for shard, hint in reversed(tier.items()):
                if len(hint) <= bytes_max:
                    picked.append((shard, hint))
                    bytes_max -= len(hint)
                    continue
                misses += 1
                if misses > MISSES_MAX:
                    return picked
        return picked

    def _insert(self, shard: int, hint: Raw, tier: int) -> None:
        while len(self._tiers) <= tier:
            self._tiers.append({})
        self._tiers[tier][shard] = hint
        self._tier_of[shard] = tier
