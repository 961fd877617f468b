# make help lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
PYTEST_ARGS ?=
BENCH_ARGS ?=

export RAYEMBED_HOME ?= $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
# Byte code, on all cores: pip would use one. Where Python may not write it, each of Ray's processes would
# compile torch and transformers again. Some packages ship files that are no valid Python.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib platform >/dev/null 2>&1 || true

.PHONY: help venv dev check format test drills docs bench quickstart quickstart-plan serve clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old; set PYTHON to python 3.11 or newer" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --progress-bar off --no-compile -c constraints.txt -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --progress-bar off --no-compile -c constraints.txt -e ".[dev]"
	@$(COMPILE)
	@touch $@

venv: $(VENV)/.runtime ## create .venv with the pinned packages
dev: $(VENV)/.dev ## the same with the development tools

quickstart: | quickstart-plan $(VENV)/.runtime ## train, evaluate, deploy and query a small model on this machine
	$(BIN)/rayembed quickstart --port $(PORT)

quickstart-plan:
	@test -e $(VENV)/.runtime || echo "Installing rayembed into $(VENV) (2 to 4 minutes); the quickstart follows (about 8 minutes)."

serve: $(VENV)/.runtime ## serve a model: make serve CHECKPOINT=runs/quickstart/model
	@test -n "$(CHECKPOINT)" || { echo "error: name a model, make serve CHECKPOINT=runs/quickstart/model" >&2; exit 2; }
	$(BIN)/rayembed serve $(CHECKPOINT) --port $(PORT)

check: $(VENV)/.dev ## check lint, format, types, spelling, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos
	$(BIN)/lint-imports

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.dev ## run the tests; PYTEST_ARGS='-m "not ray and not slow"' runs the quick ones
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

drills: $(VENV)/.dev ## run fault-injection tests: kill nodes and processes, fill disks; half an hour on two cores
	$(BIN)/python -m pytest -m drill $(PYTEST_ARGS)

bench: $(VENV)/.dev ## run all benchmarks; BENCH_ARGS='--quick' is a smoke test, '--only engine' runs one
	$(BIN)/python benchmarks/all.py $(BENCH_ARGS) --json benchmarks/results/latest.json

docs: $(VENV)/.dev ## write docs/configuration.md, build the site into build/site, check links and anchors
	$(BIN)/python scripts/make_configuration_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove the environment and caches; runs, data and models stay
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
