# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3.11
# Extra arguments for installing torch, for instance the index of a CUDA build.
TORCH ?= torch==2.13.0

BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test test-kernels lint types check bench bench-scale clients results clean

help: ## Print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(READY) ## Make .venv with everything, from pyproject.toml under constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY) ## Prune both bundled models by STUN + OWL, OWL and Wanda, 20 to 75 %, and print the tables
	$(BIN)/stun --multirun experiment=demo hydra/launcher=joblib

test: $(READY) ## Run the tests
	$(BIN)/pytest

test-kernels: $(READY) ## Run the tests that compute with the kernels of other processors, on one and two threads
	scripts/test_kernels.sh $(TESTS)

lint: $(READY) ## Check style, format and the arrows between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## Check types
	$(BIN)/mypy

check: lint types test ## All checks

bench: $(READY) ## Measure speed and memory into results/bench.json (NAMES="..." for some figures)
	$(BIN)/python -m scripts.benchmarks $(NAMES)

bench-scale: $(READY) ## Prune random checkpoints of real layer shapes, as the disk allows (CARDS="..." LAYERS="...")
	$(BIN)/python -m scripts.benchmarks.scale $(CARDS) $(if $(LAYERS),--layers $(LAYERS))

# Each program has versions of torch and transformers of its own, and thus an environment of its own.
CLIENTS := $(patsubst scripts/clients/%.txt,.clients/%/.ready,$(wildcard scripts/clients/*.txt))

clients: $(READY) $(CLIENTS) ## Run exported models in vLLM, mlx-lm and llm-compressor into results/clients.md (MODELS="...")
	$(BIN)/python -m scripts.clients $(MODELS)

.clients/%/.ready: scripts/clients/%.txt
	$(PYTHON) -m venv .clients/$*
	.clients/$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	scripts/clients/without_other_torch.sh .clients/$*
	touch $@

results: demo ## Run the demo and keep its table and figure in results/
	$(BIN)/python scripts/keep_results.py runs/demo results/demo

clean: ## Remove .venv and the runs
	rm -rf .venv .clients runs
