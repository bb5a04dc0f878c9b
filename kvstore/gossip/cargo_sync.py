"""When two nodes compare their cargo: probes and acks carry its digest, and where digests differ, parts are compared.

Invariant: a comparison with one peer is begun, and answered, once in `sync_seconds` at most.
"""

from __future__ import annotations

from kvstore.gossip.cargo import Cargo
from kvstore.gossip.counters import Counters
from kvstore.gossip.outbox import Outbox
from kvstore.gossip.packet import Gossip, Sync
from kvstore.gossip.roster import Roster
from kvstore.gossip.settings import GossipSettings


class CargoSync:
    def __init__(
        self, me: bytes, *, cargo: Cargo, outbox: Outbox, roster: Roster, counters: Counters, settings: GossipSettings
    ) -> None:
        self._me = me
        self._cargo = cargo
        self._outbox = outbox
        self._roster = roster
        self._counters = counters
        self._settings = settings
        self._asked: dict[str, float] = {}  # node -> when; for members only, so bounded
        self._answered: dict[str, float] = {}
        self._last = float("-inf")

    def on_digest(self, node: str, digest: int, now: float) -> None:
        """What a member says that it has."""
        entry = self._roster.get(node)
        if (
            entry is None
            or digest == self._cargo.digest()
            or _is_soon(self._asked, node, self._settings.sync_seconds, now)
        ):
            return
        # While items are being told, digests differ everywhere and mend themselves.
        if self._cargo.pending and now < self._last + self._settings.sync_patience_seconds:
            return
        self._asked[node] = self._last = now
        self._counters.syncs_sent += 1
        self._outbox.send_cargo(entry.member.address, Sync(self._me, self._cargo.buckets()), [])

    def on_sync(self, body: Sync, now: float) -> None:
        node = body.sender.hex()
        entry = self._roster.get(node)
        if entry is None:
            self._counters.refuse("stranger")
            return
        # Packets that left a second apart need not come a second apart.
        if _is_soon(self._answered, node, self._settings.sync_seconds / 2, now):
            self._counters.refuse("sync too soon")
            return
        self._answered[node] = now
        self._counters.syncs_answered += 1
        packets = self._cargo.differing(
            body.buckets,
            bytes_max=self._outbox.cargo_room(Gossip()),
            packets_max=self._settings.sync_packets_max,
        )
        for items in packets:
            self._outbox.send_cargo(entry.member.address, Gossip(), items)

    def sweep(self, now: float) -> None:
        """Drop what no longer keeps anybody waiting."""
        for times in (self._asked, self._answered):
            for node in [node for node in times if not _is_soon(times, node, self._settings.sync_seconds, now)]:
                del times[node]


def _is_soon(times: dict[str, float], node: str, seconds: float, now: float) -> bool:
    last = times.get(node)
    return last is not None and now < last + seconds
