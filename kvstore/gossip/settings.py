"""The times and bounds of gossip, with their reasons. All are SOFT: nodes may differ, though they should not.

Defaults are those of memberlist for a local network, but for what says otherwise.

Invariant: the relations asserted at the end of `__post_init__` hold for every instance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PACKET_BYTES_MIN = 1_100
"""A packet holds at least one record of a member, or the digests of the cargo, beside its head; a smaller budget is
refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSettings:
    """Seconds, bytes and numbers of things."""

    probe_seconds: float = 1.0  # one member is probed each; times health + 1
    probe_timeout_seconds: float = 0.5  # until others are asked to probe, too; times health + 1
    ping_again_seconds: float = 0.125  # between pings until an ack comes; see probe.py. Times health + 1
    indirect_probes: int = 3  # SWIM's k
    nack_share: float = 0.8  # of the timeout; a relay says by then that it got no answer (Lifeguard 4.1)
    health_max: int = 8  # awareness lies in [0, this)

    suspicion_factor: float = 4.0  # Lifeguard's alpha
    suspicion_stretch: float = 6.0  # Lifeguard's beta: the time without confirmations over the time with all
    confirmations: int = 2  # independent suspicions that shorten the time to its minimum

    gossip_seconds: float = 0.2  # between ticks, while something waits to be told
    gossip_targets: int = 3
    gossip_packets_max: int = 5  # to one target in one tick, when much waits
    gossip_to_dead_seconds: float = 30.0  # a member that was declared dead wrongly should hear of it
    retransmit_factor: int = 4  # news is sent this many times ceil(log10(members + 1))
    reconnect_seconds: float = 10.0  # one dead member is told so each: it refutes, if it lives (heals partitions)

    push_pull_seconds: float = 30.0  # see `push_pull_interval`
    push_pull_members: int = 32  # above, the interval grows with the logarithm
    sync_seconds: float = 1.0  # between two comparisons of cargo with one peer
    sync_patience_seconds: float = 5.0  # while cargo still waits to be told, compare no more often
    sync_packets_max: int = 8

    forget_seconds: float = 86_400.0  # after its death or leave
    sweep_seconds: float = 60.0  # between two looks for what is to be forgotten
    late_seconds: float = 0.25  # a tick this late means that this process slept: nobody else is to blame for that

    members_max: int = 4_096  # known at once, this node included
    relays_max: int = 256  # probes on behalf of others under way
    outbox_max: int = 1_024  # datagrams that wait for `take`
    events_max: int = 16_384  # that wait for `take`; each member may change a few times in one push-pull
    conflicts_max: int = 256  # pairs of one name that were told

    def __post_init__(self) -> None:
        assert 0 < self.probe_timeout_seconds < self.probe_seconds
        assert self.ping_again_seconds * 16 >= self.probe_seconds, "pings of one probe are bounded"
        assert self.probe_timeout_seconds * (1 + self.nack_share) < self.probe_seconds, "a nack would come too late"
        assert 0 < self.gossip_seconds <= self.probe_seconds
        assert self.health_max >= 1
        assert self.confirmations >= 0
        assert self.suspicion_stretch >= 1
        assert self.gossip_packets_max >= 1
        assert self.events_max >= self.members_max
        assert 0 < self.sweep_seconds <= self.forget_seconds

    def retransmits(self, members: int) -> int:
        """How often a piece of news is sent by each node that has it."""
        return self.retransmit_factor * math.ceil(math.log10(members + 1))

    def suspicion_seconds_min(self, members: int) -> float:
        """How long a suspect has to refute once all confirmations are in."""
        return self.suspicion_factor * max(1.0, math.log10(max(members, 1))) * self.probe_seconds

    def push_pull_interval(self, members: int) -> float:
        """Seconds between two full exchanges that one node begins: in a large cluster each is larger."""
        if members <= self.push_pull_members:
            return self.push_pull_seconds
        return self.push_pull_seconds * (1 + math.ceil(math.log2(members / self.push_pull_members)))
