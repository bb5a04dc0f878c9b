"""The operators that run, and those that have ended: begun, observed, timed out, cancelled.

Pure: time comes in with the view (`View.now`), and what is to be done next goes out as values (`due`).

Invariant: every running operator is counted in the view (`View.running`), and nothing else is.
Invariant: no plan begins that `safety.danger` objects to.
Called by: driver.
"""

from __future__ import annotations

from collections import deque

from kvstore.placement.operators import STEP_SECONDS_MAX, Kind, Operator, Plan, State, StepKind
from kvstore.placement.safety import costs_quorum, danger
from kvstore.placement.schedulers import schedulers_of
from kvstore.placement.view import View

HISTORY_MAX = 500
ROUND_PLANS_MAX = 200  # begun in one round: bounds how long a round holds the loop
FAILURES_MAX = 8  # doublings of a shard's rest after operators that failed
NEEDS_TARGET = (StepKind.ADD_LEARNER, StepKind.PROMOTE, StepKind.SWAP, StepKind.TRANSFER)

RESTING = (Kind.LOAD, Kind.SPLIT_LOAD)
"""What was done about a load shows in the smoothed loads only after a while."""


class OperatorBoard:
    """See the module."""

    def __init__(self, view: View, *, first_id: int = 1) -> None:
        self.view = view
        self.running: dict[int, Operator] = {}  # by id
        self.ended: deque[Operator] = deque(maxlen=HISTORY_MAX)  # newest last
        self._next_id = first_id
        self._failures: dict[int, int] = {}  # shard -> operators that failed in a row

    def decide(self) -> list[Operator]:
        """Ask the schedulers, the more important ones first, and begin what they want."""
        begun: list[Operator] = []
        for scheduler in schedulers_of(self.view):
            for plan in scheduler(self.view):
                begun.append(self.begin(plan))
                if len(begun) == ROUND_PLANS_MAX:
                    return begun
        return begun

    def begin(self, plan: Plan) -> Operator:
        view = self.view
        objection = danger(view, view.shards[plan.shard], plan)
        assert objection is None, f"shard {plan.shard}, {plan.kind}: {objection}"
        view.begin(plan)
        operator = Operator(self._next_id, plan, view.now, step_began=view.now)
        operator.history.append((view.now, f"begun: {plan.reason}"))
        self._next_id += 1
        self.running[operator.id] = operator
        return operator

    def observe(self) -> list[Operator]:
        """Compare all that run with the view; those returned are due: their next step is to be carried out."""
        due = []
        for operator in list(self.running.values()):
            shard = self.view.shards[operator.plan.shard]
            moved = operator.observe(shard, self.view.now)
            if operator.state == State.DONE:
                self._close(operator)
                continue
            failure = self._failure(operator)
            if failure is not None:
                self._end(operator, State.FAILED, failure)
            elif moved:
                due.append(operator)
        return due

    def refused(self, operator: Operator, message: str, *, final: bool) -> None:
        """The attempt at its step was refused; not `final`: it is tried again until the step's time is up."""
        if operator.state != State.RUNNING:
            return
        if final:
            self._end(operator, State.FAILED, message)
        elif operator.error != message:
            operator.error = message
            operator.history.append((self.view.now, f"refused: {message}"))

    def cancel(self, operator_id: int) -> Operator | None:
        """None: no such operator runs. What it has begun is taken back by repair."""
        operator = self.running.get(operator_id)
        if operator is not None:
            self._end(operator, State.CANCELLED, "cancelled on request")
        return operator

    def _failure(self, operator: Operator) -> str | None:
        """Why it cannot go on."""
        step = operator.step
        assert step is not None
        if step.kind in NEEDS_TARGET and not self.view.in_service(step.node):
            return f"{self.view.name(step.node)} is not in service any more"
        if costs_quorum(self.view, self.view.shards[operator.plan.shard], step):
            return "with the nodes that are down now it would cost the quorum"
        if self.view.now - operator.step_began > STEP_SECONDS_MAX[step.kind]:
            last = f"; last: {operator.error}" if operator.error else ""
            return f"{step.kind} was not done within {STEP_SECONDS_MAX[step.kind]:.0f} s{last}"
        return None

    def _end(self, operator: Operator, state: State, error: str) -> None:
        operator.end(state, self.view.now, error)
        self._close(operator)

    def _close(self, operator: Operator) -> None:
        """Take it off the running ones. A shard whose operators fail again and again rests longer and longer; one that
        broke off is at once open to repair, which takes back what was begun."""
        del self.running[operator.id]
        self.ended.append(operator)
        shard = operator.plan.shard
        rest = self.view.thresholds.rest_seconds
        if operator.state == State.FAILED:
            failures = self._failures.get(shard, 0) + 1
            self._failures[shard] = failures
            rest *= 2.0 ** (min(failures, FAILURES_MAX) - FAILURES_MAX // 2)
        else:
            self._failures.pop(shard, None)
        rests = operator.state != State.DONE or operator.plan.kind in RESTING
        self.view.end(shard, rest_seconds=rest if rests else 0.0)
