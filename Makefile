# Two commands for a fresh machine: `make demo` and `make test`. Both install what
# they need: into .venv, and as root what Debian packages.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check lint types pgtap pytest pytest18 container docs golden dist env clean
.PHONY: bench bench-full chaos soak cc

BIN := .venv/bin
WORKERS ?= 4
MINUTES ?= 3
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal --ignore tests/test_container.py
SURVIVED := python-sdk/docs/survival.md
AGAIN := cancel children claiming cron deadlines events idempotency plans privileges raw_sql \
	results retention retry scale schedules upgrade \
	$(addsuffix _races,claim cleanup event cascade join key)
SOURCES := $(wildcard python-sdk/src python-sdk/tools python-sdk/examples) tests
SYNC := $(wildcard python-sdk/tools/async_to_sync.py)

help: ## print this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

demo: .venv/demo ## a real job, killed halfway with kill -9, and its proof
	$(BIN)/durable demo

test: check pytest pytest18 container ## everything CI runs

check: lint types pgtap ## the quick half of it

lint: .venv/dev ## style, imports between packages, and that _sync is generated
	$(BIN)/ruff check python-sdk tests
	$(BIN)/ruff format --check python-sdk tests
	cd python-sdk && ../$(BIN)/lint-imports --no-cache
	$(foreach tool,$(SYNC),$(BIN)/python $(tool) --check)

types: .venv/dev ## mypy, strict, over sources and tests
	$(BIN)/mypy --config-file python-sdk/pyproject.toml $(SOURCES)

pgtap: .venv/dev ## the SQL's own tests, on Debian's Postgres
	postgres=$$(.ci/postgres) && $(BIN)/python -m tests.support.pgtap "$$postgres"

pytest: .venv/dev cc ## the Python tests, on Debian's Postgres
	.ci/pgbouncer
	postgres=$$(.ci/postgres) && \
	DURABLE_TEST_PG=local DURABLE_TEST_PG_BIN="$$postgres" $(PYTEST)

pytest18: .venv/dev ## what is the engine's, on the embedded Postgres 18
	DURABLE_TEST_PG=local DURABLE_TEST_PG_BIN=wheel $(PYTEST) -m "not slow" \
	$(foreach name,$(AGAIN),tests/test_$(name).py) tests/chaos/test_interleavings.py

container: .venv/dev ## the same promise in a container, if an engine can be had
	.ci/postgres > /dev/null
	$(BIN)/python -m tests.container.engine $(BIN)/pytest tests/test_container.py

chaos: .venv/dev cc ## the faults of `make pytest` in their thousands, in minutes
	postgres=$$(.ci/postgres) && \
	DURABLE_TEST_PG=local DURABLE_TEST_PG_BIN="$$postgres" DURABLE_CHAOS=long \
	DURABLE_SURVIVED=$(SURVIVED) $(PYTEST) --override-ini timeout=1500 \
	tests/chaos tests/test_privileges.py

soak: .venv/dev ## all faults at random under load, for MINUTES, then the ledger
	postgres=$$(.ci/postgres) && DURABLE_TEST_PG_BIN="$$postgres" \
	DURABLE_SURVIVED=$(SURVIVED) $(BIN)/python -m tests.chaos.soak --minutes $(MINUTES)

docs: .venv/dev ## the pages that are made: the SQL API and the errors
	$(BIN)/python python-sdk/tools/make_docs.py

golden: .venv/dev ## accept the schema as it is into tests/golden
	$(BIN)/python -m tests.support.schema

dist: .venv/dev ## dist/: one flat durable.sql for psql, and the wheel
	mkdir -p dist
	$(BIN)/durable sql > dist/durable.sql
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist ./python-sdk

bench: .venv/bench/ready ## durable beside its peers, in minutes; writes a page of docs
	postgres=$$(.ci/postgres) && \
	DURABLE_TEST_PG_BIN="$$postgres" .venv/bench/bin/python -m tests.bench $(BENCH)

bench-full: BENCH := --full
bench-full: bench ## the same with larger sizes and more rounds

cc: # a test wants to shift a process's clock
	@command -v cc > /dev/null || .ci/need gcc libc6-dev

env: .venv/dev ## .venv, with everything for working on durable

clean: ## forget everything that was made here
	rm -rf .venv dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/bench/ready: tests/bench/requirements.txt python-sdk/pyproject.toml
	.ci/venv .venv/bench
	.venv/bench/bin/pip install --quiet --quiet --requirement $< \
	--editable 'python-sdk[fast]'
	touch $@

.venv/%: python-sdk/pyproject.toml
	.ci/venv .venv
	@echo "installing python-sdk[$*] into .venv"
	$(BIN)/pip install --quiet --quiet --editable 'python-sdk[$*]'
	touch $@
