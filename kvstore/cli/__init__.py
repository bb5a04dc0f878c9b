"""The command line: `kvstore serve` and `kvstore dev` run nodes, `kvctl` uses and looks after a cluster.

Read first: main (the two entry points), settings (where a node's configuration comes from), target (what every
kvctl command shares: endpoints, output form, exit codes), then the command that you care about.

Invariant: stdout carries the result and nothing else; progress, notes and errors go to stderr. With `-o json` both are
           JSON. An error is one line and decides the exit code (failure.py has the list).
Invariant: no command writes a traceback at a user for what the store or the network did.
Invariant: heavy imports (the client, rich) happen inside the commands: `kvctl get` must start fast.

Names and shapes that other tools rely on: the commands and flags, `import`/`export` lines (records.py), the JSON of
`shards`, `routes`, `bench`. If you change one, change docs/operations.md with it.
"""
