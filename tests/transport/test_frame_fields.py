"""Every field of a Raft message crosses the wire, those too that are added one day."""

from __future__ import annotations

from dataclasses import fields

import pytest

from kvstore.transport import frames
from kvstore.transport.protocol import GroupMessage
from raft import ConfState, Entry, Message, MessageType, SnapshotMeta

OTHERS = {
    "type": MessageType.APPEND,
    "entries": (Entry(term=3, index=7, data=b"x"),),
    "reject": True,
    "transfer": True,
    "lease": True,
    "context": b"context",
    "snapshot": SnapshotMeta(5, 2, ConfState(voters=(1, 2), learners=(3,))),
}


@pytest.mark.parametrize("name", [one.name for one in fields(Message) if one.name not in ("type", "to_id")])
def test_field_crosses_alone_and_with_all_others(name: str) -> None:
    values = {one.name: OTHERS.get(one.name, number + 10) for number, one in enumerate(fields(Message))}
    alone = Message(MessageType.HEARTBEAT_REPLY, to_id=2, **{name: values[name]})
    together = Message(**values)
    for message in (alone, together):
        (received,) = frames.decode(frames.encode([GroupMessage(9, message)])).messages
        assert received.group == 9
        assert getattr(received.message, name) == getattr(message, name)
        assert received.message == message
