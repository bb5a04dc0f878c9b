"""The placement driver: where the meta group is led, it keeps the view, lets the schedulers decide, and acts.

It begins with nothing but the records of the meta group: nodes report to it within a second, and before all that are
alive have, it decides nothing. What the driver before it had begun shows in the shards (a learner too many) and is
finished or taken back by repair. So nothing of the view or the operators need survive.

Invariant: a step is carried out by a request to the shard's leader with the epoch that was observed; it is done when
           a report shows it, and asked for again until then.
Invariant: after `close` no task of the driver is left.
Called by: coordinator, once a round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from kvstore.base.errors import Invalid, KVError, NotFound
from kvstore.placement.board import OperatorBoard
from kvstore.placement.members import MemberRecord
from kvstore.placement.operators import Operator, State, StepKind
from kvstore.placement.reports import NodeReport, ShardReport
from kvstore.placement.schedulers.drain import drain_state
from kvstore.placement.view import Health, NodeView, View, shard_view
from kvstore.placement.wishes import Wishes

logger = logging.getLogger(__name__)

WARM_UP_SECONDS = 10.0  # nodes that are alive and do not report are waited for so long
RETRY_SECONDS = 0.5
TURN_SECONDS = 0.05  # how soon it goes on when a step is seen to be done

Down = Callable[[str], float | None]


class Actions(Protocol):
    """What is asked of a shard's leader. Each raises KVError; the answer holds how the shard is then, where that is
    known. `conf`: only on this membership."""

    async def add_learner(self, shard: int, node: str, conf: int) -> ShardReport | None: ...
    async def promote(self, shard: int, node: str, conf: int, *, other: str) -> ShardReport | None:
        """`other`: the voter that goes in the same change; "" = none."""

    async def remove(self, shard: int, node: str, conf: int) -> ShardReport | None: ...
    async def transfer(self, shard: int, node: str) -> ShardReport | None: ...
    async def split(self, shard: int, version: int) -> ShardReport | None: ...


class PlacementDriver:
    """One term of office; see the module."""

    def __init__(self, actions: Actions, *, now: float, first_id: int = 1) -> None:
        """`now`: seconds on a clock that only rises. `first_id`: above those of all drivers before."""
        self.view = View()
        self.view.now = now
        self.board = OperatorBoard(self.view, first_id=first_id)
        self._actions = actions
        self._began = now
        self._heard: set[str] = set()  # nodes that have reported in full
        self._disks: dict[str, dict[str, Any]] = {}  # node -> fields of NodeView, as it reported
        self._ranks: dict[int, tuple[int, int, int]] = {}  # shard -> (version, term, conf) as observed
        self._whole: dict[int, int] = {}  # shards that could not be split: the size at which it is tried again
        self._drains: dict[str, tuple[float, int]] = {}  # node -> (since, replicas then)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # operator -> its step under way
        self._turn_handle: asyncio.TimerHandle | None = None
        self._broken: BaseException | None = None  # what a turn or a step ran into; told by the next round

    async def close(self) -> None:
        """The meta group is led elsewhere, or the node stops."""
        if self._turn_handle is not None:
            self._turn_handle.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what is observed ------------------------------------------------------------------------------------------

    def hear(self, report: NodeReport) -> bool:
        """Take a node's report over; returns whether a full one is wanted."""
        if not report.full and report.node not in self._heard:
            return True
        self._disks[report.node] = {
            "capacity_bytes": report.capacity_bytes,
            "used_bytes": _rounded(report.used_bytes),
            "disk_full": report.disk_full,
        }
        for shard, term in report.given_up:
            self._given_up(shard, term, report.node)
        if report.full:
            self._heard.add(report.node)
            led = {one.descriptor.id for one in report.led}
            for known_shard in list(self.view.shards.values()):
                if known_shard.leader == report.node and known_shard.id not in led:
                    self.view.put_shard(replace(known_shard, leader=None))
        for one in report.led:
            self._see(one)
        if any(one.descriptor.id in self.view.running for one in report.led):
            self._hurry()
        return False

    def _given_up(self, shard: int, term: int, node: str) -> None:
        known = self.view.shards.get(shard)
        if known is not None and known.leader == node and self._ranks[shard][1] <= term:
            self.view.put_shard(replace(known, leader=None))

    def _see(self, report: ShardReport) -> None:
        descriptor = report.descriptor
        rank = (descriptor.version, report.term, descriptor.conf)
        if rank < self._ranks.get(descriptor.id, (0, 0, 0)):
            return
        self._ranks[descriptor.id] = rank
        self.view.put_shard(
            shard_view(
                descriptor,
                leader=report.leader,
                joint=report.joint,
                data_bytes=report.data_bytes,
                reads=report.reads,
                writes=report.writes,
                splittable=report.data_bytes >= self._whole.get(descriptor.id, 0),
            )
        )

    def _look_at_nodes(
        self, members: Collection[MemberRecord], removed: Collection[str], wishes: Wishes, down: Down
    ) -> None:
        view = self.view
        view.set_rules(wishes.thresholds, wishes.factors)
        draining = set(wishes.draining.values())
        for record in members:
            before = view.nodes.get(record.node)
            silence = down(record.node)
            view.put_node(
                NodeView(
                    id=record.node,
                    name=record.name,
                    zone=record.labels.get("zone", ""),
                    host=record.labels.get("host", ""),
                    health=Health.UP if silence is None else Health.DOWN,
                    down_since=_since(before, view.now, silence),
                    draining=record.node in draining,
                    **self._disks.get(record.node, {}),
                )
            )
        for node in removed:
            before = view.nodes.get(node) or NodeView(id=node, name=node[:8])
            view.put_node(replace(before, health=Health.REMOVED, draining=False))
        self._time_drains()

    def _time_drains(self) -> None:
        for node in self.view.nodes.values():
            if not node.draining:
                self._drains.pop(node.id, None)
            elif node.id not in self._drains and self.ready:
                self._drains[node.id] = (self.view.now, drain_state(self.view, node.id).replicas)

    @property
    def ready(self) -> bool:
        """Whether enough has been heard to decide."""
        if self.view.now - self._began >= WARM_UP_SECONDS:
            return bool(self._heard)
        up = [node.id for node in self.view.nodes.values() if node.health == Health.UP]
        return bool(up) and self._heard.issuperset(up)

    # -- what is done ----------------------------------------------------------------------------------------------

    def round(
        self,
        now: float,
        *,
        members: Collection[MemberRecord],
        removed: Collection[str],
        wishes: Wishes,
        down: Down,
    ) -> None:
        """Observe, decide, act. `down`: for how many seconds a node (by id) is believed to be down; None = it is up."""
        if self._broken is not None:
            raise self._broken
        self.view.now = now
        self._look_at_nodes(members, removed, wishes, down)
        self._turn()

    def _hurry(self) -> None:
        """A step may be done: look before the next round."""
        if self._turn_handle is None:
            self._turn_handle = asyncio.get_running_loop().call_later(TURN_SECONDS, self._early_turn)

    def _early_turn(self) -> None:
        self._turn_handle = None
        try:
            self._turn()
        except Exception as error:
            self._broken = error  # a loop would only log it

    def _turn(self) -> None:
        if not self.ready:
            return
        self._go_on()
        for operator in self.board.decide():
            plan = operator.plan
            logger.info("shard %d: %s: %s", plan.shard, plan.kind, plan.reason)
            self._act(operator)

    def _go_on(self) -> None:
        """With the operators whose step is done, and those that have ended."""
        for operator in self.board.observe():
            self._drop_task(operator.id)
            self._act(operator)
        for number in [one for one in self._tasks if one not in self.board.running]:
            self._drop_task(number)

    def _drop_task(self, operator: int) -> None:
        task = self._tasks.pop(operator, None)
        if task is not None:
            task.cancel()

    def _act(self, operator: Operator) -> None:
        task = asyncio.get_running_loop().create_task(self._carry_out(operator), name=f"operator-{operator.id}")
        task.add_done_callback(self._on_task_done)
        self._tasks[operator.id] = task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error

    async def _carry_out(self, operator: Operator) -> None:
        """Ask for the operator's step until it is done, observed or given up; ends by cancellation, mostly."""
        step = operator.step
        while operator.state == State.RUNNING and operator.step == step:
            try:
                seen = await self._ask(operator)
                if seen is not None:
                    self._see(seen)
                    self._hurry()
            except KVError as error:
                final = isinstance(error, Invalid)
                if final:
                    self._note_refusal(operator)
                    logger.info("shard %d: %s: %s", operator.plan.shard, operator.plan.kind, error.message)
                self.board.refused(operator, error.message, final=final)
            await asyncio.sleep(RETRY_SECONDS)

    def _note_refusal(self, operator: Operator) -> None:
        """A shard without a legal key to split it at (one key group) is not asked again until it has grown."""
        shard = self.view.shards[operator.plan.shard]
        if operator.plan.steps[0].kind == StepKind.SPLIT:
            self._whole[shard.id] = shard.data_bytes + max(1 << 20, shard.data_bytes // 4)
            self.view.put_shard(replace(shard, splittable=False))

    async def _ask(self, operator: Operator) -> ShardReport | None:
        step, shard = operator.step, self.view.shards[operator.plan.shard]
        assert step is not None
        actions = self._actions
        if step.kind == StepKind.ADD_LEARNER:
            return await actions.add_learner(shard.id, step.node, shard.conf)
        if step.kind in (StepKind.PROMOTE, StepKind.SWAP):
            return await actions.promote(shard.id, step.node, shard.conf, other=step.other)
        if step.kind == StepKind.REMOVE:
            return await actions.remove(shard.id, step.node, shard.conf)
        if step.kind == StepKind.TRANSFER:
            return await actions.transfer(shard.id, step.node)
        assert step.kind == StepKind.SPLIT
        return await actions.split(shard.id, operator.plan.version)

    # -- for people ------------------------------------------------------------------------------------------------

    def cancel(self, operator: int) -> dict[str, Any]:
        """Raises NotFound. Steps that are done stay done; a learner without a need is taken back by repair."""
        found = self.board.cancel(operator)
        if found is None:
            raise NotFound(f"no operator {operator} is running")
        self._drop_task(operator)
        return self._describe(found)

    def describe(self) -> list[dict[str, Any]]:
        """The operators, newest first."""
        found = [*self.board.running.values(), *self.board.ended]
        return [self._describe(operator) for operator in sorted(found, key=lambda one: -one.id)]

    def _describe(self, operator: Operator) -> dict[str, Any]:
        view, plan = self.view, operator.plan
        end = view.now if operator.state == State.RUNNING else operator.ended
        return {
            "id": operator.id,
            "kind": plan.kind.value,
            "shard": plan.shard,
            "reason": plan.reason,
            "state": operator.state.value,
            "error": operator.error,
            "seconds": round(end - operator.began, 1),
            "age_seconds": round(view.now - operator.began, 1),
            "steps": [
                {
                    "kind": step.kind.value,
                    "node": view.name(step.node) if step.node else "",
                    **({"other": view.name(step.other)} if step.other else {}),
                    "done": number < operator.done_steps,
                }
                for number, step in enumerate(plan.steps)
            ],
            "history": [{"seconds": round(at - operator.began, 1), "event": event} for at, event in operator.history],
        }

    def drain_progress(self, node: str) -> dict[str, Any]:
        """Of a node (by id) that is drained."""
        view = self.view
        state = drain_state(view, node)
        progress: dict[str, Any] = {
            "node": view.name(node),
            "draining": node in view.nodes and view.nodes[node].draining,
            "ready": self.ready,
            "done": self.ready and state.done,
            "leaders": state.leaders,
            "replicas": state.replicas,
            "bytes": state.data_bytes,
            "moving": state.moving,
            "blocked": [{"shard": shard, "reason": reason} for shard, reason in state.blocked],
            "seconds_left": None,
        }
        since, replicas = self._drains.get(node, (view.now, state.replicas))
        moved, passed = replicas - state.replicas, view.now - since
        if state.done:
            progress["seconds_left"] = 0.0
        elif moved > 0 and passed > 0 and not state.blocked:
            progress["seconds_left"] = round(state.replicas * passed / moved, 1)
        return progress

    def counts(self) -> Mapping[str, float]:
        """For metrics."""
        ended = self.board.ended
        return {
            "running": len(self.board.running),
            **{state.value: sum(one.state == state for one in ended) for state in State if state != State.RUNNING},
        }


def _since(before: NodeView | None, now: float, silence: float | None) -> float:
    """When it went down, as was first believed: what others tell later may count from their own first doubt."""
    if silence is None:
        return 0.0
    return before.down_since if before is not None and before.down_since else now - silence


def _rounded(used_bytes: int) -> int:
    """To 64 MiB: a few bytes more are no news."""
    return used_bytes >> 26 << 26
