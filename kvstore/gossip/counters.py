"""What the core counts about itself, since the start."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Every refusal is counted under one of a few reasons, so that noise costs no memory."""

    packets_received: int = 0
    packets_sent: int = 0
    bytes_received: int = 0  # payloads, without what seals them
    bytes_sent: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # packets, records, datagrams and events, by reason
    probes: int = 0
    probes_failed: int = 0  # with no answer by any way
    indirect: int = 0  # probes that did not answer in time and were tried through others
    stream_saved: int = 0  # probes that only TCP answered: UDP is blocked somewhere
    suspicions: int = 0  # begun here, by own probes or by hearsay
    deaths: int = 0  # declared here, when a suspicion ran out
    refutations: int = 0
    late_ticks: int = 0  # this process slept
    syncs_sent: int = 0
    syncs_answered: int = 0

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1
