# On a fresh Debian or Ubuntu machine with git, make and Python >= 3.11 with venv, two commands do
# everything: `make demo` and `make test`. `make help` lists the others.

PYTHON ?= python3
export PYTHON

# Packages are installed without byte code, which Python writes at the first import. In an image
# that forbids this (many do), each process would compile some 5,000 files.
unexport PYTHONDONTWRITEBYTECODE

# The folder's name may contain spaces, so every path below is relative to it.
run := .venv/bin/python -m

# Files with grids and installations that take too long for `make test`.
grids := $(addprefix tests/,fastrot/data/test_generated_sets.py fastrot/evaluation/test_measurements.py fastrot/training/test_memory.py kernels/test_compiled.py test_build.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos setup-test check lint types imports gpu clean

help:  ## list all targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo "  To use another interpreter: make PYTHON=python3.12 demo. FASTROT_APT=0: install no system packages."

setup:  ## create .venv with torch, fastrot and its compiled kernels
	@bash .ci/setup core

demo: setup  ## set up, pretrain on the embedded digits (minutes on two cores)
	@$(run) fastrot train -c digits --out runs/demo --resume

setup-test: setup
	@bash .ci/setup test

test: setup-test  ## set up with FFCV and DALI, check the sources, run all tests
	@$(MAKE) --no-print-directory check
	@$(run) pytest -n auto --maxprocesses 4 --dist loadfile

chaos: setup-test  ## test every row of the fault matrix and 10,000 generated data sets; print the fault table
	@rm -rf .chaos
	@FASTROT_FAULT_LOG="$(CURDIR)/.chaos" $(run) pytest tests/chaos tests/slurm tests/ranks tests/fastrot/runs/test_checkpoint.py tests/fastrot/distributed/test_rank_monitor.py $(grids) -m "chaos or not chaos" -n auto --maxprocesses 4 --dist worksteal; tests=$$?; \
	.venv/bin/python tests/chaos/fault_table.py .chaos --json chaos-report.json --markdown chaos-report.md && exit $$tests

check: lint types imports  ## check style, types and import layers

lint:
	@$(run) ruff check .
	@$(run) ruff format --check .

types:
	@$(run) mypy

imports:
	@.venv/bin/python -c 'from importlinter.cli import lint_imports_command as run; run()' --no-logo

gpu: setup-test  ## run all GPU tests and benchmarks, record the results; .ci/gpu documents DATA= and more
	@DATA="$(DATA)" REPEAT="$(REPEAT)" TRAIN="$(TRAIN)" TEST="$(TEST)" APEX="$(APEX)" bash .ci/gpu

clean:  ## remove .venv and the files of builds and tests (runs/ stays)
	rm -rf .venv .chaos chaos-report.* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .test-data
	rm -f kernels/_native*.so kernels/_native_error.txt
	find fastrot kernels benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
