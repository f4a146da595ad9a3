# `make reproduce` and `make test` are all a new machine needs; everything goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help reproduce forecast test test-wide test-deepspeed test-vllm check format lock schema gpu-day-pack clean

help:
	@echo "make reproduce   set up, run the default study, render reports/report.md"
	@echo "make forecast    what a run will take, before it runs"
	@echo "make test        set up, run the tests"
	@echo "make test-wide   what runs on every kind of model, and what a pass of it costs"
	@echo "make test-deepspeed  build DeepSpeed's environment (minutes), run the tests of its backends"
	@echo "make test-vllm   build vLLM's environment (minutes), run the tests of its backends"
	@echo "make check       format, lint and types, as CI does"
	@echo "make format      mend what formatters can mend"
	@echo "make schema      write the JSON schemas of params.yaml and studies, for editors"
	@echo "make lock        write envs/*.lock from the environment at hand (maintainers)"
	@echo "make gpu-day-pack  what benchmarks/gpu_day.py needs on a GPU's machine without a network"
	@echo "make clean       remove what can be made again; results and checkpoints stay"

# pip keeps its place in the message of the rule that failed, so nothing is hidden here.
.venv/core.stamp: envs/core.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Claimbench needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r envs/core.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev.stamp: envs/dev.lock .venv/core.stamp
	$(BIN)/python -m pip install --quiet -r envs/dev.lock
	@touch $@

reproduce: .venv/core.stamp
	@$(BIN)/snakemake --cores all
	@echo "The report is at reports/report.md"

forecast: .venv/core.stamp
	@$(BIN)/python -m claimbench forecast

# A thread for each process: they share the cores, and whoever spins keeps another one waiting.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

test: .venv/dev.stamp
	$(PYTEST) -m "not wide and not deepspeed and not vllm"

test-wide: .venv/dev.stamp
	$(PYTEST) -m wide

# A compiler is needed, and libaio-dev for the tests of offloading to files.
test-deepspeed: .venv/dev.stamp resources/environments/deepspeed/stamp.json
	$(BIN)/python -m pytest -n 0 -m deepspeed

test-vllm: .venv/dev.stamp resources/environments/vllm/stamp.json
	CLAIMBENCH_VLLM_PYTHON=$(CURDIR)/resources/environments/vllm/bin/python $(BIN)/python -m pytest -n 0 -m vllm

resources/environments/deepspeed/stamp.json: envs/deepspeed.build.py
resources/environments/%/stamp.json: envs/%.lock .venv/core.stamp
	$(BIN)/python -m claimbench environment --lock $< --folder $(@D) --output $@

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/python -m claimbench schema --check --output studies/schema

format: .venv/dev.stamp
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/rules

lock: .venv/dev.stamp
	$(BIN)/python envs/lock.py

schema: .venv/core.stamp
	$(BIN)/python -m claimbench schema --output studies/schema

gpu-day-pack: .venv/core.stamp
	$(BIN)/python benchmarks/gpu_day.py pack

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache logs
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
