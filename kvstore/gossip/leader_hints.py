"""Which node leads which shard, as the leaders tell it: the cargo of gossip.

A leader announces itself once it has applied everything of earlier terms, and again with each change of its shard or
its term. Whoever hears something new passes it on, some times; what was lost, or was too much at once, is found by
comparing digests.

Invariant: news wins over rumours: hints are merged by (version, term, conf), and one whose range a higher version
    covers is dropped, see hint_table.
Invariant: of this node's own leaderships only those are passed on that it has now. What others still tell of an earlier
    one is held like every hint, so that digests agree, but not told anew from here.
Invariant: the table, the queue and each item are bounded; nothing that comes from elsewhere raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Raw

from kvstore.gossip.hint import BadHint, Hint, decode, encode, is_sound, overrides
from kvstore.gossip.hint_digests import HintDigests
from kvstore.gossip.hint_queue import HintQueue
from kvstore.gossip.hint_table import HintTable
from kvstore.gossip.settings import GossipSettings

HINTS_MAX = 65_536
"""Shards that hints are held of; those of more are refused and counted. About 40 MiB, with keys of ordinary length."""
QUEUE_MAX = 4_096
BULK_ITEMS = 64
"""More items at once than a packet holds come from an exchange of everything. They are not passed on: the others had
the same chance, and a node that has just joined would tell everybody what all of them know."""


class LeaderHints:
    """Fulfils `cargo.Cargo`."""

    def __init__(
        self,
        node: str,
        *,
        settings: GossipSettings | None = None,
        hints_max: int = HINTS_MAX,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        """`node`: the id of this node."""
        self._me = bytes.fromhex(node)
        assert len(self._me) == 16
        self._settings = settings or GossipSettings()
        self._hints_max = hints_max
        self._table = HintTable(overrides)
        self._digests = HintDigests()
        self._queue = HintQueue(queue_max)
        self._led: dict[int, Hint] = {}  # by shard, as last announced
        self.on_change: Callable[[Sequence[Hint]], None] = lambda _: None
        """Told the hints that have come to stand, after each change; those that they put out overlap them."""
        self.malformed = 0
        self.refused = 0  # because the table is full

    # -- what is believed ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._table)

    def table(self) -> list[Hint]:
        """All hints that stand, in the order of keys."""
        return list(self._table)

    def get(self, shard: int) -> Hint | None:
        return self._table.get(shard)

    def find(self, key: bytes) -> Hint | None:
        """Of the shard that holds the full key."""
        return self._table.find(key)

    def counts(self) -> dict[str, float]:
        """For metrics."""
        return {
            "held": len(self._table),
            "led": len(self._led),
            "waiting": len(self._queue),
            "dropped": self._queue.dropped,
            "malformed": self.malformed,
            "refused": self.refused,
        }

    # -- what this node knows itself -------------------------------------------------------------------------------

    def announce(self, led: Sequence[Hint]) -> None:
        """All shards that this node leads now; what has changed since the last call is told to the others."""
        before, self._led = self._led, {hint.id: hint for hint in led}
        changed = []
        for hint in self._led.values():
            old = before.get(hint.id)
            if old is hint or old == hint:
                continue
            assert hint.leader == self._me
            assert is_sound(hint)
            if self._merge(hint):
                self._tell(hint)
                changed.append(hint)
        for shard in before:
            if shard not in self._led:
                self._stop_telling(shard)
        if changed:
            self.on_change(changed)

    def _stop_telling(self, shard: int) -> None:
        hint = self._table.get(shard)
        if hint is not None and hint.leader == self._me:
            self._queue.drop(shard)

    # -- as the cargo ----------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return len(self._queue)

    def digest(self) -> int:
        return self._digests.all

    def take(self, bytes_max: int, *, members: int) -> list[Raw]:
        return self._queue.take(bytes_max, limit=self._settings.retransmits(members))

    def receive(self, items: Sequence[Raw], now: float) -> None:
        is_bulk = len(items) > BULK_ITEMS
        changed = []
        for item in items:
            try:
                hint = decode(item)
            except BadHint:
                self.malformed += 1
                continue
            if self._merge(hint):
                changed.append(hint)
                if not is_bulk and not self._is_stale_claim(hint):
                    self._tell(hint)
        if changed:
            self.on_change(changed)

    def buckets(self) -> bytes:
        return self._digests.parts()

    def differing(self, buckets: bytes, *, bytes_max: int, packets_max: int) -> list[list[Raw]]:
        return self._digests.differing(buckets, bytes_max=bytes_max, packets_max=packets_max)

    # -- within ----------------------------------------------------------------------------------------------------

    def _merge(self, hint: Hint) -> bool:
        """Whether it has come to stand."""
        if len(self._table) >= self._hints_max and self._table.get(hint.id) is None:
            self.refused += 1
            return False
        out = self._table.merge(hint)
        if out is None:
            return False
        for one in out:
            self._digests.remove(one.id)
            self._queue.drop(one.id)
        self._digests.add(hint.id, encode(hint))
        return True

    def _is_stale_claim(self, hint: Hint) -> bool:
        """Whether it says that this node leads a shard which it does not, or not any more in that term."""
        if hint.leader != self._me:
            return False
        led = self._led.get(hint.id)
        return led is None or led.term != hint.term

    def _tell(self, hint: Hint) -> None:
        self._queue.put(hint.id, self._digests.encoded(hint.id))
