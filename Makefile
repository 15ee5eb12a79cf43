# make setup, then make demo. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo finetune test test-long lint format schema lock sbom clean

# Many containers forbid Python to write bytecode. Each command would then compile torch and all else anew: twice the time
# until it begins.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
INSTALL := $(PY) -m pip install -qq --disable-pip-version-check --no-compile
FOLDERS := trainer models kernels launch

# The first interpreter of a version that setup.py allows and that can make an environment. Override: PYTHON=...
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)

# Names what an environment was made from; the editable install holds the path of this folder.
STAMP := .venv/set-up-$(shell { pwd; cat constraints.lock setup.py; } | cksum | tr -s ' ' -)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make or complete .venv; does nothing when it is current
	@echo "ready: $(PY)"

# An interrupted run resumes: pip keeps what is complete. torch comes first and alone with its dependencies, which for a
# CUDA build are its own CUDA libraries; DeepSpeed reads it while building. The rest is the complete list of
# constraints.lock, installed as it stands: constraints.txt with a hash of each file that pip may take. With such hashes
# pip would prefer the index's CUDA build of torch to a CPU build elsewhere, so what it took is compared afterwards.
$(STAMP):
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or 3.12 with venv found: make setup PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 \
		|| { echo "new environment: .venv, $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; }
	@echo 'installing torch and build tools'
	@$(INSTALL) --report .venv/torch.json --constraint constraints.txt setuptools wheel ninja packaging torch torchvision
	@$(PY) .ci/lock.py --check .venv/torch.json
	@echo 'installing everything else; DeepSpeed is built from source, without its ops'
	@DS_BUILD_OPS=0 $(INSTALL) --no-build-isolation --no-deps --require-hashes --requirement constraints.lock
	@$(INSTALL) --no-build-isolation --no-deps --editable .
	@rm -f .venv/set-up-*
	@touch $@

demo: $(STAMP)  ## the whole way on synthetic scenes, from data to four-step sound; ARGS="..."
	@$(PY) launch/demo.py $(ARGS)

finetune: $(STAMP)  ## after the demo: its teacher learns a new sound by adapters, before and after; ARGS="..."
	@$(PY) launch/finetune.py $(ARGS)

# Workers share the tests: one more than there are cores, since many wait, and four at most. ARGS="-n 0" for one process,
# ARGS="PATH" for some tests.
WORKERS = -n $(shell $(PY) -c 'import os; print(1 + len(os.sched_getaffinity(0)))') --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

test: $(STAMP)  ## all tests but the long ones, ten minutes on two fast cores; ARGS="..."
	@$(PY) -m pytest -m 'not long' $(WORKERS) $(ARGS)

test-long: $(STAMP)  ## the long ones; ARGS="..."
	@$(PY) -m pytest -m long --timeout 3600 $(ARGS)

# mypy has to see the folders under the names that they import by, so it gets links; its messages name the folders.
lint: $(STAMP)  ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@mkdir -p .venv/types/audiox_trainer
	@for f in $(FOLDERS); do ln -sfn ../../../$$f .venv/types/audiox_trainer/$$f; done
	@$(PY) -m mypy $(FOLDERS:%=-p audiox_trainer.%) | sed 's,^\.venv/types/audiox_trainer/,,'

format: $(STAMP)  ## let ruff rewrite what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

schema: $(STAMP)  ## write configs/schema, by which editors check configurations
	@$(PY) launch/config_schema.py

lock: $(STAMP)  ## write constraints.lock and cuda.lock, after a change of constraints.txt
	@$(PY) -m venv .venv/lock
	@.venv/lock/bin/python -m pip install -qq --disable-pip-version-check uv
	@PATH=$(CURDIR)/.venv/lock/bin:$$PATH $(PY) .ci/lock.py

sbom: $(STAMP)  ## write sbom.json: the environment's packages, versions and licences as CycloneDX
	@$(PY) launch/sbom.py --out sbom.json

clean:  ## remove build products and caches; runs, data and .venv stay
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find $(FOLDERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
