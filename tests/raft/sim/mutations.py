"""Safety rules of Raft, each with the edit that breaks it. The simulation must find every one (test_mutations.py).

A mutation is the smallest change that takes one rule away. Where the core guards a rule twice (an assertion behind a
condition), the guard behind it is taken away too: otherwise the assertion would be found and not what it protects.
`profile` is where the rule is under strain; `seeds` bounds the search, several times what it takes.
Some of them are bugs that the simulation has found in this package once; they are marked "once a bug".
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from .source_patch import Edit, all_applied


@dataclass(frozen=True, slots=True)
class Mutation:
    rule: str  # what is broken
    edits: tuple[Edit, ...]
    profile: str
    seeds: int = 100

    def applied(self) -> AbstractContextManager[None]:
        return all_applied(self.edits)


_ELECTIONS = {
    "vote-told-before-durable": Mutation(
        "a vote is told only when it is durable",
        (Edit("raft.election:on_vote_request", "core.send_durable(reply)", "core.send(reply)"),),
        "disk",
    ),
    "vote-not-stored": Mutation(
        "a vote is stored, also when the term stays",
        (Edit("raft.raw_node:RawNode._take_hard_state", "HardState(*state)", "HardState(state[0], 0, state[2])"),),
        "elections",
    ),
    "campaign-before-durable": Mutation(
        "a candidate asks for votes only when the log it asks with is durable",
        (Edit("raft.election:_ask", "core.send if kind == MessageType.PRE_VOTE else core.send_durable", "core.send"),),
        "crash-candidate",
        2_000,
    ),
    "two-votes": Mutation(
        "one vote a term",
        (Edit("raft.election:on_vote_request", "granted = free and up_to_date", "granted = up_to_date"),),
        "elections",
    ),
    "log-not-compared": Mutation(
        "a vote only for a log that is at least as up to date",
        (Edit("raft.election:on_vote_request", "free and up_to_date and", "free and"),),
        "elections",
    ),
    "learner-votes": Mutation(
        "a learner's vote does not count",
        (
            Edit("raft.election:_ask", "core.tracker.voter_ids", "core.tracker.progress"),
            Edit("raft.tracker:Tracker.record_vote", "self.conf.voters,", "(*self.conf.voters, *self.conf.learners),"),
        ),
        "membership",
    ),
    "joint-vote-of-one-half": Mutation(
        "a candidate needs majorities of both halves of a joint configuration",
        (Edit("raft.quorum:joint_vote", "second = majority_vote(outgoing, votes)", "second = first"),),
        "membership",
    ),
    "refusal-believed": Mutation(
        "a commit index is taken over only where the logs agree",
        (
            Edit(
                "raft.election:learn_commit",
                "not log.matches(index=message.commit, term=message.log_term)",
                "message.commit > log.last_index",
            ),
        ),
        "elections",
        400,
    ),
}

_LOG = {
    "append-told-before-durable": Mutation(
        "an append is acknowledged only when it is durable",
        (Edit("raft.follower:_acknowledge", "core.send_durable(", "core.send("),),
        "disk",
    ),
    "own-append-counted-early": Mutation(
        "the leader counts its own log only as far as it is durable",
        (Edit("raft.leader:on_own_durable", "core.log.stable_index", "core.log.last_index"),),
        "disk",
    ),
    "old-term-counted": Mutation(
        "entries of older terms are not committed by counting (figure 8)",
        (Edit("raft.leader:maybe_commit", "index < lead.first_index or ", ""),),
        "elections",
        400,
    ),
    "learner-counted": Mutation(
        "a learner's log does not count",
        (
            Edit(
                "raft.tracker:Tracker.committed_index",
                "[progress[voter].match for voter in conf.voters]",
                "[progress[voter].match for voter in (*conf.voters, *conf.learners)]",
            ),
        ),
        "membership",
    ),
    "joint-commit-of-one-half": Mutation(
        "an entry needs majorities of both halves of a joint configuration",
        (Edit("raft.quorum:joint_index", "if not outgoing:", "if True:"),),
        "membership",
    ),
    "joint-as-one-majority": Mutation(
        "the halves of a joint configuration are counted apart",
        (
            Edit(
                "raft.quorum:joint_index",
                "if not outgoing:\n        return majority_index(incoming)",
                "if True:\n        return majority_index([*incoming, *outgoing])",
            ),
        ),
        "membership",
    ),
    "truncates-what-agrees": Mutation(
        "entries that are here already are left alone: what comes after them may be newer",
        (
            Edit("raft.log:RaftLog.maybe_append", "self._known_count(entries)", "0"),
            Edit("raft.log:RaftLog.append", "assert entries[0].index > self.commit,", "assert True,"),
        ),
        "snapshots",
    ),
    "truncates-below-commit": Mutation(
        "what is committed is never overwritten",
        (
            Edit("raft.log:RaftLog.maybe_append", "self._known_count(entries)", "0"),
            Edit("raft.log:RaftLog.append", "assert entries[0].index > self.commit,", "assert True,"),
            Edit("raft.follower:on_append", "if index < log.commit:", "if index < log.first_index - 1:"),
        ),
        "snapshots",
    ),
    "append-not-matched": Mutation(
        "an append is taken only after an entry that the leader has too",
        (
            Edit(
                "raft.log:RaftLog.maybe_append",
                "not self.matches(index=index, term=log_term)",
                "index > self.last_index",
            ),
        ),
        "elections",
    ),
    "commit-beyond-match": Mutation(
        "a heartbeat's commit index does not go beyond what is known to match",
        (
            Edit("raft.leader:_send_round", "commit=min(progress.match, commit)", "commit=commit"),
            Edit("raft.follower:on_heartbeat", "if core.barred else message.commit", ""),
        ),
        "elections",
        400,
    ),
    "stale-ack-taken": Mutation(
        "an ack of an older term says nothing about the bytes in the log now (ABA)",
        (
            Edit("raft.raw_node:RawNode.on_durable", "if ack.term != core.term:", "if False:"),
            Edit("raft.unstable:UnstableTail.stable_to", " or self.entries[position].term != term", ""),
        ),
        "slow-leader",
        400,
    ),
    "old-snapshot-restored": Mutation(
        "a snapshot never takes back what is committed",
        (
            Edit("raft.follower:_restore", "if meta.index <= log.commit:", "if False:"),
            Edit("raft.follower:_restore", "if log.matches(index=meta.index, term=meta.term):", "if False:"),
            Edit("raft.log:RaftLog.restore", "assert meta.index > self.commit,", "assert True,"),
        ),
        "snapshots",
    ),
}

_DAMAGE = {
    "damaged-votes": Mutation(
        "who has lost log records neither votes nor campaigns",
        (
            Edit("raft.election:on_vote_request", " and not core.barred", ""),
            Edit("raft.core:Core.can_campaign", " and not self.barred", ""),
            Edit("raft.core:Core.become_candidate", "assert not self.barred", "pass"),
        ),
        "damage",
        400,
    ),
}

_DAMAGE_TOLD = {
    "loss-not-told": Mutation(
        "what a replica acknowledged and lost does not count any more",
        (Edit("raft.leader:on_lost", "if message.lost:", "if False:"),),
        "damage",
        400,
    ),
    "loss-not-told-with-the-read": Mutation(
        "the leader hears of a loss before it answers the read that ends the healing",  # once a bug
        (Edit("raft.raw_node:RawNode.read_index", "follower.say_lost(core, message)", "pass"),),
        "damage-unseen",
        2_000,
    ),
}

_MEMBERSHIP = {
    "two-changes-at-once": Mutation(
        "one change of the membership at a time",
        (Edit("raft.leader:propose_change", "if lead.pending_conf_index > core.log.applied:", "if False:"),),
        "membership",
    ),
    "change-before-own-commit": Mutation(
        "a new leader assumes that a change may be pending in its log",
        (
            Edit(
                "raft.core:LeaderState.__init__",
                "self.pending_conf_index = first_index - 1",
                "self.pending_conf_index = 0",
            ),
        ),
        "membership",
        400,
    ),
}

_READS = {
    "read-without-round": Mutation(
        "a read index needs a round that a quorum has answered",
        (Edit("raft.leader:confirm_rounds", "core.tracker.confirmed_round()", "read_only.newest_round"),),
        "reads",
        400,
    ),
    "round-of-one-half": Mutation(
        "a round needs majorities of both halves of a joint configuration",
        (
            Edit(
                "raft.tracker:Tracker.confirmed_round",
                "[progress[voter].acked_round for voter in conf.voters_outgoing]",
                "[]",
            ),
        ),
        "joint-reads",
        2_000,
    ),
    "read-before-own-commit": Mutation(
        "no read before an entry of the leader's own term is committed",
        (Edit("raft.core:Core.has_term_commit", "self.log.commit >= self.leading.first_index", "True"),),
        "reads",
        400,
    ),
    "round-answers-of-other-terms": Mutation(
        "answers to rounds of an older term say nothing about this one",
        (
            Edit(
                "raft.step:step",
                "if message.term < core.term:",
                "if message.term < core.term and not (kind == MessageType.HEARTBEAT_REPLY and core.leading):",
            ),
        ),
        "late-rounds",
        4_000,
    ),
    "context-reused": Mutation(
        "a new read context for each attempt (the driver's rule)",
        (
            Edit(
                "tests.raft.sim.workload:Workload.context",
                'b"r%d.%d" % (replica.id, self._number)',
                'b"r%d" % replica.id',
            ),
        ),
        "reads",
        400,
    ),
}

_LEASE = {
    "lease-checked-before-the-read": Mutation(
        "the lease is checked by a clock that is read after the value (the driver's rule)",
        (
            Edit(
                "tests.raft.sim.reads:Reads.lease_still_held",
                "node.term == term and node.lease_valid(self._replica.clock_ms())",
                "True",
            ),
        ),
        "lease",
        400,
    ),
    "lease-from-the-answer": Mutation(
        "a lease begins when the round was sent, not when it was answered",
        (
            Edit(
                "raft.leader:confirm_rounds",
                "lead.lease.confirm(core.tracker.promised_round())",
                "lead.lease.confirm(core.tracker.promised_round())\n"
                "        if lead.lease.start_ms is not None:\n"
                "            lead.lease.start_ms = core.now_ms",
            ),
        ),
        "lease",
        400,
    ),
    "lease-kept-in-transfer": Mutation(
        "no lease from the start of a transfer on",
        (
            Edit("raft.leader:lease_valid", "and lead.transfer_target == NO_REPLICA", ""),
            Edit("raft.leader:lease_valid", "and not lead.timeout_now_sent", ""),
        ),
        "lease-transfers",
        400,
    ),
    "lease-again-after-timeout-now": Mutation(
        "once TIMEOUT_NOW was sent, no lease in that term",
        (
            Edit("raft.leader:lease_valid", "and not lead.timeout_now_sent", ""),
            Edit("raft.leader:_send_round", "not lead.timeout_now_sent and", ""),
        ),
        "lease-transfers",
        400,
    ),
    "evidence-breaks-promise": Mutation(
        "evidence does not end a promise",
        (
            Edit(
                "raft.follower:on_leader_gone",
                "if core.promise_ticks > 0:\n        return False",
                "core.promise_ticks = 0",
            ),
        ),
        "lease",
        400,
    ),
    "promise-forgotten-at-restart": Mutation(
        "a voter that restarts refuses votes for one election timeout",
        (Edit("raft.core:Core.__init__", "self.promise_length() if may_have_promised else 0", "0"),),
        "lease-restarts",
        1_000,
    ),
    "candidate-breaks-own-promise": Mutation(
        "who has promised a lease does not vote for itself either",
        (Edit("raft.election:maybe_campaign", "if core.promise_ticks > 0 and not transfer:", "if False:"),),
        "lease-restarts",
        1_000,
    ),
    "promise-too-short": Mutation(
        "a promise lasts an election timeout",
        (Edit("raft.core:Core.promise_length", "self.config.election_ticks + 1", "self.config.election_ticks // 2"),),
        "lease",
        1_000,
    ),
}

_LIVENESS = {
    "refusal-tells-nothing": Mutation(
        "a refused candidate learns what is committed, else a former leader can block every election",  # once a bug
        (Edit("raft.election:learn_commit", "log = core.log", "return"),),
        "demotions",
        1_000,
    ),
    "lower-term-refusal-dropped": Mutation(
        "what is committed is learned from a refusal of an older term as well: a pre-vote raises no term",  # once a bug
        (Edit("raft.step:_on_old_term", "election.learn_commit(core, message)", "pass"),),
        "demotions",
        2_000,
    ),
}

MUTATIONS: dict[str, Mutation] = {
    **_ELECTIONS,
    **_LOG,
    **_DAMAGE,
    **_DAMAGE_TOLD,
    **_MEMBERSHIP,
    **_READS,
    **_LEASE,
    **_LIVENESS,
}
