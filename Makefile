# Two commands do everything on a machine with Python >= 3.11, make and a package registry:
#   make quickstart   the environment, then the embedded run: a tiny model learns from preferences in minutes
#   make test         the environment, then lint, types, doctests and tests; no torch
# and a third, for those who change numbers:
#   make check        torch (CPU), TRL and transformers' models as live witnesses, the long tests, programs compiled for
#                     TPUs that are not there, the notebooks
# Another interpreter has an environment of its own: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# Test processes. Most of a test's time is compilation, which uses one core. On two idle cores `make test` may take 7
# minutes and `make check` 35; each ends with the files that took longest.
JOBS ?= 2

# What the caller's shell says about Python, JAX and XLA must not change what runs here.
unexport $(filter JAX_% XLA_% LIBTPU_% PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONWARNINGS PYTHONOPTIMIZE \
           VIRTUAL_ENV PYTEST_ADDOPTS,$(.VARIABLES))
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help env quickstart test lint types unit format check notebooks clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slpojax needs Python >= 3.11: make ... PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# torch before TRL: pip then keeps the build that `pip install torch` finds on this machine.
$(VENV)/.parity: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev,parity]'
	@touch $@

# The compiler for TPUs that JAX asks for, in a folder of its own: in the environment JAX would look for a TPU at every
# start. Where there is none for this machine, its tests are skipped.
LIBTPU = import importlib.metadata as m; print(next(r.split(";")[0] for r in m.requires("jax") if "libtpu" in r))
$(VENV)/tpu: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ "$$($(BIN)/python -c '$(LIBTPU)')" || mkdir -p $@
	@touch $@

quickstart: env
	$(BIN)/python -m slpojax.train --config=configs/quickstart.py

test: lint types unit

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet slpojax configs tests || \
		{ echo 'some files are not formatted: make format'; exit 1; }

types: env
	$(BIN)/mypy

unit: env
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal

format: env
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet slpojax configs tests

# Twice, as what is compiled in a hurry and what is compiled as a run compiles it takes processes of its own.
check: export TPU_LIBRARY_PATH = $(abspath $(VENV)/tpu)/libtpu/libtpu.so
check: $(VENV)/.parity $(VENV)/tpu
	$(BIN)/pytest -m "check and not optimised" --numprocesses $(JOBS) --dist worksteal
	$(BIN)/pytest -m "check and optimised" --numprocesses $(JOBS) --dist worksteal
	@$(MAKE) --no-print-directory notebooks

notebooks: env
	$(BIN)/pytest --nbmake --numprocesses $(JOBS) -o addopts= notebooks

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache output
