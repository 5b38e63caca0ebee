# Every target that runs something installs what it needs first; the second call is instant.
VENV   ?= .venv
PYTHON ?=
PYTEST_ARGS ?=

BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip
RUN  := $(VENV)/.installed
DEV  := $(VENV)/.installed-dev
SUPPORTED := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))

.DEFAULT_GOAL := help
.PHONY: help install demo test paths faults lint bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' \
	  | awk -F '\t' '{ printf "  make %-9s %s\n", $$1, $$2 }'

install: $(RUN)  ## create .venv and install ndcao with the exact versions of constraints.txt

demo: $(RUN)  ## digits: ND-CAO (sync, async) against SGD on a local cluster -> table, report.html
	$(BIN)/ndcao demo

test: $(DEV)  ## run every test but those that need a GPU (PYTEST_ARGS="-k name" narrows)
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

paths: $(DEV)  ## run the numerical tests under several code paths of this processor
	$(BIN)/python tests/code_paths.py

faults: $(DEV)  ## damage every store, kill every writer, fuzz every parser; print the counts
	$(BIN)/python -m tests.faults

lint: $(DEV)  ## ruff (rules and format), mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

bench: $(DEV)  ## run every benchmark; each ends with its JSON lines
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	@set -e; for script in benchmarks/[a-z]*.py; do \
	  echo "== $$script"; \
	  case "$$script" in */gpu.py) \
	    command -v nvidia-smi > /dev/null || { echo "no GPU: left out"; continue; };; \
	  esac; \
	  $(BIN)/python "$$script"; done

clean:  ## remove .venv, caches and build files; data/ and results/ stay
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis dask-scratch-space
	find blocks pipeline flows tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# pip is the last thing that venv writes, so its presence means a whole environment.
$(BIN)/pip:
	@for python in $(PYTHON) python3.11 python3.12 python3; do \
	  if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	    echo "creating $(VENV) with $$python"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "Python must be 3.11 or 3.12 with its venv module; found none." \
	  "Install it (Debian: apt-get install python3-venv), or name it:" \
	  "make install PYTHON=/path/to/python3.11" >&2; \
	exit 1

$(RUN): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install --quiet -c constraints.txt -e '.[dev,jobqueue,kubernetes]'
	@touch $(RUN) $@
