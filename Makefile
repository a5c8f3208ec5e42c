# Every target sets up what it needs; none needs another to have been run first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CHROMIUM := /usr/bin/chromium
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -n")
PYTEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo stack test lint format lock browser clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

demo: $(INSTALLED)  ## Run the whole program on a stack of its own, with a shop's history to replay
	$(BIN)/replay-app demo

stack: $(INSTALLED)  ## Start a broker and a store, print where they are, run until Ctrl-C
	@$(BIN)/python -m replay_app.demo.stack

test: lint browser  ## Lint, then run every test
	$(BIN)/pytest -n $(PYTEST_WORKERS)

lint: $(INSTALLED)  ## Check style, types and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# No index address may get into a lock: it would name a mirror that others cannot reach.
COMPILE := env -u PIP_FIND_LINKS $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe \
  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

# The second lock is what the image installs: the first one's versions without its extras.
lock: $(INSTALLED)  ## Resolve the dependencies again
	$(COMPILE) --upgrade --extra demo --extra dev --output-file requirements.lock pyproject.toml
	$(COMPILE) --build-deps-for wheel --constraint requirements.lock \
	  --output-file requirements-runtime.lock pyproject.toml

browser:
	@[ -x $(CHROMIUM) ] || ($(SUDO) apt-get update -q && $(SUDO) apt-get install -qy chromium) || \
	  { echo "The browser tests need $(CHROMIUM): apt-get install chromium, as root" >&2; exit 1; }

clean:  ## Remove everything that a target made
	rm -rf $(VENV) .stack .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
