"""The whole store in one thread on virtual time, decided by a seed: production code on a simulated loop and network.

Read in this order: loop (time, processes), network, wire (clients), node (what is replaced, and that little is),
cluster (machines, kill, pause), faults, swarm (what a seed decides), simulation (phases, verdict).

Invariant: the same seed gives the same history to the byte, in any process and under any PYTHONHASHSEED. So nothing
    here asks a clock, a socket or a thread, takes chance from elsewhere than from the seed, or walks over a set of
    strings.
"""
