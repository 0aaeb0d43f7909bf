# `make` alone prints this list. Every target makes .venv first if it is missing.
#   make PYTHON=python3.12 test      another interpreter (3.11 or newer)
#   make VENV=/tmp/venv test         another place for the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# The stamps say what is installed; a second run installs nothing unless these files changed.
CPU := $(VENV)/.installed-cpu
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check lint format docs plugins check-kernels check-races gpu-check build-full wheel-test clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(CPU) ## export the nano checkpoint, prove the export, stream text from it
	$(BIN)/python scripts/demo.py

test: $(DEV) ## run the tests that need neither a GPU nor much time
	$(BIN)/python -m pytest

test-all: $(DEV) ## run every test that needs no GPU, the slow ones and the peers too
	$(BIN)/python -m pytest -m "not gpu"

check: lint ## lint, formatting, types
	$(BIN)/python -m mypy

lint: $(DEV) ## lint and formatting only
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(DEV) ## rewrite the sources as the linter wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DEV) ## check the documents: links resolve, runnable blocks run
	$(BIN)/python -m pytest tests/test_docs.py

plugins: $(DEV) ## build the TensorRT plugin library for six GPU architectures; no GPU is needed
	$(BIN)/python scripts/make_plugin_table.py --check
	$(BIN)/python scripts/build_plugins.py

check-kernels: plugins ## run every kernel on the host against its reference, under sanitizers and planted faults
	$(BIN)/python scripts/check_kernels.py

check-races: plugins ## prove small launches of every kernel free of races, in every order of threads (half an hour)
	$(PIP_INSTALL) -r plugins/oracles.txt
	$(BIN)/python scripts/check_races.py

gpu-check: ## check the kernels on this machine's NVIDIA GPU; needs nvcc, PyTorch and pytest, nothing else
	$(PYTHON) scripts/gpu_check.py

build-full: $(DEV) ## build the plans of whole Flash and Pro ahead of time, from their configs; no GPU, no weights
	$(BIN)/python scripts/build_full.py

# PYTHONPATH would let the sources stand in for what the wheel lacks.
wheel-test: $(DEV) ## build the wheel, install it into an empty environment, run it from there
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt \
		"$$(echo build/wheel/*.whl)[cpu]"
	cd build/wheel && env -u PYTHONPATH venv/bin/python ../../scripts/check_wheel.py --out out

clean: ## remove what the targets above made, the environment excepted
	rm -rf build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(CPU): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[cpu]'
	touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[cpu,dev]'
	touch $(CPU) $@
