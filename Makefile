# `make reproduce` and `make test` are all a new machine needs; everything goes into .venv.

PYTHON ?= python3
# The build of torch: auto takes CUDA's where an NVIDIA driver is here; cpu and cuda say which.
DEVICE ?= auto
BIN := .venv/bin
INSTALL := $(BIN)/python -P src/claimbench/workflow/installing.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help reproduce forecast extras test test-slow test-long test-wide test-deepspeed test-vllm test-kernels mutants check format lock schema reports gpu-day-pack site clean

help:
	@echo "make reproduce   set up, run the default study, render reports/report.md"
	@echo "make forecast    what a run will take, before it runs"
	@echo "make test        set up, run the tests"
	@echo "make test-slow   a thousand simulated runs, every pair of techniques, whole experiments of DVC"
	@echo "make test-long   kill whole runs at random moments, install an environment anew (minutes)"
	@echo "make test-wide   what runs on every kind of model, and what a pass of it costs"
	@echo "make test-deepspeed  build DeepSpeed's environment (minutes), run the tests of its backends"
	@echo "make test-vllm   build vLLM's environment (minutes), run the tests of its backends"
	@echo "make test-kernels  interpret the GPU's kernels on this CPU and compile them, with the Triton that torch pins"
	@echo "make mutants MODULE=analysis/paired  break a sample of a module's lines, say which breaks no test notices (minutes)"
	@echo "make check       format, lint and types, as CI does"
	@echo "make format      mend what formatters can mend"
	@echo "make schema      write the JSON schemas of params.yaml and studies, for editors"
	@echo "make extras      install what docs/machines.md offers besides: S3 and ssh for DVC, SLURM, llama.cpp"
	@echo "make reports     render the kept reports anew from their raw results (maintainers)"
	@echo "make site        build the documentation as a website, into build/site; a dead link is an error"
	@echo "make lock        write envs/*.lock by uv (maintainers)"
	@echo "                 DEVICE=auto, cpu or cuda says which build of torch any of these installs"
	@echo "make gpu-day-pack  what benchmarks/gpu_day.py needs on a GPU's machine without a network"
	@echo "make clean       remove what can be made again; results and checkpoints stay"

# Another DEVICE than the one that is installed is installed again.
OTHER := $(if $(filter auto $(shell cat .venv/device 2>/dev/null),$(DEVICE)),,other-device)
.PHONY: other-device

# pip keeps its place in the message of the rule that failed, so nothing is hidden here.
.venv/core.stamp: envs/core.lock envs/cpu.lock envs/cuda.lock envs/kernels.lock pyproject.toml $(OTHER)
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 14) else "Claimbench needs Python 3.11 to 3.14, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(INSTALL) --device $(DEVICE) core
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev.stamp: envs/dev.lock .venv/core.stamp
	$(INSTALL) dev
	@touch $@

# What the other extras add: DVC's remotes on S3 and ssh, SLURM, llama.cpp, optimum-quanto.
.venv/extras.stamp: envs/extras.lock .venv/core.stamp
	$(INSTALL) extras
	@touch $@

extras: .venv/extras.stamp

reproduce: .venv/core.stamp
	@$(BIN)/snakemake --cores all
	@echo "The report is at reports/report.md, for a browser at reports/report.html"

forecast: .venv/core.stamp
	@$(BIN)/python -m claimbench forecast

# A thread for each process: they share the cores, and whoever spins keeps another one waiting.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

test: .venv/dev.stamp
	$(PYTEST) -m "not slow and not wide and not long and not deepspeed and not vllm"

test-slow: .venv/dev.stamp
	$(PYTEST) -m "slow and not wide and not long and not deepspeed and not vllm"

test-long: .venv/dev.stamp
	$(PYTEST) -n 1 -m long

test-wide: .venv/dev.stamp
	$(PYTEST) -m "wide and not long"

# A compiler is needed, and libaio-dev for the tests of offloading to files.
test-deepspeed: .venv/dev.stamp resources/environments/deepspeed/stamp.json resources/environments/deepspeed_injection/stamp.json
	$(BIN)/python -m pytest -n 0 -m deepspeed

test-vllm: .venv/dev.stamp resources/environments/vllm/stamp.json
	CLAIMBENCH_VLLM_PYTHON=$(CURDIR)/resources/environments/vllm/bin/python $(BIN)/python -m pytest -n 0 -m vllm

# PyTorch's CPU build comes without Triton: 190 MB, beside the environment and not in it.
resources/environments/kernels/stamp: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D)/site triton==3.6.0
	@touch $@

test-kernels: resources/environments/kernels/stamp
	TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR)/resources/environments/kernels/site:$$PYTHONPATH $(PYTEST) tests/gpu_kernels

# mutmut, and of what it needs those that the environment lacks: beside it and not in it.
MUTMUT := mutmut==3.8.1 coverage==7.17.5 libcst==1.9.0 setproctitle==1.3.8 textual==8.2.8
MUTMUT += linkify-it-py==2.2.0 mdit-py-plugins==0.7.0 uc-micro-py==2.0.0
resources/environments/mutation/stamp: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D)/site $(MUTMUT)
	@touch $@

MODULE ?= by-hand
SAMPLE ?= 30
SEED ?= 1
mutants: resources/environments/mutation/stamp
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/resources/environments/mutation/site:$$PYTHONPATH $(BIN)/python benchmarks/mutation.py $(MODULE) --sample $(SAMPLE) --seed $(SEED)

resources/environments/deepspeed/stamp.json: envs/deepspeed.build.py
resources/environments/deepspeed_injection/stamp.json: envs/deepspeed.build.py
resources/environments/%/stamp.json: envs/%.lock envs/cpu.lock envs/cuda.lock .venv/core.stamp
	$(BIN)/python -m claimbench environment --lock $< --folder $(@D) --output $@

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/python -m claimbench schema --check --output studies/schema

format: .venv/dev.stamp
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/Snakefile workflow/rules

lock: .venv/dev.stamp
	$(BIN)/python envs/lock.py $(if $(UPGRADE),--upgrade $(UPGRADE))

schema: .venv/core.stamp
	$(BIN)/python -m claimbench schema --output studies/schema

reports: .venv/core.stamp
	$(BIN)/python -m claimbench keep --folders $(patsubst %/results,%,$(wildcard reports/*/results))
	$(BIN)/python docs/gallery.py

site: .venv/dev.stamp
	@rm -rf build/site
	$(BIN)/python -m sphinx -n -E -W --keep-going -q -c docs/site -d build/doctrees . build/site
	@echo "The site is at build/site/index.html"

gpu-day-pack: .venv/core.stamp
	$(BIN)/python benchmarks/gpu_day.py pack

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache logs
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
