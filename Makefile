# Everything happens in .venv, made on first use. PYTHON=python3.12 make ... picks another Python.
PYTHON ?= python3
# Test processes at once: each imports torch and transformers (about 1 GB of memory).
WORKERS ?= 2

RUN = .venv/bin/python -m
PIP = $(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED = .venv/.installed

.PHONY: help demo test check lint types
.NOTPARALLEL:

help:
	@echo "make demo    the whole life of an adapter, on a small model, offline"
	@echo "make test    every test"
	@echo "make check   lint, types and test: what CI runs"
	@echo "make lint    formatting and lint (ruff)"
	@echo "make types   type check (mypy, strict)"

demo: $(INSTALLED)
	@.venv/bin/hub demo

test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(RUN) pytest -q -n $(WORKERS)

check: lint types test

lint: $(INSTALLED)
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .

types: $(INSTALLED)
	@$(RUN) mypy

# torch comes first and alone, so that no other package's wishes pick another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "$(PYTHON) is not installed; Python 3.11 or newer is needed"; exit 1; } >&2
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$("$(PYTHON)" --version) is too old; Python 3.11 or newer is needed:" \
		"make PYTHON=python3.12 ..."; exit 1; } >&2
	@echo "installing into .venv (a few minutes the first time)" >&2
	@$(RUN) pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	@$(PIP) torch
	@$(PIP) -e ".[dev]"
	@touch $@
