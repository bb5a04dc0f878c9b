"""The appends that are on their way to one peer and not yet acknowledged.

Invariant: indexes rise strictly; `bytes` is the sum of what the queue holds.
Invariant: once full, nothing is added (the leader asks first); one append may overshoot the byte limit, else an
           entry larger than the limit could never be sent.
Invariant: window <= messages_max. The window (messages) is halved, down to WINDOW_MIN, when the peer refuses an
           append of the pipeline: then all that follow it are refused too, and where messages are reordered all the
           time, a full pipeline after each refusal would be a storm of messages that brings nothing.
Called by: raft/progress.py and raft/leader.py.   Thesis: 10.2.1 (pipelining).
"""

from __future__ import annotations

from collections import deque

WINDOW_MIN = 4


class Inflights:
    __slots__ = ("bytes", "bytes_max", "messages_max", "queue", "window")

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.window = messages_max  # messages
        self.bytes = 0
        # (index of the last entry, payload bytes). Built when first needed: most replicas never send an append, and an
        # empty deque takes 760 bytes, for each member of thousands of groups.
        self.queue: deque[tuple[int, int]] | tuple[()] = ()

    @property
    def full(self) -> bool:
        return len(self.queue) >= self.window or self.bytes >= self.bytes_max

    def add(self, *, last_index: int, size: int) -> None:
        assert not self.full, "an append was sent past the in-flight limit"
        assert not self.queue or self.queue[-1][0] < last_index
        queue = self.queue
        if isinstance(queue, tuple):
            queue = self.queue = deque()
        queue.append((last_index, size))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Drop everything up to `index`: the peer has it, so that the window may grow."""
        if self.window < self.messages_max:
            self.window += 1
        queue = self.queue
        while queue and queue[0][0] <= index:  # an empty tuple ends it
            self.bytes -= queue.popleft()[1]

    def shrink(self) -> None:
        self.window = max(self.window // 2, min(WINDOW_MIN, self.messages_max))

    def reset(self) -> None:
        self.queue = ()
        self.bytes = 0
