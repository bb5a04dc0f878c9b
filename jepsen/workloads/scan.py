"""Scans while keys are written: what was there all the time is seen once, in order, whatever shards do meanwhile."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jepsen.history import History
from jepsen.recorder import Answer, Op
from jepsen.workloads.base import Complaint, Judgement, Workload
from kvstore.client import Client

PREFIX = "scan/"
KEYS_MAX = 3_000


class Scan(Workload):
    """Puts of new keys, deletes of some, scans of all, forward and reverse, by pages."""

    name = "scan"
    promise = "without a gap or a key twice"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._fresh = rng.sample(range(1, 100_000), KEYS_MAX)

    def next(self) -> Op:
        if self._fresh and self.rng.random() < 0.9:
            return Op("put", None, self._fresh.pop())
        return Op("scan", None, self.rng.choice(("forward", "reverse")))

    async def apply(self, client: Client, op: Op) -> Answer:
        if op.f == "put":
            await client.put(f"{PREFIX}{op.value:06d}", "x")
            return op.value
        page = self.rng.choice((7, 50, 1_000))
        reverse = op.value == "reverse"
        found = client.scan(prefix=PREFIX, page_keys=page, reverse=reverse)
        return [int(item.key[len(PREFIX) :]) async for item in found]

    def final(self) -> Sequence[Op]:
        return [Op("scan", None, "forward"), Op("scan", None, "reverse")]

    def judge(self, history: History) -> Judgement:
        """A key whose put had returned before the scan began must be there; one whose put had not begun must not."""
        complaints = []
        puts = {one.input: one for one in history.operations if one.f == "put" and one.outcome.value != "fail"}
        scans = [one for one in history.operations if one.f == "scan" and one.known]
        for scan in scans:
            keys = scan.output
            assert isinstance(keys, tuple)
            ordered = sorted(set(keys), reverse=scan.input == "reverse")
            if list(keys) != ordered:
                complaints.append(Complaint(f"the scan of line {scan.line} is out of order or has a key twice", [scan]))
            seen = set(keys)
            missing = [key for key, put in puts.items() if put.ret < scan.call and key not in seen]
            early = [key for key in keys if key not in puts or puts[key].call > scan.ret]
            if missing:
                text = f"the scan of line {scan.line} lacks {len(missing)} keys, {missing[0]} for one"
                complaints.append(Complaint(text, [scan, puts[missing[0]]]))
            if early:
                text = f"the scan of line {scan.line} has keys that nobody had put: {early[0]} for one"
                complaints.append(Complaint(text, [scan]))
        return self.told(history, complaints, {"scans": len(scans), "keys": len(puts)})
