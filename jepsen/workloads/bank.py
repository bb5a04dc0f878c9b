"""Transfers between accounts in atomic batches: the sum never changes, and no account goes below zero."""

from __future__ import annotations

from collections.abc import Sequence

from jepsen.history import History
from jepsen.recorder import Answer, Op
from jepsen.workloads.base import Complaint, Judgement, NotDone, Workload
from kvstore.base.errors import Conflict
from kvstore.base.operations import Found
from kvstore.client import Client

ACCOUNTS = 8
BALANCE = 100
GONE = -1
"""Stands for an account that is not there: nobody deletes one."""


class Bank(Workload):
    """The accounts are one key group, so they stay in one shard for ever."""

    name = "bank"
    promise = "without a cent lost or made"

    async def setup(self, client: Client) -> None:
        batch = client.batch()
        for account in range(ACCOUNTS):
            batch.put(name_of(account), str(BALANCE))
        await batch.commit()

    def next(self) -> Op:
        if self.rng.random() < 0.4:
            return Op("read")
        source, target = self.rng.sample(range(ACCOUNTS), 2)
        return Op("transfer", None, [source, target, self.rng.randint(1, 20)])

    async def apply(self, client: Client, op: Op) -> Answer:
        if op.f == "read":
            return [GONE if found is None else int(found.value) for found in await _read(client, range(ACCOUNTS))]
        source, target, amount = op.value
        one, other = await _read(client, (source, target))
        if one is None or other is None or int(one.value) < amount:
            raise NotDone("not enough money")
        batch = client.batch()
        batch.cas(name_of(source), str(int(one.value) - amount), revision=one.mod_revision)
        batch.cas(name_of(target), str(int(other.value) + amount), revision=other.mod_revision)
        try:
            await batch.commit()
        except Conflict as error:
            raise NotDone(f"late: {error.message}") from None
        return op.value

    def final(self) -> Sequence[Op]:
        return [Op("read")]

    def judge(self, history: History) -> Judgement:
        complaints = []
        reads = [one for one in history.operations if one.f == "read" and one.known]
        for read in reads:
            balances = read.output
            assert isinstance(balances, tuple)
            if sum(balances) != ACCOUNTS * BALANCE or min(balances) < 0:
                text = f"the read of line {read.line} has the sum {sum(balances)}: {list(balances)}"
                complaints.append(Complaint(text, [read]))
        transfers = sum(one.f == "transfer" and one.known for one in history.operations)
        return self.told(history, complaints, {"reads": len(reads), "transfers": transfers})


async def _read(client: Client, accounts: Sequence[int]) -> list[Found | None]:
    """In one step."""
    batch = client.batch()
    for account in accounts:
        batch.get(name_of(account))
    done = await batch.commit()
    return [result if isinstance(result, Found) else None for result in done.results]


def name_of(account: int) -> str:
    return f"{{bank}}/{account}"
