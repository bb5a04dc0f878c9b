"""How the store is tried and judged: histories, the checkers that judge them, the report that shows the verdict.

Read in this order: history.py (what a history is), models.py (what a right answer is), search.py (is there an order?),
linearizability.py (one verdict of many keys, in bounds), counterexample.py (why not), then the checkers that need no
search: set_check.py and list_append.py.

Invariant: the checkers import nothing of the store. They would judge any other store just as well, and they do:
           tests/jepsen/data holds histories that others recorded of etcd, MongoDB and others, with known verdicts.
Invariant: a verdict has three values. Out of time or memory is "unknown", and never reported as a pass.
"""
