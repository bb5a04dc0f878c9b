"""The replicas of a transcript and the network between them, in which messages wait until they are delivered."""

from __future__ import annotations

from collections.abc import Callable

from raft import Message, StepRefused

from . import describe
from .member import Member

ROUNDS_MAX = 200
"""`stabilize` ends long before; more is a conversation without end."""


class Cluster:
    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.network: list[Message] = []

    def add(self, member: Member) -> None:
        self.members[member.config.replica_id] = member

    def __getitem__(self, replica_id: int) -> Member:
        return self.members[replica_id]

    def take(self, wanted: Callable[[Message], bool]) -> list[Message]:
        """The waiting messages that are wanted, in the order in which they were sent."""
        found = [message for message in self.network if wanted(message)]
        self.network = [message for message in self.network if not wanted(message)]
        return found

    def deliver(self, message: Message) -> list[str]:
        lines = [f"deliver {describe.message(message)}"]
        member = self.members.get(message.to_id)
        if member is None:
            return [f"{lines[0]} (nobody there)"]
        try:
            member.node.step(message)
        except StepRefused as refusal:
            lines.append(f"  refused: {refusal}")
        return lines

    def ready(self, replica_id: int) -> list[str]:
        lines, messages = self[replica_id].take_ready()
        self.network.extend(messages)
        return [f"ready {replica_id}", *(f"  {line}" for line in lines)]

    def persist(self, replica_id: int) -> list[str]:
        member = self[replica_id]
        ack = member.writes[0].ack
        assert ack is not None
        messages = member.persist()
        self.network.extend(messages)
        return [
            f"durable {replica_id} #{ack.number}",
            *(f"  send {describe.message(message)}" for message in messages),
        ]

    def process(self, replica_id: int) -> list[str]:
        """Everything that one replica can do without hearing from others. Its disk is fast."""
        member = self[replica_id]
        lines: list[str] = []
        while member.node.has_ready() or member.writes or member.applies:
            while member.node.has_ready():
                # A Ready in which nothing is left to do (what was due turned out to be nothing) says nothing.
                said = self.ready(replica_id)
                lines += said if len(said) > 1 else []
            # What was handed out before a snapshot is applied before it is installed.
            while member.applies:
                lines += [f"applied {replica_id}: {line}" for line in member.apply()]
            if member.writes:
                lines += self.persist(replica_id)
        return lines

    def stabilize(self, ids: list[int]) -> list[str]:
        """Let these replicas talk until nothing is left to say. Messages to others stay where they are."""
        lines: list[str] = []
        for _ in range(ROUNDS_MAX):
            said: list[str] = []
            for replica_id in ids:
                said += self.process(replica_id)
            for message in self.take(lambda sent: sent.to_id in ids and sent.from_id in ids):
                said += self.deliver(message)
            if not said:
                return lines
            lines += said
        raise AssertionError("the conversation does not end")
