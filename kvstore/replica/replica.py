"""One replica: a Raft core, the shard's state, and the requests that wait for them. Synchronous, no I/O of its own.

A turn has two halves, so that the disk and the peers work while the loop applies: `collect` takes the core's Ready
(messages and log writes leave at once), `apply` executes what is committed and answers.

Invariant: entries are applied in order, each once; `state.applied_index` and the core's `applied` move together.
Invariant: range and epoch are checked when a write is staged, when it is applied, and for a read in the same
           synchronous step that reads the value.
Invariant: a failed assertion while applying would fail on every replica at every restart: it stops this replica only.
Called by: host_core.   Read next: proposals, reads, kvstore/state.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvstore.base.config import ReadMode
from kvstore.base.errors import Code, DamagedRecord
from kvstore.base.limits import DEADLINE_MS_MAX
from kvstore.base.operations import Delete, DeleteRange, Get, Mutation, ReadOperation, Result, first_key
from kvstore.base.shards import Route, ShardDescriptor
from kvstore.base.stream import LINEARIZABLE, Mutate, Read, Refused, Results
from kvstore.replica.environment import Environment
from kvstore.replica.healing import Healing
from kvstore.replica.membership import changed_descriptor, decode_context, was_removed
from kvstore.replica.proposals import Proposals, ProposedEntry
from kvstore.replica.reads import Reads
from kvstore.replica.requests import ReadRequest, ReplyTo, WriteRequest, refusal
from kvstore.replica.routes import route_of
from kvstore.replica.splits import Splits
from kvstore.state.apply import STALE_ROUTE
from kvstore.state.command import DecodedWrite, Write, decode_payload
from kvstore.state.shard import SESSION_EXPIRED, ShardState
from kvstore.state.stamp import StampClock
from kvstore.storage.protocol import GroupLog
from raft import Entry, EntryKind, RaftError, RawNode, Ready, Role, Status
from raft.confchange import decode_change

logger = logging.getLogger(__name__)

ROUTED_OPERATIONS_MAX = 64  # of a refused frame, whose shards are looked up


class Replica:
    """A replica of one shard on this node. `state` is None until its first snapshot is installed."""

    def __init__(
        self,
        *,
        group: int,
        replica_id: int,
        raw: RawNode,
        log: GroupLog,
        state: ShardState | None,
        environment: Environment,
    ) -> None:
        self.group = group
        self.replica_id = replica_id
        self.raw = raw
        self.log = log
        self.state = state
        self.environment = environment
        self.proposals = Proposals()
        self.splits = Splits(self)
        self.reads = Reads(prefix=f"{replica_id}.{environment.boot}.".encode())
        self.healing = Healing(log.identity)
        self.stamps = StampClock(0 if state is None else state.stamp, environment.clock.boot_ms())
        self.node_of: dict[int, str] = {}  # replica id -> node id, from the descriptor and from who wrote to us
        self.failed = ""  # why the replica was stopped; "" = it runs
        self.rotten = False  # stopped because its disk gave back damage: to be rebuilt once another one leads
        self.removed = False  # no longer a member: to be destroyed, see host_driver
        self.removed_at_ms = 0  # boot clock
        self.installing = False  # a snapshot is being written under it: Raft stands still
        self.starting = False  # a split's child whose identity is not durable yet: it listens, and says nothing
        self.leader_changes = 0
        self.operations_read = 0  # here, ever: what placement takes the shard's load from
        self._led: tuple[int, ShardDescriptor] | None = None  # as last looked at by `leads_anew`
        self._routed: ShardDescriptor | None = None  # as last looked at by `route_anew`
        self._route_touched = True  # since then
        self._deposed_at_ms = -1  # when leadership was lost with writes proposed; -1 = not, or they are given up
        if state is not None:
            self._learn_membership()

    # -- what others ask -------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """A replica that was stopped leads nobody, whatever its core, which stands still, believed last."""
        return self.raw.role == Role.LEADER and not self.failed

    @property
    def leads(self) -> ShardDescriptor | None:
        """The shard, if it is led from here and everything of earlier terms is applied: what others may rely on."""
        state = self.state
        if state is None or not self.is_leader or state.applied_term != self.raw.term:
            return None
        return state.descriptor

    def leads_anew(self) -> bool:
        """Whether that, or its term, is another one than at the last call."""
        descriptor, led = self.leads, self._led
        if descriptor is None:
            self._led = None
            return led is not None
        term = self.raw.term
        if led is not None and led[0] == term and led[1] is descriptor:
            return False
        self._led = (term, descriptor)
        return True

    @property
    def needs_ticks(self) -> bool:
        """Whether its time passes. If not, the host leaves it alone until something happens to it."""
        if self.failed or self.installing:
            return False
        waits = self.reads.rounds or self.reads.waiting or self.healing.damaged or self._deposed_at_ms >= 0
        return not self.raw.asleep or bool(waits)

    def route_anew(self) -> bool:
        """Whether the shard, or the leader that this replica knows, may be another one than at the last call."""
        descriptor = self.state.descriptor if self.state is not None else None
        if descriptor is self._routed and not self._route_touched:
            return False
        self._routed = descriptor
        self._route_touched = False
        return True

    @property
    def leader_node(self) -> str | None:
        """Node id of the leader, as far as this replica knows."""
        return None if self.failed else self.node_of.get(self.raw.leader_id)

    @property
    def role_name(self) -> str:
        """failed, learner, or the Raft role: for people and metrics."""
        if self.failed:
            return "failed"
        if self.replica_id in self.raw.conf_state.learners:
            return "learner"
        return self.raw.role.name.lower()

    def status(self) -> Status:
        return self.raw.status()

    def route(self) -> Route | None:
        """The shard for a client: range, epoch, and the leader that this replica knows."""
        state = self.state
        if state is None:
            return None
        leader = self.environment.address_of(self.leader_node)
        return route_of(state.descriptor, leader, self.raw.term, self.environment)

    # -- requests --------------------------------------------------------------------------------------------------

    def stage_write(self, frame: Mutate, operations: list[Mutation], reply: ReplyTo) -> WriteRequest | None:
        """Check and queue a frame of mutations, or refuse it definitely at once."""
        refused = self._check_frame(frame.id, frame.version, operations)
        if refused is None:
            only_deletes = self.environment.disk_full and all(type(one) in (Delete, DeleteRange) for one in operations)
            code = self.environment.refuses_writes(only_deletes=only_deletes)
            if code is not None:
                refused = refusal(frame.id, code)
        if refused is not None:
            self.environment.metrics.proposals_dropped += len(operations) if refused.code == Code.OVERLOADED else 0
            reply(self._known_answer(frame, operations) or refused)
            return None
        write = Write(
            version=frame.version,
            session=frame.session,
            low=frame.low,
            issued_at=frame.issued_at,
            operations=frame.operations,
        )
        request = WriteRequest(
            frame_id=frame.id,
            reply=reply,
            deadline_ms=self.deadline(frame.timeout_ms),
            write=DecodedWrite(write=write, operations=operations),
            size=memoryview(frame.operations).nbytes + 64,
        )
        if not self.proposals.stage(request):
            self.environment.metrics.proposals_dropped += len(operations)
            reply(refusal(frame.id, Code.OVERLOADED, "too many writes wait for their proposal"))
            return None
        return request

    def add_read(self, frame: Read, operations: list[ReadOperation], reply: ReplyTo) -> ReadRequest | None:
        """Answer a frame of reads if that is possible at once, queue it for a round, or refuse it."""
        request = ReadRequest(
            frame_id=frame.id,
            reply=reply,
            deadline_ms=self.deadline(frame.timeout_ms),
            version=frame.version,
            max_staleness_ms=frame.max_staleness_ms,
            operations=operations,
        )
        try:
            if frame.max_staleness_ms == LINEARIZABLE:
                self.reads.asked += 1
                if self.failed or self.state is None or not self.is_leader:
                    reply(self.refuse_here(frame.id))
                    return None
                if self.environment.config.read_mode == ReadMode.LEASE and self._read_by_lease(request):
                    return None
            elif self._read_stale(request):
                return None
        except DamagedRecord as error:
            self.rot(error)
        if self.failed:
            request.answer(self.refuse_here(frame.id))
            return None
        if not self.reads.add(request):
            reply(refusal(frame.id, Code.OVERLOADED, "too many reads wait"))
            return None
        return request

    def _check_frame(self, frame_id: int, version: int, operations: Sequence[Mutation]) -> Refused | None:
        state = self.state
        if self.failed or not self.is_leader or state is None:
            return self.refuse_here(frame_id)
        if state.check_keys(version, operations) is not None:
            return self._refuse_route(frame_id, operations)
        return None

    def _known_answer(self, frame: Mutate, operations: Sequence[Mutation]) -> Results | None:
        """For a frame that can't be staged here: a batch that was done before its keys came to lie in two shards would
        be refused by both of them."""
        state = self.state
        if not frame.session or state is None or not self.is_leader:
            return None
        known = state.known_answers(frame.session, [operation.seq for operation in operations])
        return None if known is None else Results(frame.id, state.stamp, known)

    def refuse_here(self, frame_id: int) -> Refused:
        """The refusal of a replica that does not lead, with its best hint, or that was stopped."""
        if self.failed:
            return refusal(frame_id, Code.UNAVAILABLE, f"this replica was stopped: {self.failed}")
        return refusal(frame_id, Code.NOT_LEADER, routes=self._hint())

    def _refuse_route(self, frame_id: int, operations: Sequence[Mutation | ReadOperation]) -> Refused:
        """The refusal of a frame whose epoch or keys are not this shard's: with the routes of the shards that hold its
        keys now. Definite also for a write that was in the log: this attempt at it has done nothing."""
        state = self.state
        if state is None:
            return refusal(frame_id, Code.STALE_ROUTE)
        keys = list(map(first_key, operations[:ROUTED_OPERATIONS_MAX]))
        found = {route.id: route for route in self.splits.heir_routes()}
        found |= {route.id: route for route in self.environment.find_routes(state.descriptor.keyspace, keys)}
        found |= {route.id: route for route in self._hint()}
        return refusal(frame_id, Code.STALE_ROUTE, stamp=state.stamp, routes=tuple(found.values()))

    def _hint(self) -> tuple[Route, ...]:
        route = self.route()
        return () if route is None else (route,)

    def stamp_now(self) -> int:
        """The stamp that an entry proposed now would get; what a client counts `issued_at` from."""
        clock = self.environment.clock
        return self.stamps.peek(clock.wall_ms(), clock.boot_ms())

    def deadline(self, timeout_ms: int) -> int:
        return self.environment.clock.boot_ms() + max(1, min(timeout_ms, DEADLINE_MS_MAX))

    # -- reading ---------------------------------------------------------------------------------------------------

    def _values(self, operations: Sequence[ReadOperation]) -> list[Result]:
        state = self.state
        assert state is not None
        return [state.get(one.key) if isinstance(one, Get) else state.scan(one) for one in operations]

    def _read_by_lease(self, request: ReadRequest) -> bool:
        """Whether the lease covered the reading; if not, the read takes a round like every other."""
        state = self.state
        clock = self.environment.clock
        if state is None or state.applied_index < self.raw.commit or not self.raw.lease_valid(clock.boot_ms()):
            return False
        if state.check_keys(request.version, request.operations) is not None:
            return False
        results = self._values(request.operations)
        if not self.raw.lease_valid(clock.boot_ms()):
            return False
        self.environment.metrics.reads_linearizable += len(results)
        self.operations_read += len(results)
        request.answer(Results(request.frame_id, self.stamp_now(), results))
        return True

    def _read_stale(self, request: ReadRequest) -> bool:
        """Answer from what is applied here if that is fresh enough."""
        state = self.state
        fresh_at = self.reads.fresh_at_ms
        if state is None or self.failed or fresh_at < 0:
            return False
        age_ms = self.environment.clock.boot_ms() - fresh_at
        if age_ms > request.max_staleness_ms:
            return False
        self._serve(request, applied=state.applied_index, age_ms=age_ms)
        return True

    def _serve(self, request: ReadRequest, *, applied: int = 0, age_ms: int = 0) -> None:
        """Range, epoch and value in one step. Raises DamagedRecord."""
        state = self.state
        if request.reply is None:
            return
        if state is None or state.check_keys(request.version, request.operations) is not None:
            request.answer(self._refuse_route(request.frame_id, request.operations))
            return
        metrics = self.environment.metrics
        self.operations_read += len(request.operations)
        if request.max_staleness_ms == LINEARIZABLE:
            metrics.reads_linearizable += len(request.operations)
        else:
            metrics.reads_stale += len(request.operations)
        request.answer(Results(request.frame_id, self.stamp_now(), self._values(request.operations), applied, age_ms))

    def serve_reads(self) -> None:
        """Answer the reads whose index is applied."""
        state = self.state
        if state is None or not self.reads.confirmed:
            return
        for request in self.reads.take_served(state.applied_index):
            if self.failed:
                request.answer(self.refuse_here(request.frame_id))
                continue
            try:
                if request.max_staleness_ms == LINEARIZABLE:
                    self._serve(request)
                else:
                    age_ms = max(0, self.environment.clock.boot_ms() - self.reads.fresh_at_ms)
                    self._serve(request, applied=state.applied_index, age_ms=age_ms)
            except DamagedRecord as error:
                self.rot(error)
                request.answer(self.refuse_here(request.frame_id))

    # -- one turn --------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int, *, waits_for_turn: bool = False) -> None:
        """`waits_for_turn`: it would campaign now and may not yet, so that its Raft clock stands still."""
        if self.failed or self.installing or self.starting:
            return
        if not waits_for_turn:
            self.raw.tick(now_ms)
        if 0 <= self._deposed_at_ms < now_ms - self.environment.config.election_ms:
            self._deposed_at_ms = -1
            self.proposals.give_up_sessions()
        self.reads.retry_lost(self.raw, now_ms)
        self.healing.tick(self.raw)

    def collect(self) -> Ready | None:
        """Propose what is staged, begin a round for what waits, and take the core's Ready."""
        if self.failed or self.installing or self.starting:
            return None
        environment = self.environment
        staged = self.proposals.staged
        if staged:
            jumps = self.stamps.jumps
            stamp = self.stamps.next(environment.clock.wall_ms(), environment.clock.boot_ms())
            environment.metrics.clock_jumps += self.stamps.jumps - jumps
            entries = self.proposals.propose(self.raw, stamp=stamp, now=environment.perf())
            if entries:
                commands = sum([len(request.write.operations) for request in staged])
                environment.metrics.proposals += commands
                environment.metrics.entry_commands.observe(commands / entries, entries)
        self.reads.begin_round(self.raw, environment.clock.boot_ms())
        return self.raw.ready() if self.raw.has_ready() else None

    def apply(self, ready: Ready) -> None:
        """Execute and answer what a Ready says is committed; a failure stops this replica, not the node."""
        if ready.role_changed:
            self._on_role_change()
        try:
            for entry in ready.committed:
                self._apply_entry(entry)
            if ready.committed:
                self.raw.applied_to(ready.committed[-1].index)
            for read_state in ready.read_states:
                if not self.healing.on_read_state(read_state):
                    self.reads.on_read_state(read_state)
        except (AssertionError, DamagedRecord) as error:
            applied = self.state.applied_index if self.state else 0
            logger.exception("group %d: applying behind index %d failed; the replica is stopped", self.group, applied)
            if isinstance(error, DamagedRecord):
                self.rot(error)
            else:
                self.fail(f"applying behind index {applied}: {error!r}")
            return
        self.serve_reads()

    def _apply_entry(self, entry: Entry) -> None:
        state = self.state
        if state is None:
            return  # the snapshot to come stands for it
        if entry.index <= state.applied_index:
            # A snapshot that was installed over a log which had all of it: the core learns only what is committed.
            if entry.kind == EntryKind.CONF_CHANGE:
                self.raw.apply_conf_change(decode_change(entry.data))
            return
        if entry.kind == EntryKind.CONF_CHANGE:
            self._apply_conf_change(entry)
        elif not entry.data:
            state.apply_empty(entry.index, entry.term)
            self.proposals.take(index=entry.index, term=entry.term)
        else:
            self._apply_commands(state, entry)

    def _apply_commands(self, state: ShardState, entry: Entry) -> None:
        own = self.proposals.take(index=entry.index, term=entry.term)
        if own is None:
            payload = decode_payload(entry.data)
            entry_stamp, split = payload.stamp, payload.split
            writes = [DecodedWrite.decode(command) for command in payload.writes]
        else:
            entry_stamp, split = own.stamp, own.split
            writes = [request.write for request in own.requests]
        if split is not None:
            self.splits.apply(entry, entry_stamp, split, own)
        else:
            self._apply_writes(state, entry, entry_stamp, writes, own)

    def _apply_writes(
        self, state: ShardState, entry: Entry, stamp: int, writes: list[DecodedWrite], own: ProposedEntry | None
    ) -> None:
        environment = self.environment
        try:
            answers = state.apply_entry(entry.index, entry.term, stamp, writes)
        except BaseException:
            if own is not None:
                self.proposals.proposed.appendleft(own)  # the replica's end tells them that their outcome is unknown
            raise
        self.stamps.on_applied(state.stamp, environment.clock.boot_ms())
        environment.metrics.applies += sum(map(len, answers))
        if own is not None:
            environment.metrics.commit_seconds.observe(environment.perf() - own.proposed_at)
            stamp = state.stamp
            for request, results in zip(own.requests, answers, strict=True):
                environment.metrics.sessions_expired += results.count(SESSION_EXPIRED)
                if results and all(result is STALE_ROUTE for result in results):
                    request.answer(self._refuse_route(request.frame_id, request.write.operations))
                else:
                    request.answer(Results(request.frame_id, stamp, results))
                request.release()

    def _apply_conf_change(self, entry: Entry) -> None:
        state = self.state
        assert state is not None
        self.proposals.take(index=entry.index, term=entry.term)
        try:
            change = decode_change(entry.data)
        except ValueError as error:
            raise DamagedRecord(str(error)) from None
        conf_state = self.raw.apply_conf_change(change)
        descriptor = changed_descriptor(state.descriptor, conf_state, decode_context(change.context))
        state.apply_conf_change(entry.index, entry.term, conf_state, descriptor)
        self._learn_membership()
        logger.info("group %d: configuration at %d: %s", self.group, entry.index, conf_state)

    def _learn_membership(self) -> None:
        state = self.state
        assert state is not None
        for place in state.descriptor.replicas:
            self.node_of[place.replica_id] = place.node
        if was_removed(self.replica_id, state.descriptor, state.applied_index):
            self.on_removed()

    def on_removed(self) -> None:
        """It is no member any more, and never will be again: the host destroys it after a while."""
        if not self.removed:
            self.removed = True
            self.removed_at_ms = self.environment.clock.boot_ms()

    def knows_removed(self, replica_id: int) -> bool:
        """Whether a replica of this group was removed, as far as was applied here."""
        state = self.state
        return state is not None and was_removed(replica_id, state.descriptor, state.applied_index)

    def _on_role_change(self) -> None:
        raw = self.raw
        self._route_touched = True
        self.leader_changes += 1
        self.environment.metrics.leader_changes += 1
        self.environment.metrics.elections += raw.role == Role.CANDIDATE
        logger.info(
            "group %d: %s in term %d, leader %s",
            self.group,
            raw.role.name.lower(),
            raw.term,
            self.leader_node or "unknown",
        )
        if raw.role == Role.LEADER:
            self._deposed_at_ms = -1
        else:
            self.proposals.refuse_staged(Code.NOT_LEADER, "the leadership has moved")
            if self.proposals.proposed and self._deposed_at_ms < 0:
                self._deposed_at_ms = self.environment.clock.boot_ms()
        self.reads.retry_lost(raw, self.environment.clock.boot_ms())

    def adopt(self, state: ShardState) -> None:
        """A snapshot was installed: from here on this is the shard's state."""
        self.proposals.skip_to(state.applied_index)
        self.state = state
        self.stamps.on_applied(state.stamp, self.environment.clock.boot_ms())
        self._learn_membership()

    # -- the end ---------------------------------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Stop this replica; the node and its other shards go on."""
        logger.error("group %d: the replica is stopped: %s", self.group, reason)
        self.environment.stopped.append(self.group)
        self.stop(f"this replica was stopped: {reason}", reason=reason)

    def rot(self, error: DamagedRecord) -> None:
        """The disk gave back something else than was written: stop, until another replica leads and heals this one."""
        self.environment.metrics.damaged_records += 1
        if not self.failed:
            self.fail(f"damage on the disk: {error}")
        self.rotten = True

    def stop(self, message: str, *, reason: str = "") -> None:
        """From here on every request is refused at once: nothing would answer it any more."""
        self.failed = reason or message
        self._route_touched = True
        self.end_requests(message)

    def end_requests(self, message: str) -> None:
        """Nothing that waits here will be answered by applying any more."""
        self.proposals.abandon()
        self.reads.refuse_all(Code.UNAVAILABLE, message)

    def transfer_away(self) -> int:
        """Hand the leadership to the voter that is furthest; its replica id, 0 when there is none to take it."""
        if not self.is_leader:
            return 0
        status = self.raw.status()
        conf_state = self.raw.conf_state
        peers = [
            (progress.match, replica_id)
            for replica_id, progress in status.progress.items()
            if replica_id != self.replica_id and replica_id in conf_state.voters and progress.recent_active
        ]
        if not peers:
            return 0
        target = max(peers)[1]
        try:
            self.raw.transfer_leader(target)
        except RaftError:
            return 0
        return target
