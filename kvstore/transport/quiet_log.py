"""A log that says the same thing once a minute: a peer that is misconfigured is refused every second.

Invariant: remembers at most KEYS_MAX things; a flood of different ones can't grow it.
"""

from __future__ import annotations

import logging

KEYS_MAX = 256
REPEAT_SECONDS = 60.0


class QuietLog:
    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: dict[str, float] = {}

    def warn(self, key: str, text: str, *, now: float) -> bool:
        """Log the text as a warning unless `key` was said less than a minute before `now` (seconds). True = logged."""
        last = self._last.get(key)
        if last is not None and now - last < REPEAT_SECONDS:
            return False
        self._last.pop(key, None)
        if len(self._last) >= KEYS_MAX:
            del self._last[next(iter(self._last))]
        self._last[key] = now
        self._logger.warning("%s", text)
        return True

    def forget(self, key: str) -> None:
        """The trouble is over; say it again when it comes back."""
        self._last.pop(key, None)
