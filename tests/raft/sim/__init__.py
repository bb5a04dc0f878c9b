"""A seeded, deterministic simulation of one Raft group, which checks the promises of Raft at every step.

One seed decides everything: the size of the group, which classes of faults there are and how often (swarm.py), what is
asked of the group (workload.py), what goes wrong (nemesis.py, network.py, disk.py). Phase one is faults, under which
nothing unsafe may happen (checker.py); phase two heals at least a quorum, which must then make progress within a
bounded number of ticks (finale.py).

Invariant: a seed gives the same run on every machine and under every PYTHONHASHSEED.
Invariant: faults stay inside what Raft survives; else a red run would say nothing.

    python -m tests.raft.sim --seeds 1..2000            any number of runs, on all cores
    python -m tests.raft.sim --seed 123 --trace         one of them, with the whole conversation
    python -m tests.raft.sim --mutation NAME --seeds 1..500 --profile P     with one rule of raft/ broken: must fail
    python -m tests.raft.sim --judge                    all mutations, and which seed shows each

Read world.py, then replica.py (the driver), then checker.py. To add a fault: options.py (a weight), swarm.py (a coin),
nemesis.py (what it does). To add a promise: checker.py, and in mutations.py what breaks it, or nobody knows that it is
checked.
"""
