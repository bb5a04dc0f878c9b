"""The settings of one replica's core. Checked once, then never changed.

Invariant: heartbeat_ticks < election_ticks, or every pause between two heartbeats would look like a dead leader.
Who uses it: everything in `raft/`; the driver builds it from the cluster's settings, the same on every replica.
"""

from __future__ import annotations

from dataclasses import dataclass

from raft.types import NO_REPLICA

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    replica_id: int
    election_ticks: int = 20
    """A follower waits for [election_ticks, 2 * election_ticks) without a leader before it campaigns."""
    heartbeat_ticks: int = 2
    tick_ms: int = 50
    """The least real time between two ticks. Only turns ticks into milliseconds for the leader lease."""
    pre_vote: bool = True
    check_quorum: bool = True
    lease_reads: bool = False
    """Heartbeats ask for a promise, and a voter that (re)starts refuses votes for one election timeout."""
    append_bytes_max: int = MEBIBYTE
    """Payload of one APPEND; the entry that reaches it still goes along."""
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 * MEBIBYTE
    """What may be on its way to one peer, unanswered."""
    uncommitted_bytes_max: int = 64 * MEBIBYTE
    """Payload that a leader holds proposed and not committed; beyond it, proposals are refused."""
    committed_bytes_max: int = 16 * MEBIBYTE
    """Payload handed out in `Ready.committed` and not yet reported by `applied_to`."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.replica_id <= NO_REPLICA:
            raise ValueError("replica_id must be positive")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError("heartbeat_ticks must be at least 1 and less than election_ticks")
        if self.lease_reads and not self.check_quorum:
            raise ValueError("lease_reads needs check_quorum: else voters do not stand by a leader that they hear")
        for name in (
            "tick_ms",
            "append_bytes_max",
            "inflight_messages_max",
            "inflight_bytes_max",
            "uncommitted_bytes_max",
            "committed_bytes_max",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")
