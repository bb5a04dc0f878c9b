# Works on a fresh Debian with python3 (3.11 or newer), python3-venv and gcc. Everything stays in .venv of this folder.
#   make run     a three-node cluster on 127.0.0.1:7001-7003, shown live, with what to try next; Ctrl-C stops it
#   make test    style, types and the whole test suite
#   make lint    style and types only             make sim SEED=7     replay one simulated run of a Raft group
#   make bench   measure the running cluster (BENCH_ARGS: see kvctl bench --help, docs/benchmarks.md)
#   make jepsen  500 simulated seeds, and attacks on real processes, judged: some six minutes (docs/testing.md); make jepsen-long
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 1
PYTEST_ARGS ?=
BENCH_ARGS ?=
JEPSEN_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test lint sim bench jepsen jepsen-long clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n '2,7s/^# \{0,1\}//p' Makefile

# The stamps are newer than pyproject.toml exactly when what it asks for is installed.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "installing into $(VENV), once ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

run: $(VENV)/installed
	@exec $(BIN)/kvstore dev

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy raft kvstore jepsen

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

sim: $(VENV)/installed-test
	$(BIN)/python -m tests.raft.sim --seed $(SEED)

bench: $(VENV)/installed
	$(BIN)/kvctl bench $(BENCH_ARGS)

# Each run on processes draws a seed, prints it, and leaves a report in jepsen-runs/. The first one that fails ends it.
JEPSEN := $(BIN)/python -m jepsen run --workload all --nemesis all
jepsen: $(VENV)/installed-bench
	$(BIN)/python -m jepsen simulate --seeds 1..500 --jobs 2
	$(JEPSEN) --time 60 --nodes 3 $(JEPSEN_ARGS)
	$(JEPSEN) --time 60 --nodes 5 --read-mode lease --faults-at-once 3 $(JEPSEN_ARGS)

jepsen-long: $(VENV)/installed-bench
	for mode in index lease; do for nodes in 3 5; do for faults in 1 2 3; do \
	  $(JEPSEN) --time 300 --nodes $$nodes --read-mode $$mode --faults-at-once $$faults $(JEPSEN_ARGS) || exit 1; \
	done; done; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
