"""What happened in a run, kept as values and put into words only when somebody wants to read it."""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from raft.types import Message


class Trace:
    """The last `size` events. `messages`: those of the network too."""

    def __init__(self, size: int, *, messages: bool = True) -> None:
        self.messages = messages
        self._events: deque[tuple[int, int, str, tuple[object, ...]]] = deque(maxlen=size)

    def note(self, now_us: int, replica_id: int, what: str, details: tuple[object, ...]) -> None:
        self._events.append((now_us, replica_id, what, details))

    def lines(self) -> list[str]:
        return [_line(*event) for event in self._events]


def _line(now_us: int, replica_id: int, what: str, details: tuple[object, ...]) -> str:
    who = str(replica_id) if replica_id else "-"
    words = " ".join(message_text(detail) if isinstance(detail, Message) else str(detail) for detail in details)
    return f"{now_us / 1_000:10.3f} ms  {who:>2}  {what:<9} {words}"


def message_text(message: Message) -> str:
    """Route and type, then the fields that say something."""
    parts = [f"{message.from_id}->{message.to_id} {message.type.name} term={message.term}"]
    for name in ("log_term", "index", "commit", "reject", "reject_hint", "transfer", "lease", "context", "snapshot"):
        value = getattr(message, name)
        if value:
            parts.append(f"{name}={value.name if isinstance(value, IntEnum) else value}")
    if message.entries:
        first, last = message.entries[0], message.entries[-1]
        parts.append(f"entries={first.index}/{first.term}..{last.index}/{last.term}")
    return " ".join(parts)
