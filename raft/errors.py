"""What the Raft core refuses. Each is raised before anything has changed."""

from __future__ import annotations


class RaftError(Exception):
    """Base of all refusals."""


class ProposalDropped(RaftError):
    """The proposal was not taken, and nothing of it will ever be in the log (a definite answer)."""


class NotLeader(ProposalDropped):
    """Only a leader takes proposals. `leader_id` is the best hint, 0 when unknown."""

    def __init__(self, leader_id: int) -> None:
        super().__init__(f"not the leader; the leader is {leader_id or 'unknown'}")
        self.leader_id = leader_id


class UncommittedLimit(ProposalDropped):
    """Too many bytes are proposed and not committed yet; try again when some are."""


class TransferInProgress(ProposalDropped):
    """The leadership is being handed over."""


class ConfChangeRefused(ProposalDropped):
    """The change is not legal now (another one is under way, joint or not joint, no voter would be left, ...)."""


class StepRefused(RaftError):
    """The message is of no use to this replica (wrong recipient, unknown sender of a reply, local type)."""


class LogCompacted(RaftError):
    """The index lies before the first one that the log still holds."""


class LogUnavailable(RaftError):
    """The index lies behind the last one."""
