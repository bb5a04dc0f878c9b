"""Time as the node sees it. The node never asks the system itself, so that it can run on virtual time.

Timers are the asyncio loop's own (`call_later`); a simulated loop brings its own time along.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def wall_ms(self) -> int:
        """Unix time; may jump."""

    def boot_ms(self) -> int:
        """CLOCK_BOOTTIME: monotonic, counts suspended time; what leases and stamps are measured with."""


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_ms(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
