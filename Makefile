# Builds .venv/ in this checkout and runs everything from there.  Outside .venv/ only the cache
# folder is written: KVFLOW_CACHE_DIR, by default ~/.cache/kvflow.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install install-dev demo bench doctor check test test-versions soak tables format clean
MAKEFLAGS += --no-print-directory

# PYTHON: the interpreter to build .venv with.  DEVICE: cpu or cuda; by default what .venv was
# built for, and cpu for a new one.  ARGS: passed on to `kvflow demo` or to pytest.
PYTHON ?=
DEVICE ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
TOOL_CACHE := $(CURDIR)/$(VENV)/cache

# Nothing of what the tools keep may land in the checkout or in the home directory.
export PYTHONDONTWRITEBYTECODE := 1
export MYPY_CACHE_DIR := $(TOOL_CACHE)/mypy
export RUFF_CACHE_DIR := $(TOOL_CACHE)/ruff
export HYPOTHESIS_STORAGE_DIRECTORY := $(TOOL_CACHE)/hypothesis

define find_python
for candidate in $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11); do \
  if command -v $$candidate >/dev/null && $$candidate -c \
    'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
  then python=$$candidate; break; fi; \
done; \
if [ -z "$${python:-}" ]; then \
  echo "make: no Python 3.11, 3.12 or 3.13 found$(if $(PYTHON), as $(PYTHON)); install one (Debian, Ubuntu:" >&2; \
  echo "      sudo apt install python3 python3-venv) or name it: make ... PYTHON=/path/to/python3.12" >&2; \
  exit 1; \
fi
endef

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Build .venv with SGLang, the model and KVFlow
	@$(find_python); $$python requirements/install.py --device "$(DEVICE)"

install-dev: ## The same with the test tools
	@$(find_python); $$python requirements/install.py --device "$(DEVICE)" --dev

demo: install ## Compare KVFlow with stock SGLang on this machine
	@$(BIN)/kvflow demo $(ARGS)

bench: install ## Compare all kinds of cache on this machine (ARGS="ring --html ring.html")
	@$(BIN)/kvflow bench $(if $(ARGS),$(ARGS),--list)

doctor: install ## Check this machine
	@$(BIN)/kvflow doctor $(ARGS)

check: install-dev ## Formatting, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir $(TOOL_CACHE)/import-linter

test: check ## Check, then run all tests, those with real engines too
	@$(BIN)/pytest -o cache_dir=$(TOOL_CACHE)/pytest --basetemp=$(TOOL_CACHE)/tmp $(ARGS)

test-versions: ## Try the plugin in every SGLang it supports (takes ten minutes, 2 GB more)
	@$(find_python); $$python requirements/install.py --device "$(DEVICE)" --dev --all-versions
	@KVFLOW_TEST_SGLANG_VERSIONS=all $(BIN)/pytest -o cache_dir=$(TOOL_CACHE)/pytest --basetemp=$(TOOL_CACHE)/tmp tests/sglang_plugin/test_sglang_versions.py

soak: install-dev ## The fault tests in full and half an hour of load (takes more than an hour)
	@KVFLOW_SOAK=1 $(BIN)/pytest -o cache_dir=$(TOOL_CACHE)/pytest --basetemp=$(TOOL_CACHE)/tmp --timeout 7200 tests/server/durability tests/server/test_workflow_machine.py tests/server/test_openapi_fuzz.py $(ARGS)
	@$(BIN)/python -m benchmarks.service.soak

tables: install-dev ## Make the tables in the docs anew from benchmarks/results/
	@$(BIN)/python -m benchmarks.tables

format: install-dev ## Put formatting and what lint can mend right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv (the cache stays)
	@rm -rf $(VENV)
