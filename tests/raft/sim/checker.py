"""What must hold in every step of every run: the promises of Raft, checked while they are made.

The checker sees all replicas at once and keeps its own record, so it needs no trust in what a replica thinks:
`votes` and the disks are what is durable, `committed` is what any replica ever called committed.

Each check costs a constant (per entry, message or change of role), so that it can be made at every step:
- Log matching: an entry is known by (index, term); wherever it is seen it must hold the same bytes and follow an entry
  of the same term. By induction the logs before it are then equal.
- The first to call an entry committed is a leader; it must be of that leader's term, durable on a majority of voters
  (of both halves of a joint configuration), and in the log of every newer leader.
- Everybody who calls an index committed must have the same term there.

Paper: figure 3 (the five properties), 5.2, 5.4.2; thesis: 4.3, 6.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raft.types import ConfState, Entry, EntryKind, Message, MessageType, Role

from .disk import Disk, LogImage
from .machine import MachineState
from .violation import Violation

if TYPE_CHECKING:
    from .replica import Replica

_APPEND = MessageType.APPEND
_APPEND_REPLY = MessageType.APPEND_REPLY
_VOTE_REPLY = MessageType.VOTE_REPLY
_LEADER_ONLY = (
    MessageType.APPEND,
    MessageType.HEARTBEAT,
    MessageType.SNAPSHOT,
    MessageType.TIMEOUT_NOW,
    MessageType.SLEEP,
)


def quorum_holds(conf: ConfState, has: Callable[[int], bool]) -> bool:
    """Whether a majority of the voters, of both halves while joint, has it. Learners are not even asked."""
    for half in (conf.voters, conf.voters_outgoing):
        if half and sum(map(has, half)) * 2 <= len(half):
            return False
    return bool(conf.voters)


class Checker:
    def __init__(self, founding: MachineState, founders: Sequence[int]) -> None:
        self.founding = founding
        self.leaders: dict[int, int] = {}  # term -> replica
        self.votes: dict[tuple[int, int], int] = {}  # (replica, term) -> candidate, durable
        self.voted_with: dict[
            tuple[int, int], tuple[int, int]
        ] = {}  # (replica, term) -> (term, index) of its log's end
        self.seen: dict[
            tuple[int, int], tuple[int, EntryKind, bytes]
        ] = {}  # (index, term) -> previous term, kind, bytes
        self.committed: list[int] = [founding.term] * (founding.index + 1)  # term at index
        self.committed_under: list[int] = [founding.term] * (founding.index + 1)  # term of the leader that committed it
        self.states: dict[int, MachineState] = {founding.index: founding}  # after applying index
        self.promised: dict[tuple[int, int], bytes] = {}  # (index, term) -> payload, as told to the proposer
        self.refused: dict[bytes, str] = {}  # payloads of which it was said that they are never in the log
        self.disks: dict[int, Disk] = {}  # of every replica there ever was
        self.lost: dict[int, LogImage] = {}  # what was durable at a damaged replica before the damage
        self.marks: Counter[str] = Counter()  # what happened in this run, to see that the runs are not idle

    @property
    def commit(self) -> int:
        """The highest index that anybody called committed."""
        return len(self.committed) - 1

    # -- logs

    def on_append(self, replica: Replica, entries: Sequence[Entry]) -> None:
        """Before `replica.view` takes entries over."""
        view = replica.view
        first = entries[0].index
        if first > view.last + 1:
            raise Violation("log-gap", f"{replica} writes {first} after {view.last}")
        if first <= replica.commit:
            raise Violation("commit-overwritten", f"{replica} writes at {first}, its commit index is {replica.commit}")
        if first <= view.last:
            self._check_replaced(replica, entries)
        previous = view.term(first - 1)
        seen = self.seen
        for entry in entries:
            known = seen.setdefault((entry.index, entry.term), (previous, entry.kind, entry.data))
            if known[0] != previous or known[2] != entry.data or known[1] != entry.kind:
                here = (previous, entry.kind, entry.data)
                raise Violation(
                    "log-matching", f"{replica} has {here} at {entry.index}/{entry.term}, elsewhere {known}"
                )
            if entry.term < previous:
                raise Violation("log-terms", f"{replica} writes term {entry.term} after {previous} at {entry.index}")
            previous = entry.term
            if entry.kind is EntryKind.CONF_CHANGE and replica.node.role is Role.LEADER:
                self._check_one_change(replica, entry, entries)

    def _check_one_change(self, replica: Replica, entry: Entry, entries: Sequence[Entry]) -> None:
        """A leader proposes a change only when every older one in its log is applied (thesis, 4.1)."""
        view = replica.view
        older = view.entries[replica.machine.index - view.offset : entries[0].index - view.offset - 1]
        for other in (*older, *entries):
            if other.kind is EntryKind.CONF_CHANGE and replica.machine.index < other.index < entry.index:
                raise Violation(
                    "one-change", f"{replica} proposes a change at {entry.index}, {other.index} is not applied"
                )

    def _check_replaced(self, replica: Replica, entries: Sequence[Entry]) -> None:
        """What is replaced or cut off must not be committed."""
        self.marks["truncated"] += 1
        view = replica.view
        first = entries[0].index
        for index in range(first, min(view.last, self.commit) + 1):
            if view.term(index) != self.committed[index]:
                continue
            if index - first >= len(entries) or entries[index - first].term != self.committed[index]:
                raise Violation(
                    "committed-lost", f"{replica} drops {index}/{self.committed[index]}, which is committed"
                )

    def on_snapshot(self, replica: Replica, state: MachineState) -> None:
        if state.index <= replica.commit:
            raise Violation("snapshot-old", f"{replica} restores {state.index}, its commit index is {replica.commit}")
        self.check_state(replica, state)

    def check_state(self, replica: Replica, state: MachineState) -> None:
        known = self.states.get(state.index)
        if known != state:
            raise Violation("state-machine-safety", f"{replica} has state {state}, elsewhere {known}")

    # -- roles, terms, commit

    def on_leader(self, replica: Replica, term: int, conf: ConfState) -> None:
        """A replica is seen leading in a term for the first time."""
        name = replica.id
        known = self.leaders.setdefault(term, name)
        if known != name:
            raise Violation("one-leader", f"{replica} and {known} both lead in term {term}")
        votes = self.votes
        if not quorum_holds(conf, lambda voter: votes.get((voter, term)) == name):
            given = {voter: votes.get((voter, term)) for voter in (*conf.voters, *conf.voters_outgoing)}
            raise Violation("elected-by-quorum", f"{replica} leads in term {term}, durable votes are {given}, {conf}")
        self._check_voters_logs(replica, term, conf)
        index = self.commit
        while index > self.founding.index and self.committed_under[index] >= term:
            index -= 1
        if not replica.view.holds(index, self.committed[index]):
            has = replica.view.term(index)
            raise Violation(
                "leader-completeness",
                f"{replica} leads in {term}, has {index}/{has}, committed {self.committed[index]}",
            )
        self.marks["elections"] += 1

    def _check_voters_logs(self, replica: Replica, term: int, conf: ConfState) -> None:
        """Nobody has elected a log that is behind its own. The no-op of the new term does not count."""
        view = replica.view
        last = view.last
        while last > view.offset and view.term(last) == term:
            last -= 1
        end = (view.term(last), last)
        for voter in (*conf.voters, *conf.voters_outgoing):
            has = self.voted_with.get((voter, term))
            if voter != replica.id and self.votes.get((voter, term)) == replica.id and has is not None and has > end:
                raise Violation(
                    "up-to-date", f"{replica} leads in {term} with a log up to {end}, {voter} voted with {has}"
                )

    def on_commit(self, replica: Replica, old: int, new: int, role: Role, term: int, conf: ConfState) -> None:
        """The commit index of a replica has moved from old to new."""
        if new < old:
            raise Violation("commit-monotone", f"{replica} goes back from {old} to {new}")
        view = replica.view
        if new > view.last:
            raise Violation("commit-beyond-log", f"{replica} commits {new}, its last index is {view.last}")
        committed = self.committed
        for index in range(max(old, view.offset) + 1, min(new, len(committed) - 1) + 1):
            if view.term(index) != committed[index]:
                raise Violation(
                    "committed-differs", f"{replica} commits {index}/{view.term(index)}, elsewhere {committed[index]}"
                )
        if new >= len(committed):
            self._on_first_commit(replica, new, role, term, conf)

    def _on_first_commit(self, replica: Replica, new: int, role: Role, term: int, conf: ConfState) -> None:
        view = replica.view
        if role != Role.LEADER:
            raise Violation("commit-by-leader", f"{replica} is the first to commit {new}, as {role.name}")
        if view.term(new) != term:
            raise Violation(
                "commit-own-term", f"{replica} leads in {term} and counts {new}/{view.term(new)} as committed"
            )
        disks = self.disks
        if not quorum_holds(conf, lambda voter: self._has_stored(voter, new, term)):
            lasts = {voter: disks[voter].log.last for voter in (*conf.voters, *conf.voters_outgoing) if voter in disks}
            raise Violation(
                "commit-on-quorum", f"{replica} commits {new}/{term}, durable last indexes are {lasts}, {conf}"
            )
        for index in range(len(self.committed), new + 1):
            self._on_new_committed(index, view.term(index), term)
        newest = replica.world.newest_leader()
        if newest is not None and newest.term > term and not newest.view.holds(new, term):
            raise Violation(
                "leader-completeness", f"{replica} commits {new}/{term}, the newer leader {newest} lacks it"
            )

    def _has_stored(self, voter: int, index: int, term: int) -> bool:
        """The entry is, or (at a damaged replica) was durable there."""
        if voter not in self.disks:
            return False
        images = [self.disks[voter].log, *([self.lost[voter]] if voter in self.lost else [])]
        return any(image.last >= index and image.holds(index, term) for image in images)

    def _on_new_committed(self, index: int, term: int, under: int) -> None:
        if under < self.committed_under[-1]:
            raise Violation(
                "commit-by-old-leader", f"{index}/{term} committed in term {under} after {self.committed_under[-1]}"
            )
        self.committed.append(term)
        self.committed_under.append(under)
        data = self.seen[index, term][2]
        promised = self.promised.get((index, term), data)
        if promised != data:
            raise Violation("proposal-place", f"{promised!r} was promised {index}/{term}, where {data!r} is")
        if data and data in self.refused:
            raise Violation(
                "refused-committed", f"{data!r} was refused ({self.refused[data]}) and is committed at {index}"
            )

    # -- durability of what is told to others

    def on_durable(self, replica: Replica) -> None:
        """A Ready has just become durable on the replica's disk."""
        hard_state = replica.disk.hard_state
        if hard_state.term < replica.durable_term:
            raise Violation("term-monotone", f"{replica} stores term {hard_state.term} after {replica.durable_term}")
        replica.durable_term = hard_state.term
        if hard_state.vote:
            known = self.votes.setdefault((replica.id, hard_state.term), hard_state.vote)
            if known != hard_state.vote:
                raise Violation(
                    "one-vote", f"{replica} votes for {hard_state.vote} and {known} in term {hard_state.term}"
                )
        elif (replica.id, hard_state.term) in self.votes:
            raise Violation("one-vote", f"{replica} forgets its vote of term {hard_state.term}")

    def on_damage(self, replica: Replica, before: LogImage) -> None:
        """The disk has lost records that others may have been told of."""
        self.marks["damages"] += 1
        self.lost[replica.id] = before

    def on_send(self, replica: Replica, message: Message) -> None:
        """A message leaves; what it says must be durable by now."""
        kind = message.type
        if kind in _LEADER_ONLY:
            known = self.leaders.setdefault(message.term, replica.id)
            if known != replica.id:
                raise Violation("one-leader", f"{replica} and {known} both act as leader in term {message.term}")
            return
        if message.reject:
            return
        disk = replica.disk
        if kind is _VOTE_REPLY:
            if disk.hard_state.term > message.term:
                # Voted and moved on to a newer term in one turn: that term on disk keeps the vote as well.
                self.votes.setdefault((replica.id, message.term), message.to_id)
            if self.votes.get((replica.id, message.term)) != message.to_id:
                raise Violation(
                    "vote-durable", f"{replica} tells of a vote for {message.to_id} in {message.term}, not stored"
                )
            if disk.hard_state.term == message.term:
                self.voted_with.setdefault((replica.id, message.term), (disk.log.term(disk.log.last), disk.log.last))
        elif kind is _APPEND_REPLY:
            if disk.hard_state.term < message.term:
                raise Violation(
                    "term-durable", f"{replica} acknowledges in term {message.term}, {disk.hard_state.term} is stored"
                )
            # With a newer term on disk the promise counts for nothing any more, and entries of that term may have taken
            # the place of what is acknowledged, all in one turn.
            if disk.hard_state.term == message.term and disk.log.last < message.index:
                raise Violation("append-durable", f"{replica} acknowledges {message.index}, {disk.log.last} is stored")

    # -- what is applied, what is read

    def on_apply(self, replica: Replica, entry: Entry, state: MachineState) -> None:
        index = entry.index
        if index >= len(self.committed) or self.committed[index] != entry.term:
            raise Violation(
                "applied-uncommitted", f"{replica} applies {index}/{entry.term}, which is not what is committed"
            )
        known = self.states.setdefault(index, state)
        if known is not state and known != state:
            raise Violation("state-machine-safety", f"{replica} reaches {state} by {entry}, elsewhere {known}")

    def check_read(self, replica: Replica, kind: str, index: int, floor: int) -> None:
        """A read may be answered from `index`; when it was asked for, `floor` was committed."""
        if index < floor:
            raise Violation(
                "stale-read", f"{replica} serves a {kind} read at {index}, {floor} was committed when it began"
            )

    def on_read(self, replica: Replica, kind: str, index: int, floor: int) -> None:
        """A read is answered from `index`."""
        self.check_read(replica, kind, index, floor)
        self.marks[kind + " reads"] += 1
