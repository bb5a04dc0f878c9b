"""What is to be done about one shard: a plan of steps, and the operator that is a plan being carried out.

A step is done when the *observed* shard shows it, whoever did it, and never because a request was answered: the
answer may be lost, and the placement driver may be another one by then.

Invariant: the steps of a plan, done in order, lead from the observed shard to `placement`.
Invariant: an operator that has ended never changes again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.placement.view import ShardView


class StepKind(StrEnum):
    ADD_LEARNER = "add learner"
    PROMOTE = "promote"  # the learner, once it has caught up
    SWAP = "swap"  # promote the learner and remove another voter, in one joint change
    REMOVE = "remove"
    TRANSFER = "transfer leader"
    SPLIT = "split"


STEP_SECONDS_MAX = {
    StepKind.ADD_LEARNER: 60.0,
    StepKind.PROMOTE: 1_800.0,  # a snapshot of a large shard at the rate limit, behind others
    StepKind.SWAP: 1_800.0,
    StepKind.REMOVE: 60.0,
    StepKind.TRANSFER: 30.0,
    StepKind.SPLIT: 60.0,
}


class Kind(StrEnum):
    """Which scheduler wants it; earlier ones matter more."""

    REPAIR = "repair"
    DRAIN = "drain"
    SPREAD = "spread"
    SPLIT = "split"
    SPLIT_LOAD = "split by load"
    REPLICAS = "balance replicas"
    LEADERS = "balance leaders"
    LOAD = "balance load"


@dataclass(frozen=True, slots=True)
class Step:
    """`node`: whom it concerns (the newcomer of a swap); `other`: the voter that a swap removes."""

    kind: StepKind
    node: str = ""
    other: str = ""

    def is_done(self, shard: ShardView, plan: Plan) -> bool:
        kind = self.kind
        if kind == StepKind.ADD_LEARNER:
            return self.node in shard.nodes
        if kind == StepKind.PROMOTE:
            return self.node in shard.voters and not shard.joint
        if kind == StepKind.SWAP:
            return self.node in shard.voters and self.other not in shard.nodes and not shard.joint
        if kind == StepKind.REMOVE:
            return self.node not in shard.nodes and not shard.joint
        if kind == StepKind.TRANSFER:
            return shard.leader == self.node
        assert kind == StepKind.SPLIT
        return shard.version > plan.version


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a shard's replicas and its leader are, by node id."""

    nodes: tuple[str, ...]
    leader: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Made by a scheduler from the view; `version` and `conf` are those of the shard that it saw."""

    kind: Kind
    shard: int
    version: int
    conf: int
    steps: tuple[Step, ...]
    placement: Placement  # once it is done
    sender: str | None  # the node that leads the shard and sends the snapshot
    reason: str

    @property
    def receivers(self) -> tuple[str, ...]:
        return tuple(step.node for step in self.steps if step.kind == StepKind.ADD_LEARNER)

    @property
    def only_transfers(self) -> bool:
        return all(step.kind == StepKind.TRANSFER for step in self.steps)


class State(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Operator:
    """A plan under way. Times are seconds on the driver's clock."""

    id: int
    plan: Plan
    began: float
    state: State = State.RUNNING
    done_steps: int = 0
    step_began: float = 0.0
    ended: float = 0.0
    error: str = ""  # why it failed, or what the last attempt at its step was refused with
    history: list[tuple[float, str]] = field(default_factory=list)

    @property
    def step(self) -> Step | None:
        """The one to be done now."""
        return self.plan.steps[self.done_steps] if self.state == State.RUNNING else None

    def observe(self, shard: ShardView, now: float) -> bool:
        """Go on past every step that the shard shows to be done; returns whether any was."""
        before = self.done_steps
        while self.state == State.RUNNING and self.plan.steps[self.done_steps].is_done(shard, self.plan):
            self.history.append((now, f"{self.plan.steps[self.done_steps].kind} done"))
            self.done_steps += 1
            self.step_began, self.error = now, ""
            if self.done_steps == len(self.plan.steps):
                self.end(State.DONE, now)
        return self.done_steps > before

    def end(self, state: State, now: float, error: str = "") -> None:
        assert self.state == State.RUNNING, "it has ended"
        assert state != State.RUNNING
        self.state, self.ended = state, now
        self.error = error or self.error
        self.history.append((now, f"{state}: {error}" if error else str(state)))
