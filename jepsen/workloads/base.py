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
from jepsen.history import History
from jepsen.models import model_named
from jepsen.recorder import Answer, Op
from kvstore.base.errors import KVError
from kvstore.client import Client

CHECK_SECONDS_MAX = 120.0


@dataclass(slots=True)
class Judgement:
    """`valid` None: not known. `lines` tell a person what was found, the worst first."""

    valid: bool | None
    lines: list[str] = field(default_factory=list)
    numbers: dict[str, object] = field(default_factory=dict)


class NotDone(KVError):
    """Certainly without effect, and it says nothing about the value: a compare-and-set by revision that came late."""


class Workload:
    name = "?"
    model: str | None = None
    """The sequential object whose operations these are; None if `judge` knows better."""
    share = 1.0
    """How many clients it gets, relative to others."""

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
        verdict = linearizability.check(history, model_named(self.model), seconds_max=CHECK_SECONDS_MAX)
        numbers: dict[str, object] = {"parts": len(verdict.parts), "check_seconds": round(verdict.seconds, 3)}
        return Judgement(verdict.valid, [verdict.why] if verdict.why else [], numbers)


def answered(history: History, f: str) -> list[tuple[int, int]]:
    """(call, return) positions of the operations `f` that were done."""
    return [(one.call, one.ret) for one in history.operations if one.f == f and one.known]
