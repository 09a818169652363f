# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
TRANSFORMERS_OLDEST := 5.16.0
TORCH := torch==2.13.0
DEMO ?= demo

.PHONY: help setup models demo test test-slow test-oldest test-mutants check bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/.ready ## a virtual environment with everything in it

# torch first and pinned: an open range would fetch gigabytes of GPU libraries on machines without one.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

models: setup ## fetch the real models that the tests use
	$(BIN)/epigraph models fetch smollm2-135m

demo: models ## teach SmolLM2-135M the cards: before, after, and a page
	$(BIN)/epigraph train recipes/cards.toml --out $(DEMO) --overwrite
	$(BIN)/epigraph evaluate $(DEMO) --untouched
	$(BIN)/epigraph evaluate $(DEMO)
	$(BIN)/epigraph report $(DEMO)

test: models ## the tests, in minutes
	$(BIN)/pytest -m "not slow"

test-slow: models ## the tests that take minutes each
	$(BIN)/epigraph models fetch gemma-3-270m
	$(BIN)/epigraph models fetch minilm
	$(BIN)/pytest -m slow

$(OLDEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet $(TORCH)
	$(OLDEST)/bin/pip install --quiet transformers==$(TRANSFORMERS_OLDEST) --editable '.[dev]'
	touch $@

test-oldest: $(OLDEST)/.ready ## the seam and the loop on the oldest transformers we support
	$(OLDEST)/bin/pytest tests/test_attention.py tests/test_prefix_tuning.py tests/test_train.py tests/test_inputs.py

test-mutants: setup ## break the seam on purpose and see that a test fails, each time
	$(BIN)/python tests/mutants.py

check: setup ## format, lint, types, direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: models ## the table of docs/results.md, as JSON (about an hour on two cores)
	$(BIN)/python benchmarks/e2e.py --json benchmarks/results/e2e.json

clean: ## forget environments and outputs
	rm -rf $(VENV) $(OLDEST) $(DEMO) build
