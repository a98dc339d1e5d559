# One word for each thing people do here. Needs Python 3.11 or newer, and nothing else.

VENV := .venv/bin
ARGS :=# options for `ratestream up`, for pytest or for the benchmarks

# The size of `make chaos`, what decides its faults, and the guarantee it runs with.
QUOTES := 100000
FAULTS := 20
SEED := 1
GUARANTEE := exactly_once

# Without this, Ctrl-C would end make itself, with an error, while the services still stop. With
# `exec`, a SIGTERM that make passes on reaches them too, not a shell in between.
FOREGROUND := $(VENV)/python scripts/foreground

.PHONY: help run run-kafka test chaos bench bench-quick check docs lock clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 26
	@echo 'Options follow in ARGS:  make run ARGS="--data-dir /tmp/rates"'

run: ## install, and start everything in one process; Ctrl-C stops it
	@scripts/venv run
	@exec $(FOREGROUND) $(VENV)/ratestream up $(ARGS)

run-kafka: ## the same on a real Apache Kafka (needs Java 17 and Maven), kept in .kafka
	@scripts/venv run
	@exec $(FOREGROUND) $(VENV)/python scripts/kafka run --dir .kafka -- \
		$(VENV)/ratestream up --data-dir .kafka/ratestream $(ARGS)

test: ## every test that this machine can run; the others are listed with what they need
	@scripts/venv dev
	@exec $(FOREGROUND) $(VENV)/python -m pytest $(ARGS)

chaos: ## kill everything while quotes flow, and compare what comes out (QUOTES=, FAULTS=, SEED=)
	@scripts/venv dev
	@exec $(FOREGROUND) $(VENV)/python -m tests.chaos --quotes $(QUOTES) --faults $(FAULTS) \
		--seed $(SEED) --guarantee $(GUARANTEE)

bench: ## measure beside the peers; hours. ARGS="latency --rounds 3" for less (Java, Maven)
	@scripts/venv dev
	@exec $(FOREGROUND) $(VENV)/python -m benchmarks $(ARGS)

bench-quick: ## ratios against the limits only; minutes. Fails when one is half of what it was
	@scripts/venv dev
	@exec $(FOREGROUND) $(VENV)/python -m benchmarks.quick $(ARGS)

check: ## what CI checks: style, types, imports, documentation
	@scripts/venv dev
	@scripts/check

docs: ## write the pages and the dashboards that come from the code
	@scripts/venv dev
	@$(VENV)/python scripts/settings-docs
	@$(VENV)/python scripts/reference-docs
	@$(VENV)/python scripts/dashboards

lock: ## write the lock files anew from pyproject.toml
	@scripts/lock $(ARGS)

clean: ## remove what was built and installed, but no data
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
