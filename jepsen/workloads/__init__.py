"""The workloads, by the names that `--workload` takes."""

from __future__ import annotations

import random
from collections.abc import Callable

from jepsen.workloads.bank import Bank
from jepsen.workloads.base import Workload
from jepsen.workloads.growing import Counter, Set
from jepsen.workloads.idempotence import Idempotence
from jepsen.workloads.register import Register
from jepsen.workloads.scan import Scan
from jepsen.workloads.stale import Stale
from jepsen.workloads.transactions import Append

WORKLOADS: dict[str, Callable[[random.Random], Workload]] = {
    one.name: one for one in (Register, Append, Set, Counter, Scan, Bank, Idempotence, Stale)
}
