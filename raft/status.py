"""What a replica tells of itself, for operators and tests. A copy: nothing here changes afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

from raft.progress import ProgressState
from raft.types import ConfState, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    match: int
    next: int
    state: ProgressState
    is_learner: bool
    recent_active: bool
    inflight: int  # appends on their way
    inflight_bytes: int
    pending_snapshot: int  # 0 = none


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    replica_id: int
    role: Role
    term: int
    vote: int
    leader_id: int
    commit: int
    applied: int
    first_index: int
    last_index: int
    stable_index: int  # durable here up to this one
    conf_state: ConfState
    transfer_target: int
    asleep: bool
    barred: bool
    lease_until_ms: int | None  # leader with a lease only
    promise_ticks: int  # for which no vote is given
    uncommitted_bytes: int
    progress: dict[int, PeerStatus] = field(default_factory=dict)  # leader only; itself included
