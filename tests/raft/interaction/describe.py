"""How messages, entries and Readys look in a transcript. A log position is written index/term."""

from __future__ import annotations

from raft.confchange import decode_change
from raft.read_only import decode_round
from raft.types import (
    ConfChange,
    ConfChangeKind,
    ConfState,
    ConfTransition,
    Entry,
    EntryKind,
    Message,
    MessageType,
    Ready,
)

LETTERS = {
    ConfChangeKind.ADD_VOTER: "v",
    ConfChangeKind.ADD_LEARNER: "l",
    ConfChangeKind.REMOVE: "r",
    ConfChangeKind.UPDATE: "u",
}


def change(value: ConfChange) -> str:
    if not value.changes and value.transition == ConfTransition.AUTO:
        return "leave"
    words = [f"{LETTERS[single.kind]}{single.replica_id}" for single in value.changes]
    if value.transition != ConfTransition.AUTO:
        words.append(value.transition.name.removeprefix("JOINT_").lower())
    return " ".join(words)


def conf(state: ConfState) -> str:
    def ids(members: tuple[int, ...]) -> str:
        return "(" + " ".join(str(member) for member in members) + ")"

    text = f"voters={ids(state.voters)}"
    if state.voters_outgoing:
        text += f"&&{ids(state.voters_outgoing)}"
    if state.learners:
        text += f" learners={ids(state.learners)}"
    if state.learners_next:
        text += f" learners_next={ids(state.learners_next)}"
    return text + (" autoleave" if state.auto_leave else "")


def entry(value: Entry) -> str:
    at = f"{value.index}/{value.term}"
    if value.kind == EntryKind.CONF_CHANGE:
        return f"{at} change({change(decode_change(value.data))})"
    if not value.data:
        return f"{at} -"
    text = value.data.decode()
    return f'{at} "{text}"' if len(text) <= 12 else f'{at} "{text[:4]}..." {len(text)} bytes'


def entries(values: list[Entry] | tuple[Entry, ...]) -> str:
    return "[" + ", ".join(entry(value) for value in values) + "]"


def message(value: Message) -> str:
    words = [f"{value.from_id}->{value.to_id} {value.type.name} term={value.term}", *_details(value)]
    if value.lost:
        words.append("lost")
    return " ".join(words)


def _details(value: Message) -> list[str]:
    kind = value.type
    if kind == MessageType.APPEND:
        return [f"after={value.index}/{value.log_term} commit={value.commit} {entries(value.entries)}"]
    if kind == MessageType.APPEND_REPLY:
        if value.reject:
            return [f"REJECT after={value.index} hint={value.reject_hint}/{value.log_term}"]
        return [f"index={value.index}"]
    if kind in (MessageType.VOTE, MessageType.PRE_VOTE):
        return [f"last={value.index}/{value.log_term}", *(["transfer"] if value.transfer else [])]
    if kind in (MessageType.VOTE_REPLY, MessageType.PRE_VOTE_REPLY):
        return [f"REJECT commit={value.commit}/{value.log_term}" if value.reject else "granted"]
    if kind in (MessageType.HEARTBEAT, MessageType.HEARTBEAT_REPLY):
        words = [f"round={decode_round(value.context)}"] if value.context else []
        if kind == MessageType.HEARTBEAT:
            words.append(f"commit={value.commit}")
        if value.lease:
            words.append("lease")
        return words
    if kind == MessageType.SNAPSHOT:
        assert value.snapshot is not None
        return [f"at={value.snapshot.index}/{value.snapshot.term} {conf(value.snapshot.conf_state)}"]
    if kind == MessageType.READ_INDEX:
        return [value.context.decode()]
    if kind == MessageType.READ_INDEX_REPLY:
        return [f"{value.context.decode()} index={value.index}"]
    if kind == MessageType.SLEEP:
        return [f"last={value.index}/{value.log_term} commit={value.commit}"]
    if kind == MessageType.SLEEP_REPLY:
        return [f"index={value.index}", *(["REJECT"] if value.reject else [])]
    return []


def ready(value: Ready, *, role: str) -> list[str]:
    lines = []
    if value.role_changed:
        lines.append(f"now {role}")
    lines.extend(f"send {message(sent)}" for sent in value.messages)
    parts = []
    if value.snapshot is not None:
        parts.append(f"snapshot={value.snapshot.index}/{value.snapshot.term} {conf(value.snapshot.conf_state)}")
    if value.entries:
        parts.append(f"entries={entries(value.entries)}")
    if value.hard_state is not None:
        state = value.hard_state
        parts.append(f"term={state.term} vote={state.vote} commit={state.commit}")
    if value.ack is not None:
        lines.append(f"persist #{value.ack.number}: {' '.join(parts) or 'nothing more'}")
    else:
        assert not parts
        assert not value.after_append
    lines.extend(f"  then {message(sent)}" for sent in value.after_append)
    if value.committed:
        lines.append(f"apply {entries(value.committed)}")
    lines.extend(f"read {state.context.decode()} at index {state.index}" for state in value.read_states)
    return lines
