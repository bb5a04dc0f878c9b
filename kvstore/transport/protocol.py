"""What the node asks of its network: messages to peers, evidence about peers, snapshot streams, forwarded requests.

`peer_link` and `snapshot_stream` do it over WebSockets; a simulation brings its own. Safety never depends on
delivery: messages may be lost, and are dropped rather than queued without bound.

Invariant: a handler is called on the loop, and never from inside `send`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from raft.types import Message


@dataclass(slots=True)
class GroupMessage:
    """A Raft message with the group it belongs to. The node is the connection's."""

    group: int
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerHello:
    """How every connection between nodes opens, from both sides."""

    cluster: str
    node: str  # NodeId of the sender
    to_node: str  # whom it believes to speak to ("" = not known yet)
    name: str
    boot: str
    protocol: int
    address: str = ""  # HOST:PORT of the sender, by its own account


class PeerHandler(Protocol):
    """What the host does with what comes in."""

    def on_messages(self, node: str, messages: list[GroupMessage]) -> None: ...
    def on_removed(self, node: str, group: int, replica_id: int) -> None:
        """The peer says that this replica was removed (its tombstone is higher)."""

    def on_peer_up(self, node: str, boot: str) -> None:
        """A connection is open, for the first time or again; another boot id than before = another process."""

    def on_peer_gone(self, node: str) -> None:
        """Evidence: all connections to the peer are closed and a new one was refused. Said again with each further
        refusal (a few times a second) until the peer is back."""

    async def on_snapshot(self, node: str, header: bytes, chunks: AsyncIterator[tuple[int, bytes]]) -> None:
        """A snapshot arrives; raising SnapshotRefused tells the sender why. Where the connection breaks, `chunks`
        raises ConnectionError and a later call may go on; the call itself is cancelled only by `close`."""

    def snapshot_resume_at(self, node: str, header: bytes) -> int:
        """Number of the first chunk that is still wanted (0 = all)."""


class PeerTransport(Protocol):
    async def start(self, handler: PeerHandler) -> None: ...
    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Node id -> HOST:PORT of every other node that there should be a connection with (the own one is skipped)."""

    def send(self, node: str, messages: list[GroupMessage]) -> bool:
        """Queue one WebSocket message; False when it was dropped (no connection, full queue)."""

    def send_removed(self, node: str, group: int, replica_id: int) -> None: ...
    def connected(self, node: str) -> bool: ...
    def heard(self, node: str) -> int:
        """A number that grows with whatever comes from the node; between two that are connected something comes each
        `beat_seconds` or two. To be looked at now and then: as long as it grows, the node is there."""

    async def send_snapshot(
        self, node: str, header: bytes, read_chunk: Callable[[int], Awaitable[bytes | None]]
    ) -> None:
        """Stream all chunks at a limited rate on a connection of its own, resuming after a break; returns once
        the receiver has installed it. Raises ConnectionError or SnapshotRefused."""

    async def close(self) -> None: ...


class SnapshotRefused(Exception):
    """The receiver can't take the snapshot now; the text says why."""
