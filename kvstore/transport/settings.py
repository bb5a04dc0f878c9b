"""The bounds and times of the transport, with their reasons. All are SOFT: nodes may differ.

Invariant: the relations asserted at the end of `__post_init__` hold for every instance.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.base.limits import (
    KIB,
    PEER_MESSAGE_BYTES_MAX,
    PEER_QUEUE_BYTES_MAX,
    SNAPSHOT_BYTES_PER_SECOND,
    SNAPSHOT_SECONDS_MAX,
)

BEAT_SECONDS = 0.25
CONNECTION_SILENT_SECONDS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSettings:
    """Seconds and bytes."""

    hello_seconds_max: float = 5.0  # TCP connect, upgrade and hello together
    greetings_max: int = 64  # connections that have not proved yet who they are; each may hold a part (256 KiB)
    probe_seconds_max: float = 1.0  # a connect that takes longer is no evidence
    probe_linger_seconds: float = 0.05  # how long a connect after a loss is watched: the killed are reset in ~10 ms
    backoff_seconds_min: float = 0.02
    backoff_seconds_max: float = 0.25  # two survivors of a restart must not wait longer for each other than an election
    steady_seconds: float = 1.0  # a connection that lived that long is tried again without a pause
    beat_seconds: float = BEAT_SECONDS  # something is sent each second time at least: sleeping groups rely on it
    silent_beats_max: int = 16  # so many beats without a byte received, and the connection is given up
    farewell_seconds_max: float = 0.5  # how long a close waits for the peer's answer

    queue_bytes_max: int = PEER_QUEUE_BYTES_MAX
    coalesce_bytes_max: int = 256 * KIB  # queued messages are joined up to this size; a larger single one goes alone
    removed_max: int = 1_024  # notices that wait for one peer; the replica asks again when it is dropped
    peers_max: int = 1_024  # nodes that may be connected; strangers beyond it are refused

    snapshot_bytes_per_second: float = SNAPSHOT_BYTES_PER_SECOND
    snapshot_streams_max: int = 3  # each way; more would only share the same rate
    snapshot_waiting_max: int = 16  # each way; further ones are refused
    snapshot_wait_seconds_max: float = 5.0  # for a free stream of the receiver
    snapshot_answer_seconds_max: float = 30.0  # until the receiver says where to begin: it may wait for a free stream
    snapshot_window: int = 4  # chunks on the way that the receiver has not taken: 1 MiB
    snapshot_attempts_max: int = 6  # connections in a row that brought nothing forward
    snapshot_backoff_seconds: float = 0.2  # doubled each time, at most 10 times as long
    snapshot_seconds_max: float = SNAPSHOT_SECONDS_MAX
    snapshot_heartbeat_seconds: float = 10.0

    @classmethod
    def for_elections(cls, election_ms: int) -> TransportSettings:
        """Beats that fit a smallest election timeout: sleeping groups take a node that is not heard of for so long for
        silent. A connection is given up after four seconds all the same."""
        beat_seconds = min(BEAT_SECONDS, election_ms / 4_000)
        return cls(beat_seconds=beat_seconds, silent_beats_max=round(CONNECTION_SILENT_SECONDS / beat_seconds))

    def __post_init__(self) -> None:
        assert 0 < self.backoff_seconds_min <= self.backoff_seconds_max
        assert self.queue_bytes_max >= self.coalesce_bytes_max
        assert self.coalesce_bytes_max <= PEER_MESSAGE_BYTES_MAX // 2
        assert self.snapshot_window >= 1
        assert self.snapshot_wait_seconds_max < self.snapshot_answer_seconds_max
        assert self.silent_beats_max >= 2
