"""What a run is asked to do, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jepsen.outages import Outage
from jepsen.workloads.base import Judgement

VERDICT_FILE = "verdict.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    workloads: Sequence[str]
    nemeses: Sequence[str]
    seconds: float
    nodes: int
    seed: int
    out: Path
    clients: int  # of each workload
    rate: float  # operations a second, of each workload
    faults_at_once: int = 2
    flags: Sequence[str] = ()  # for kvstore serve

    def command(self) -> str:
        """That does the same again; what answers come, and when, differs."""
        words = ["python -m jepsen run", f"--workload {','.join(self.workloads)}"]
        words += [f"--nemesis {','.join(self.nemeses) or 'none'}", f"--time {self.seconds:g}", f"--nodes {self.nodes}"]
        words += [f"--seed {self.seed}", f"--clients {self.clients}", f"--rate {self.rate:g}"]
        return " ".join([*words, f"--faults-at-once {self.faults_at_once}", *self.flags])


@dataclass(slots=True)
class Outcome:
    valid: bool | None
    judgements: dict[str, Judgement]
    problems: list[str] = field(default_factory=list)
    operations: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # workload -> "read ok" -> how many
    faults: dict[str, int] = field(default_factory=dict)
    recovery_seconds: float | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    outages: list[Outage] = field(default_factory=list)
    errors: dict[str, list[str]] = field(default_factory=dict)  # node -> lines of its log that tell of an error

    def settle(self) -> None:
        """The verdict of the whole."""
        verdicts = [judgement.valid for judgement in self.judgements.values()]
        if self.problems or False in verdicts:
            self.valid = False
        else:
            self.valid = None if None in verdicts else True

    def summary(self, seconds: float) -> dict[str, object]:
        return {"valid": said(self.valid), "ops": self.operations, "seconds": round(seconds, 3)}

    def document(self, options: Options) -> dict[str, object]:
        """What is in the verdict's file."""
        return {
            "valid": said(self.valid),
            "seed": options.seed,
            "nodes": options.nodes,
            "seconds": options.seconds,
            "command": options.command(),
            "recovery_seconds": self.recovery_seconds,
            "problems": self.problems,
            "faults": self.faults,
            "skipped": self.skipped,
            "outages": [outage.document() for outage in self.outages],
            "errors": {name: len(lines) for name, lines in self.errors.items()},
            "workloads": {
                name: {
                    "valid": said(judgement.valid),
                    "found": judgement.lines,
                    "operations": self.counts.get(name, {}),
                    **judgement.numbers,
                }
                for name, judgement in self.judgements.items()
            },
        }


def said(valid: bool | None) -> bool | str:
    return "unknown" if valid is None else valid
