"""News that waits to be told: what was told least goes first, and nothing is told for ever.

Invariant: one piece of news about a node at most; a newer one replaces it and starts anew.
Invariant: a piece is handed out `limit` times at most. So the queue never holds more than there are nodes.

Source: SWIM, section 4.1 (piggyback, lambda log n times, fewest first).
"""

from __future__ import annotations

import msgspec

MISSES_MAX = 8
"""A packet is full after so many pieces that did not fit: to look through a long queue costs more than it wins."""


class Broadcasts:
    def __init__(self) -> None:
        self._tiers: list[dict[str, msgspec.Raw]] = []  # by times told; in each, the oldest first
        self._tier_of: dict[str, int] = {}
        self.bytes_waiting = 0

    def __len__(self) -> int:
        return len(self._tier_of)

    def __contains__(self, node: str) -> bool:
        return node in self._tier_of

    def put(self, node: str, news: msgspec.Raw) -> None:
        self.drop(node)
        self._insert(node, news, 0)
        self.bytes_waiting += len(news)

    def drop(self, node: str) -> None:
        tier = self._tier_of.pop(node, None)
        if tier is not None:
            self.bytes_waiting -= len(self._tiers[tier].pop(node))

    def take(self, bytes_max: int, *, limit: int) -> list[msgspec.Raw]:
        """What fits, each counted as told once more; forgotten when it was told `limit` times."""
        if not self._tier_of:
            return []
        picked = self._pick(bytes_max)
        for node, news in picked:
            tier = self._tier_of.pop(node)
            del self._tiers[tier][node]
            if tier + 1 < limit:
                self._insert(node, news, tier + 1)
            else:
                self.bytes_waiting -= len(news)
        assert self.bytes_waiting >= 0
        return [news for _, news in picked]

    def _pick(self, bytes_max: int) -> list[tuple[str, msgspec.Raw]]:
        picked: list[tuple[str, msgspec.Raw]] = []
        misses = 0
        for tier in self._tiers:
            for node, news in tier.items():
                if len(news) <= bytes_max:
                    picked.append((node, news))
                    bytes_max -= len(news)
                    continue
                misses += 1
                if misses > MISSES_MAX:
                    return picked
        return picked

    def _insert(self, node: str, news: msgspec.Raw, tier: int) -> None:
        while len(self._tiers) <= tier:
            self._tiers.append({})
        self._tiers[tier][node] = news
        self._tier_of[node] = tier
