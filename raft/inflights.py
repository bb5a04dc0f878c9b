"""The appends that are on their way to one peer and not yet acknowledged.

Invariant: indexes rise strictly; `bytes` is the sum of what the queue holds.
Invariant: once full, nothing is added (the leader asks first); one append may overshoot the byte limit, else an
           entry larger than the limit could never be sent.
Called by: raft/progress.py and raft/leader.py.   Thesis: 10.2.1 (pipelining).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Inflights:
    messages_max: int
    bytes_max: int
    bytes: int = 0
    queue: deque[tuple[int, int]] = field(default_factory=deque)  # (index of the last entry, payload bytes)

    @property
    def full(self) -> bool:
        return len(self.queue) >= self.messages_max or self.bytes >= self.bytes_max

    def add(self, *, last_index: int, size: int) -> None:
        assert not self.full, "an append was sent past the in-flight limit"
        assert not self.queue or self.queue[-1][0] < last_index
        self.queue.append((last_index, size))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Drop everything up to `index`: the peer has it."""
        queue = self.queue
        while queue and queue[0][0] <= index:
            self.bytes -= queue.popleft()[1]

    def reset(self) -> None:
        self.queue.clear()
        self.bytes = 0
