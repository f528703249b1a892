# On a fresh Debian or Ubuntu machine with git, make and Python >= 3.11 with venv, two commands do
# everything: `make demo` and `make test`. `make help` lists the others.

PYTHON ?= python3
export PYTHON

# Packages are installed without byte code, which Python writes at the first import. In an image
# that forbids this (many do), each process would compile some 5,000 files.
unexport PYTHONDONTWRITEBYTECODE

# The folder's name may contain spaces, so every path below is relative to it.
run := .venv/bin/python -m

# One more worker than cores: many tests wait for processes and deadlines.
workers := -n $(shell expr $$(nproc) + 1) --maxprocesses 4

# The tests of the fault matrix, as far as they stand in files of their own.
faults := $(addprefix tests/,chaos slurm ranks fastrot/runs/test_checkpoint.py fastrot/distributed/test_rank_monitor.py)

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

test: setup-test  ## set up with FFCV and DALI, check the sources, run the tests
	@$(MAKE) --no-print-directory check
	@$(run) pytest $(workers) --dist loadfile --no-loadscope-reorder

chaos: setup-test  ## test every fault in full, all other grids, and 10,000 generated datasets; print the fault table
	@rm -rf .chaos
	@$(run) pytest $(faults:%=--ignore=%) -m chaos $(workers) --dist worksteal; grids=$$?; \
	FASTROT_FAULT_LOG="$(CURDIR)/.chaos" $(run) pytest $(faults) -m "chaos or not chaos" $(workers) --dist worksteal; tests=$$?; \
	.venv/bin/python tests/chaos/fault_table.py .chaos --json chaos-report.json --markdown chaos-report.md && test $$grids$$tests = 00

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
