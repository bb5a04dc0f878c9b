"""The membership protocol: SWIM with Lifeguard, without sockets and clocks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.gossip.cargo import Cargo
from kvstore.gossip.events import (
    Event,
    Forgotten,
    MemberChanged,
    MemberView,
    NameConflict,
    Output,
    StreamProbe,
)
from kvstore.gossip.member import Member
from kvstore.gossip.settings import GossipSettings

__all__ = ["Counters", "Event", "Forgotten", "MemberChanged", "MemberView", "NameConflict", "Output", "StreamProbe"]


@dataclass(slots=True)
class Counters:
    """Since the start."""

    packets_received: int = 0
    packets_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by reason; the reasons are few
    probes: int = 0
    probes_failed: int = 0
    refutations: int = 0


class Swim:
    """One node's part in the protocol. Call `take` after each other call and do what it says."""

    def __init__(
        self, me: Member, *, settings: GossipSettings, rng: random.Random, now: float, cargo: Cargo, budget: int
    ) -> None:
        """`budget`: the bytes that a packet may have. Raises Invalid for a record that would not fit."""
        self.counters = Counters()
        raise NotImplementedError

    @property
    def me(self) -> Member:
        raise NotImplementedError

    @property
    def health(self) -> int:
        """0: this node keeps up. Each step lengthens its probes and timeouts."""
        raise NotImplementedError

    def receive(self, payload: bytes, source: str, now: float) -> None:
        """`source`: the HOST:PORT that it came from. Never raises: what is malformed is counted."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        raise NotImplementedError

    def next_at(self) -> float:
        """The earliest time at which `tick` has something to do. It may come nearer with each other call."""
        raise NotImplementedError

    def take(self) -> Output:
        raise NotImplementedError

    def stream_answer(self, ticket: int, ok: bool, now: float) -> None:
        raise NotImplementedError

    def push_state(self) -> list[Member]:
        raise NotImplementedError

    def pull_state(self, members: Sequence[Member], now: float) -> None:
        """Never raises: what is malformed is counted."""
        raise NotImplementedError

    def push_pull_peer(self) -> Member | None:
        """With whom to compare everything next: mostly one that lives, now and then one that was declared dead."""
        raise NotImplementedError

    def leave(self, now: float) -> None:
        raise NotImplementedError

    def left_spread(self) -> bool:
        raise NotImplementedError

    def declare_left(self, node: str, now: float) -> None:
        raise NotImplementedError

    def view(self) -> list[MemberView]:
        raise NotImplementedError

    def member(self, node: str) -> Member | None:
        raise NotImplementedError
