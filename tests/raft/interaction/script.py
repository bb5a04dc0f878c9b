"""A transcript: commands, and below each what it printed.

    # a comment, kept as it is
    propose 1 "x"
    ----
    what the command printed, up to the next empty line

A new transcript needs the commands only; `pytest --rewrite` adds what they print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

SEPARATOR = "----"


def rewritten(text: str, run: Callable[[str], list[str]]) -> str:
    """The transcript with the output of this run in place of the recorded one."""
    lines = []
    for line in _commands_and_comments(text):
        lines.append(line)
        if line and not line.startswith("#"):
            lines.append(SEPARATOR)
            lines.extend(run(line) or ["ok"])
            lines.append("")
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n"


def _commands_and_comments(text: str) -> Iterator[str]:
    """Without recorded output and the empty line that ends it."""
    in_output = False
    after_command = False
    for line in text.split("\n"):
        if in_output:
            in_output = bool(line)
            after_command = False
        elif line == SEPARATOR:
            in_output = True
        elif line or not after_command:
            yield line
            after_command = bool(line) and not line.startswith("#")
        else:
            after_command = False
