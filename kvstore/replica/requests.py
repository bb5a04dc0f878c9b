"""A request on its way through a replica, and the wheel of deadlines that bounds its stay.

Invariant: every request is answered exactly once: by its result, by a refusal, or by its deadline.
Invariant: a write that was proposed and whose fate is not known is answered TIMEOUT with `definite` false, never
           with a definite refusal (design: only the applied entry, or another term's entry at its index, decides).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from kvstore.base.errors import CODES, Code
from kvstore.base.operations import ReadOperation
from kvstore.base.shards import Route
from kvstore.base.stream import Refused, Results
from kvstore.state.command import Command, DecodedWrite, Split, Write

Answer = Results | Refused
ReplyTo = Callable[[Answer], None]


def refusal(
    frame_id: int,
    code: Code,
    message: str = "",
    *,
    stamp: int = 0,
    definite: bool | None = None,
    routes: tuple[Route, ...] = (),
    retry_after_ms: int | None = None,
) -> Refused:
    """A refusal of a whole frame, with the table's defaults."""
    info = CODES[code]
    return Refused(
        id=frame_id,
        stamp=stamp,
        code=code,
        message=message or info.meaning,
        definite=info.definite if definite is None else definite,
        retry_after_ms=info.retry_after_ms if retry_after_ms is None else retry_after_ms,
        routes=routes,
    )


class Request:
    """What writes and reads share: whom to answer, and until when."""

    __slots__ = ("deadline_ms", "frame_id", "reply")

    def __init__(self, *, frame_id: int, reply: ReplyTo, deadline_ms: int) -> None:
        self.frame_id = frame_id
        self.reply: ReplyTo | None = reply  # None once answered
        self.deadline_ms = deadline_ms  # boot clock

    def answer(self, answer: Answer) -> None:
        """Answer unless that has been done (a deadline may have come first)."""
        reply = self.reply
        if reply is not None:
            self.reply = None
            reply(answer)

    def expire(self) -> None:
        self.answer(refusal(self.frame_id, Code.UNAVAILABLE, "no answer within the deadline; nothing was changed"))


RELEASED = DecodedWrite(Write(version=0, session=b"", low=0, issued_at=0, operations=msgspec.Raw(b"\x90")), [])
"""Stands for what is not needed any more."""


class WriteRequest(Request):
    """A frame of mutations. `proposed` tells whether it is in an entry already."""

    __slots__ = ("bytes", "proposed", "write")

    def __init__(self, *, frame_id: int, reply: ReplyTo, deadline_ms: int, write: DecodedWrite, size: int) -> None:
        super().__init__(frame_id=frame_id, reply=reply, deadline_ms=deadline_ms)
        self.write = write
        self.bytes = size
        self.proposed = False

    @property
    def command(self) -> Command:
        """What goes into the entry."""
        return self.write.write

    def release(self) -> None:
        """Let go of the operations: the wheel of deadlines holds the request for seconds after its answer."""
        self.write = RELEASED

    def expire(self) -> None:
        if self.proposed:
            self.answer(refusal(self.frame_id, Code.TIMEOUT, definite=False))
        else:
            super().expire()


class SplitRequest(WriteRequest):
    """A wish to divide the shard. Answered with the child's id, or refused."""

    __slots__ = ("split",)

    def __init__(self, *, frame_id: int, reply: ReplyTo, deadline_ms: int, split: Split) -> None:
        super().__init__(frame_id=frame_id, reply=reply, deadline_ms=deadline_ms, write=RELEASED, size=64)
        self.split = split

    @property
    def command(self) -> Command:
        return self.split


class ReadRequest(Request):
    """A frame of reads."""

    __slots__ = ("max_staleness_ms", "operations", "version")

    def __init__(
        self,
        *,
        frame_id: int,
        reply: ReplyTo,
        deadline_ms: int,
        version: int,
        max_staleness_ms: int,
        operations: Sequence[ReadOperation],
    ) -> None:
        super().__init__(frame_id=frame_id, reply=reply, deadline_ms=deadline_ms)
        self.version = version
        self.max_staleness_ms = max_staleness_ms
        self.operations = operations

    def answer(self, answer: Answer) -> None:
        super().answer(answer)
        self.operations = ()  # the wheel of deadlines holds the request for seconds after its answer


@dataclass(slots=True)
class Deadlines:
    """A wheel of slots: adding costs one append, and a tick looks only at the slots that are over."""

    slot_ms: int
    slots: dict[int, list[Request]]
    next_slot: int  # everything before it has been swept

    @classmethod
    def starting(cls, now_ms: int, *, slot_ms: int = 50) -> Deadlines:
        return cls(slot_ms=slot_ms, slots={}, next_slot=now_ms // slot_ms)

    def add(self, request: Request) -> None:
        slot = max(request.deadline_ms // self.slot_ms + 1, self.next_slot)
        waiting = self.slots.get(slot)
        if waiting is None:
            self.slots[slot] = [request]
        else:
            waiting.append(request)

    def sweep(self, now_ms: int) -> int:
        """Expire what is over, late by at most one slot and one tick; how many writes were told an unknown outcome."""
        current = now_ms // self.slot_ms
        if current - self.next_slot > 4 * len(self.slots) + 64:  # a long pause: visit what there is, not every slot
            over = sorted(slot for slot in self.slots if slot <= current)
        else:
            over = [slot for slot in range(self.next_slot, current + 1) if slot in self.slots]
        unknown = 0
        for slot in over:
            for request in self.slots.pop(slot):
                unknown += isinstance(request, WriteRequest) and request.proposed and request.reply is not None
                request.expire()
        self.next_slot = max(self.next_slot, current + 1)
        return unknown
