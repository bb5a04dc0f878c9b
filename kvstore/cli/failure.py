"""How a kvctl command fails: one line on stderr, with a hint, and an exit code that a script can act on.

    0 done     1 refused or failed, certainly without effect     2 wrong usage     3 not found
    4 conflict: the condition did not hold                        5 unknown outcome: it may have happened
  130 interrupted (Ctrl-C)

Invariant: exit code 5 is given exactly when an operation that changes data may have taken effect without an answer.
"""

from __future__ import annotations

from typing import Any

from kvstore.base.errors import CODES, ERRORS, Code, KVError

FAILED = 1
USAGE = 2
NOT_FOUND = 3
CONFLICT = 4
UNKNOWN = 5
INTERRUPTED = 130


class CommandFailed(Exception):
    """A failure with its own words. `code` is the store's, or the tool's (UNREACHABLE, ...)."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", exit_code: int = FAILED, fields: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.fields = fields or {}

    def line(self) -> str:
        hint = f" (hint: {self.hint.rstrip('.')})" if self.hint else ""
        return f"kvctl: {self.code}: {' '.join(self.message.rstrip('.').split())}{hint}"

    def json(self) -> dict[str, Any]:
        return {
            "error": self.code,
            "message": self.message,
            "hint": self.hint,
            "unknown_outcome": self.exit_code == UNKNOWN,
            **self.fields,
        }


def exit_code_of(error: KVError) -> int:
    if error.code is Code.NOT_FOUND:
        return NOT_FOUND
    if error.code is Code.CONFLICT:
        return CONFLICT
    return FAILED if error.definite else UNKNOWN


def from_error(error: KVError, *, reading: bool = False) -> CommandFailed:
    """`reading`: nothing can have happened, so a time-out is a plain failure."""
    exit_code = exit_code_of(error)
    if reading and exit_code == UNKNOWN:
        return CommandFailed(error.code.name, error.message, hint="Try again; kvctl status shows the nodes.")
    return CommandFailed(error.code.name, error.message, hint=CODES[error.code].hint, exit_code=exit_code)


def from_problem(status: int, problem: dict[str, Any], *, reading: bool) -> CommandFailed:
    """The REST API's problem details (RFC 9457, with a stable `code`); others' error pages, too."""
    name = str(problem.get("code", f"HTTP_{status}"))
    message = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
    if name not in Code.__members__:
        return CommandFailed(name, message, exit_code=UNKNOWN if status >= 500 and not reading else FAILED)
    definite = problem.get("definite")
    error = ERRORS[Code[name]](message, definite=definite if isinstance(definite, bool) else None)
    return from_error(error, reading=reading)
