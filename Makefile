# Two commands do everything on a fresh Debian or Ubuntu machine with git, make and
# Python >= 3.11 with venv: `make demo` and `make test`. `make help` lists the others.

PYTHON ?= python3
export PYTHON

# The packages are installed without byte code, which Python writes at the first import. An image
# that forbids it (many do) would compile some 5,000 files in each process.
unexport PYTHONDONTWRITEBYTECODE

# The folder may have spaces in its name, so every path below is relative to it.
run := .venv/bin/python -m

# Grids that are too long for `make test` and are no rows of the fault table.
generated := $(addprefix tests/fastrot/,data/test_generated_sets.py evaluation/test_measurements.py training/test_memory.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos setup-test check lint types imports gpu clean

help:  ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo "  Another interpreter: make PYTHON=python3.12 demo; system packages: FASTROT_APT=0 leaves them alone."

setup:  ## make .venv with torch, fastrot and its compiled kernels
	@bash .ci/setup core

demo: setup  ## set up, pretrain on the embedded digits (minutes on two cores), report
	@$(run) fastrot train -c digits --out runs/demo --resume

setup-test: setup
	@bash .ci/setup test

test: setup-test  ## set up with FFCV and DALI, check the sources, run all tests
	@$(MAKE) --no-print-directory check
	@$(run) pytest -n auto --maxprocesses 4 --dist loadfile

chaos: setup-test  ## every row of the fault matrix, and 10,000 generated data sets; prints the fault table
	@rm -rf .chaos
	@FASTROT_FAULT_LOG="$(CURDIR)/.chaos" $(run) pytest tests/chaos tests/slurm tests/ranks tests/fastrot/runs/test_checkpoint.py tests/fastrot/distributed/test_rank_monitor.py $(generated) -m "chaos or not chaos" -n auto --maxprocesses 4 --dist worksteal; tests=$$?; \
	.venv/bin/python tests/chaos/fault_table.py .chaos --json chaos-report.json --markdown chaos-report.md && exit $$tests

check: lint types imports  ## style, types, import layers

lint:
	@$(run) ruff check .
	@$(run) ruff format --check .

types:
	@$(run) mypy

imports:
	@.venv/bin/python -c 'from importlinter.cli import lint_imports_command as run; run()' --no-logo

gpu: setup-test  ## all GPU tests and benchmarks on this machine, with their records; .ci/gpu tells of DATA= and more
	@DATA="$(DATA)" REPEAT="$(REPEAT)" TRAIN="$(TRAIN)" TEST="$(TEST)" APEX="$(APEX)" bash .ci/gpu

clean:  ## remove .venv and what builds and tests left (runs/ stays)
	rm -rf .venv .chaos chaos-report.* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .test-data
	rm -f kernels/_native*.so kernels/_native_error.txt
	find fastrot kernels benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
