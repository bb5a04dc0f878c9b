"""What a run that went wrong says. The kinds are also the exit codes of the command."""

from __future__ import annotations

EXIT_CRASH = 127  # an exception or a failed assertion inside raft/
EXIT_LIVENESS = 128  # healed, and yet no progress within the bound
EXIT_SAFETY = 129  # a promise was broken


class Violation(Exception):
    """A rule that did not hold. `invariant` is its short name, the same in every run."""

    def __init__(self, invariant: str, text: str, *, exit_code: int = EXIT_SAFETY) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.invariant, self.text, self.exit_code))


def _rebuild(invariant: str, text: str, exit_code: int) -> Violation:
    return Violation(invariant, text, exit_code=exit_code)
