"""One operation sent many times, over plain REST with an Idempotency-Key, has one effect and one answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import aiohttp

from jepsen.history import History
from jepsen.recorder import Answer, Op
from jepsen.workloads.base import Complaint, Judgement, Workload
from kvstore.base.errors import Timeout
from kvstore.client import Client

KEYS = 5
SENDINGS_MAX = 4
SECONDS_MAX = 3.0


class Idempotence(Workload):
    """`put` is sent to several nodes, some of them at once; `read` tells how often a key was changed."""

    name = "idempotence"
    promise = "done once, with one answer"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._count = 0
        self.endpoints: list[str] = []  # HOST:PORT, set by whoever runs it
        self._http: aiohttp.ClientSession | None = None

    async def setup(self, client: Client) -> None:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS_MAX))

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    def next(self) -> Op:
        self._count += 1
        return Op("put", self.rng.randrange(KEYS), [self._count, self.rng.randint(2, SENDINGS_MAX)])

    async def apply(self, client: Client, op: Op) -> Answer:
        if op.f == "read":
            record = await client.get_record(f"idempotence/{op.key}")
            return 0 if record is None else record.version
        number, sendings = op.value
        nodes = self.rng.sample(self.endpoints, min(len(self.endpoints), sendings))
        answers = await asyncio.gather(*(self._put(node, op.key, number) for node in nodes))
        revisions = [answer for answer in answers if answer is not None]
        if not revisions:
            raise Timeout("no sending was answered")
        return [number, revisions]

    async def _put(self, node: str, key: Any, number: int) -> int | None:
        """The revision that is answered, None if none is."""
        assert self._http is not None
        headers = {"Idempotency-Key": f"put-{number}"}
        url = f"http://{node}/v1/kv/default/idempotence%2F{key}"
        try:
            async with self._http.put(url, data=str(number).encode(), headers=headers) as response:
                return int((await response.json())["revision"]) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def final(self) -> Sequence[Op]:
        return [Op("read", key) for key in range(KEYS)]

    def judge(self, history: History) -> Judgement:
        complaints = []
        puts = [one for one in history.operations if one.f == "put"]
        for put in puts:
            if put.known:
                assert isinstance(put.output, tuple)
                revisions = put.output[1]
                if len(set(revisions)) > 1:
                    text = f"the put of line {put.line} was answered with revisions {sorted(set(revisions))}"
                    complaints.append(Complaint(text, [put]))
        for read in (one for one in history.operations if one.f == "read" and one.known):
            of_key = [put for put in puts if put.key == read.key and put.call < read.call]
            done = sum(put.known for put in of_key)
            changes = read.output
            assert isinstance(changes, int)
            if not done <= changes <= len(of_key):
                text = f"key {read.key} was changed {changes} times by {done} to {len(of_key)} operations"
                complaints.append(Complaint(text, [read]))
        return self.told(history, complaints, {"puts": len(puts)})
