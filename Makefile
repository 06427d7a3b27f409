# Every target sets itself up: a virtual environment in .venv, with the versions of constraints.txt.

PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || echo python3)
VENV ?= .venv
MANIFEST ?= manifests/smoke.yaml
RESULTS ?= results
ADDRESS ?=
RUN ?= reference
REFERENCE ?= results/pt2
STORM ?= --runs 20 --faults 200
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SWEEP := $(BIN)/python -m orchestrator

.DEFAULT_GOAL := help
.PHONY: help sweep reference test test-slow test-models test-gpu check chaos storm bench bench-gpu report schema pages models plan install clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed: make PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cluster,models,detection,dev]'
	touch $(READY)

install: $(READY) ## create the virtual environment

sweep: $(READY) ## run MANIFEST (default: the smoke sweep) into RESULTS, on a local Ray or on the cluster at ADDRESS
	$(SWEEP) run $(MANIFEST) --results $(RESULTS) $(if $(ADDRESS),--address $(ADDRESS)) $(ARGS)

reference: $(READY) ## the reference sweep on this machine's GPU, or at ADDRESS, into REFERENCE as the run RUN; again, it goes on
	$(SWEEP) run manifests/pt2.yaml --results $(REFERENCE) --run-id $(RUN) --resume $(if $(ADDRESS),--address $(ADDRESS)) $(ARGS)

plan: $(READY) ## show what MANIFEST would run
	$(SWEEP) plan $(MANIFEST) $(ARGS)

report: $(READY) ## the answers of the latest run in RESULTS
	$(SWEEP) report latest --results $(RESULTS) $(ARGS)

test: $(READY) ## the default tests: no GPU, a few minutes on two cores
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-slow: $(READY) ## what takes minutes: real compiles, long simulations
	$(BIN)/python -m pytest -m slow $(ARGS)

test-models: $(READY) ## build and step every model of the catalogue
	$(BIN)/python -m pytest -n 2 --dist worksteal -m models $(ARGS)

test-gpu: $(READY) ## what must hold on CUDA
	$(BIN)/python -m pytest -m gpu $(ARGS)

chaos: $(READY) ## kill workers, supervisors, nodes and drivers at random and count what is lost; a manifest written to break it all
	$(BIN)/python -m tests.chaos.storm $(STORM)
	$(BIN)/python -m pytest -m chaos -s $(ARGS)

storm: $(READY) ## a short storm of the same kind
	$(BIN)/python -m tests.chaos.storm --runs 2 --faults 16

bench: $(READY) ## measure the orchestrator itself
	for name in analysis driver store; do echo "== $$name"; $(BIN)/python -m tests.benchmarks.bench_$$name || exit 1; done

bench-gpu: $(READY) ## measure the measurement on a GPU, about three minutes
	$(BIN)/python -m tests.benchmarks.bench_measurement $(ARGS)

check: $(READY) ## format, lint, types, import directions, freshness of generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py tests/orchestrator/test_policy.py
	$(SWEEP) schema --check manifests/manifest.schema.json
	$(SWEEP) validate manifests/*.yaml

schema: $(READY) ## write the generated files anew: the manifests' JSON Schema, the table of failures
	$(SWEEP) schema --write manifests/manifest.schema.json
	$(BIN)/python -m orchestrator.failure_table > docs/failures.md.new
	mv docs/failures.md.new docs/failures.md

pages: $(READY) ## renew the pages whose numbers come from a store, and their figure
	$(BIN)/python -m tests.pages docs/reference-sweep.md README.md
	$(BIN)/python -m tests.figure docs/reference-sweep.svg
	$(SWEEP) report reference --results results/reference --html docs/reference-sweep.html > /dev/null || test $$? -eq 3

models: $(READY) ## survey every model of the shipped manifests: the catalogue and docs/models.md
	$(SWEEP) models manifests/pt2.yaml manifests/extra.yaml manifests/pyhpc.yaml --parameters --json > orchestrator/models.json.new
	mv orchestrator/models.json.new orchestrator/models.json
	$(BIN)/python -m orchestrator.model_page > docs/models.md.new
	mv docs/models.md.new docs/models.md

clean: ## remove what the other targets made, but not the results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
