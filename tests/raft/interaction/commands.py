"""What a line of a transcript may say: a word, then `name=value` options and other arguments.

cluster voters=1,2,3 learners=4 pre_vote=off ...      (any name of Config; founded=5: the log starts after 5/1)
blank 4                          a replica without log and membership, to be added
campaign 1 | campaign 1 hard     with or without PreVote
tick 1 20                        twenty ticks
propose 1 x y                    two entries in one call;  `x*100` is 100 bytes of x
change 1 v4 l5 r1 u2 [implicit|explicit] | change 1 leave
read 1 a | lease 1 | transfer 1 2 | forget 1 | gone 2 1 | hasten 2 | unreachable 1 2 | report 1 2 ok|failed
sleep 1 [absent=3] | wake 1 | silent 2 1 | unbar 1
ready 1 | persist 1 | apply 1    one step each;  process 1 = all of them until nothing is left
deliver [to=2] [from=1] [type=APPEND] [max=1] [reverse] [twice] [keep] | drop (the same)
stabilize [1 2 3]                process and deliver among these (default: all) until nothing is left
compact 1 5                      flush, offer a snapshot at the applied index, drop the log up to 5
crash 1 | restart 1 [barred]     what was not durable is lost | start from what was;   lose 1 5 = the log after 5
status 1 | log 1 | network | machine 1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from raft import (
    ConfChange,
    ConfChangeKind,
    ConfChangeSingle,
    Config,
    ConfState,
    ConfTransition,
    Message,
    MessageType,
    RaftError,
    Role,
)

from . import describe
from .cluster import Cluster
from .member import Member

KINDS = {letter: kind for kind, letter in describe.LETTERS.items()}


class Environment:
    """Runs one transcript."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.settings: dict[str, Any] = {}

    def run(self, line: str) -> list[str]:
        words = line.split()
        arguments = [word for word in words[1:] if "=" not in word]
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        command: Callable[[list[str], dict[str, str]], list[str] | None] = getattr(self, f"on_{words[0]}")
        try:
            return command(arguments, options) or []
        except RaftError as refusal:
            return [f"{type(refusal).__name__}: {refusal}"]

    def run_all(self, script: str) -> list[str]:
        """A line at a time; everything that was printed."""
        lines: list[str] = []
        for line in script.strip().splitlines():
            lines += self.run(line.strip())
        return lines

    def _member(self, arguments: list[str]) -> Member:
        return self.cluster[int(arguments[0])]

    # -- the group

    def on_cluster(self, arguments: list[str], options: dict[str, str]) -> None:
        self.cluster = Cluster()
        voters = _ids(options.pop("voters", ""))
        learners = _ids(options.pop("learners", ""))
        founded = int(options.pop("founded", 0))
        self.settings = {"election_ticks": 10, "heartbeat_ticks": 2} | _settings(options)
        for replica_id in sorted((*voters, *learners)):
            self._add(replica_id, ConfState(voters=voters, learners=learners), founded)

    def on_blank(self, arguments: list[str], options: dict[str, str]) -> None:
        self._add(int(arguments[0]), ConfState())

    def _add(self, replica_id: int, conf_state: ConfState, founded: int = 0) -> None:
        self.cluster.add(Member(Config(replica_id=replica_id, **self.settings), conf_state, founded))

    def on_crash(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).crash()

    def on_restart(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).restart(barred="barred" in arguments)

    def on_lose(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).lose_after(int(arguments[1]))

    # -- one replica

    def on_campaign(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        node = self._member(arguments).node
        started = node.campaign_without_prevote() if "hard" in arguments else node.campaign()
        return [self._member(arguments).role if started else "may not campaign"]

    def on_tick(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        member = self._member(arguments)
        before = member.role
        member.tick(int(arguments[1]) if len(arguments) > 1 else 1)
        return [member.role] if member.role != before else []

    def on_propose(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        payloads = []
        for word in arguments[1:]:
            text, _, times = word.partition("*")
            payloads.append(text.encode() * int(times or 1))
        term, index = self._member(arguments).node.propose_many(payloads)
        return [f"at {index}/{term}"]

    def on_change(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        term, index = self._member(arguments).node.propose_conf_change(parse_change(arguments[1:]))
        return [f"at {index}/{term}"]

    def on_read(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).node.read_index(arguments[1].encode())

    def on_lease(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        member = self._member(arguments)
        now_ms = member.now_ms + int(options.get("later_ms", 0))
        return [f"lease {'valid' if member.node.lease_valid(now_ms) else 'not valid'} at {now_ms} ms"]

    def on_transfer(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).node.transfer_leader(int(arguments[1]))

    def on_forget(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).node.forget_leader()

    def on_gone(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return ["lifted" if self._member(arguments).node.leader_gone(int(arguments[1])) else "not lifted"]

    def on_hasten(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        member = self._member(arguments)
        return [member.role if member.node.hasten() else "no reason to hasten"]

    def on_unreachable(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).node.report_unreachable(int(arguments[1]))

    def on_report(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).node.report_snapshot(int(arguments[1]), arguments[2] == "ok")

    def on_sleep(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        started = self._member(arguments).node.sleep(_ids(options.get("absent", "")))
        return ["asked the others" if started else "not now"]

    def on_wake(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).node.wake()

    def on_silent(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return ["woken" if self._member(arguments).node.leader_silent(int(arguments[1])) else "no matter"]

    def on_unbar(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).node.unbar()

    def on_compact(self, arguments: list[str], options: dict[str, str]) -> None:
        self._member(arguments).compact(int(arguments[1]))

    # -- moving on

    def on_ready(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        if not self._member(arguments).node.has_ready():
            return ["nothing"]
        return self.cluster.ready(int(arguments[0]))

    def on_persist(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return self.cluster.persist(int(arguments[0]))

    def on_apply(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return self._member(arguments).apply()

    def on_process(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return self.cluster.process(int(arguments[0]))

    def on_stabilize(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        ids = [int(word) for word in arguments if word != "quietly"] or sorted(self.cluster.members)
        lines = self.cluster.stabilize(ids)
        return [] if "quietly" in arguments else lines

    def on_deliver(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        lines = []
        for message in self._taken(arguments, options):
            lines += self.cluster.deliver(replace(message))
            if "twice" in arguments:
                lines += self.cluster.deliver(replace(message))
            if "keep" in arguments:
                self.cluster.network.append(message)
        return lines

    def on_drop(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return [f"lost {describe.message(message)}" for message in self._taken(arguments, options)]

    def _taken(self, arguments: list[str], options: dict[str, str]) -> list[Message]:
        to_ids, from_ids = _ids(options.get("to", "")), _ids(options.get("from", ""))
        kind = MessageType[options["type"]] if "type" in options else None

        def wanted(message: Message) -> bool:
            return (
                (not to_ids or message.to_id in to_ids)
                and (not from_ids or message.from_id in from_ids)
                and (kind is None or message.type == kind)
            )

        found = self.cluster.take(wanted)
        if "reverse" in arguments:
            found.reverse()
        if "max" in options:
            count = int(options["max"])
            self.cluster.network.extend(found[count:])
            found = found[:count]
        return found

    # -- looking

    def on_status(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        member = self._member(arguments)
        status = member.node.status()
        words = [f"{member.role} commit={status.commit} applied={status.applied} durable={status.stable_index}"]
        words += [f"last={status.last_index}", describe.conf(status.conf_state)]
        words += ["asleep"] * status.asleep + ["barred"] * status.barred
        words += [f"promise={status.promise_ticks}"] * (status.promise_ticks > 0)
        words += [f"uncommitted={status.uncommitted_bytes}"] * (status.uncommitted_bytes > 0)
        lines = [" ".join(words)]
        if status.role == Role.LEADER:
            for peer_id, peer in status.progress.items():
                text = f"  {peer_id}: {peer.state.name} match={peer.match} next={peer.next}"
                text += f" inflight={peer.inflight}" if peer.inflight else ""
                text += f" snapshot={peer.pending_snapshot}" if peer.pending_snapshot else ""
                text += " learner" if peer.is_learner else ""
                lines.append(text)
        return lines

    def on_log(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        log = self._member(arguments).log
        first, last = log.first_index(), log.last_index()
        start = f"starts after {first - 1}/{log.term(first - 1)} " if first > 1 else ""
        found = list(log.entries(low=first, high=last + 1, bytes_max=1 << 30)) if first <= last else []
        return [f"{start}{describe.entries(found)}"]

    def on_machine(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return [" ".join(self._member(arguments).machine) or "empty"]

    def on_network(self, arguments: list[str], options: dict[str, str]) -> list[str]:
        return [describe.message(message) for message in self.cluster.network] or ["empty"]


def _ids(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def _settings(options: dict[str, str]) -> dict[str, Any]:
    known = {field.name for field in fields(Config)}
    assert options.keys() <= known, f"no settings: {options.keys() - known}"
    words = {"on": True, "off": False}
    return {name: words[text] if text in words else int(text) for name, text in options.items()}


def parse_change(words: list[str]) -> ConfChange:
    if words == ["leave"]:
        return ConfChange()
    transition = ConfTransition.AUTO
    singles = []
    for word in words:
        if word in ("implicit", "explicit"):
            transition = ConfTransition[f"JOINT_{word.upper()}"]
        else:
            singles.append(ConfChangeSingle(ConfChangeKind(KINDS[word[0]]), int(word[1:])))
    return ConfChange(tuple(singles), transition)
