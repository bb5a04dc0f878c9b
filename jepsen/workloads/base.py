"""What a workload is: operations for clients, how they are done, and how the history of them is judged.

Invariant: `next` and `final` depend on the generator they were given and on nothing else, so a seed gives the same
    operations, though not the same answers.
Invariant: `apply` sends one operation through the client; its KVErrors say what is known of the outcome, and are not
    caught but to be weakened.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from jepsen import linearizability
from jepsen.counterexample import Counterexample, explain_all
from jepsen.history import History, Operation, Outcome
from jepsen.linearizability import Part, Verdict
from jepsen.model import Model, State
from jepsen.models import model_named
from jepsen.recorder import Answer, Op
from jepsen.search import Answer as Found
from jepsen.search import Result
from kvstore.base.errors import KVError
from kvstore.client import Client

CHECK_SECONDS_MAX = 120.0
COMPLAINTS_SHOWN_MAX = 20
"""On a page, each beside all operations of the history."""


@dataclass(slots=True)
class Complaint:
    """Something that must not have happened, and the operations that show it."""

    text: str
    operations: list[Operation]


@dataclass(slots=True)
class Judgement:
    """`valid` None: not known. `lines` tell a person what was found, the worst first; `verdict` is for the page."""

    valid: bool | None
    lines: list[str] = field(default_factory=list)
    numbers: dict[str, object] = field(default_factory=dict)
    verdict: Verdict | None = None
    examples: list[Counterexample] = field(default_factory=list)

    def explain(self) -> None:
        """Finds the contradictions of what was judged by a search: that takes longer than the verdict."""
        if self.verdict is not None and not self.examples and self.verdict.illegal:
            self.examples = explain_all(self.verdict.model, self.verdict.illegal)


class NotDone(KVError):
    """Certainly without effect, and it says nothing about the value: a compare-and-set by revision that came late."""


class Promise(Model):
    """What a workload judges by counting, in the form of a model, so that a page can show it. Nobody searches it."""

    def __init__(self, name: str, promise: str) -> None:
        self.name = name
        self.promise = promise

    def initial(self) -> State:
        return None

    def step(self, state: State, operation: Operation) -> State:
        return state

    def partition(self, operation: Operation) -> None:
        return None


class Workload:
    name = "?"
    model: str | None = None
    """The sequential object whose operations these are; None if `judge` knows better."""
    promise = "linearizable"
    """What a valid history is called, where `judge` counts."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    async def setup(self, client: Client) -> None:
        """Before the clients begin."""

    def next(self) -> Op:
        raise NotImplementedError

    async def apply(self, client: Client, op: Op) -> Answer:
        """Do it; the answer for the history. Raises KVError."""
        raise NotImplementedError

    def final(self) -> Sequence[Op]:
        """What is read at the end, when all faults are healed."""
        return ()

    def judge(self, history: History) -> Judgement:
        assert self.model is not None
        model = model_named(self.model)
        verdict = linearizability.check(history, model, seconds_max=CHECK_SECONDS_MAX, every_part=True)
        numbers: dict[str, object] = {"parts": len(verdict.parts), "check_seconds": round(verdict.seconds, 3)}
        return Judgement(verdict.valid, [verdict.why] if verdict.why else [], numbers, verdict)

    def told(self, history: History, complaints: Sequence[Complaint], numbers: dict[str, object]) -> Judgement:
        """Valid if there is nothing to complain of; each complaint is a contradiction on the page."""
        operations = [one for one in history.operations if one.outcome is not Outcome.FAILED]
        parts = [] if complaints else [Part(None, operations, Result(Found.LEGAL))]
        examples = []
        for number, complaint in enumerate(complaints[:COMPLAINTS_SHOWN_MAX], start=1):
            part = Part(f"{number}: {complaint.text}", operations, Result(Found.ILLEGAL, why=complaint.text))
            parts.append(part)
            examples.append(Counterexample(part, sorted(complaint.operations, key=lambda one: one.call)))
        verdict = Verdict(
            valid=not complaints,
            parts=parts,
            operations=len(history.operations),
            seconds=0.0,
            model=Promise(self.name, self.promise),
            why=complaints[0].text if complaints else "",
        )
        return Judgement(verdict.valid, [one.text for one in complaints], numbers, verdict, examples)
