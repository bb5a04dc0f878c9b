"""The recorded cases in cases/: see the README there for their form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CASES = Path(__file__).parent / "cases"


@dataclass(slots=True)
class Case:
    line: int
    command: str
    arguments: list[str]
    input: list[str]  # lines between the command and the separator
    output: list[str]

    def options(self) -> dict[str, str]:
        return dict(argument.split("=", 1) for argument in self.arguments)


def read_cases(path: Path) -> list[Case]:
    cases = []
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*path.read_text().splitlines(), ""], 1):
        if line.startswith("#"):
            continue
        if line:
            block.append((number, line))
        elif block:
            cases.append(_case(block))
            block = []
    return cases


def _case(block: list[tuple[int, str]]) -> Case:
    number, first = block[0]
    lines = [line for _, line in block]
    separator = lines.index("----")
    command, *arguments = first.replace(", ", ",").split()
    return Case(number, command, arguments, lines[1:separator], lines[separator + 1 :])


def parse_ids(text: str) -> tuple[int, ...]:
    """(1,2,3) -> 1, 2, 3"""
    return tuple(int(word) for word in parse_words(text))


def parse_words(text: str) -> list[str]:
    return [word for word in text.strip("()").split(",") if word]
