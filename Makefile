# Limner's errands. `make help` lists them; every one sets up what it needs by itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIMNER := $(BIN)/limner
# CPU or CUDA: TORCH_INDEX=https://... names another index for PyTorch's own wheels (README, "CUDA or CPU").
TORCH_INDEX ?=

# Two processes at a time, each a file of tests: fixtures of a module are made once.
TWO := --numprocesses 2 --dist loadfile

DATASET ?= flickr
EPOCHS ?= 3
SAMPLE ?=
MAX_LENGTH ?= 30
ENCODER ?=
DECODER ?=
TRAIN_FLAGS = --num-train-epochs $(EPOCHS) --max-length $(MAX_LENGTH) $(if $(SAMPLE),--sample $(SAMPLE)) \
	$(if $(ENCODER),--encoder-model $(ENCODER)) $(if $(DECODER),--decoder-model $(DECODER))

##@ Start here

demo: install ## Train a captioner from nothing on drawn scenes, and prove that it sees (4 to 6 minutes)
	@$(MAKE) --no-print-directory page || echo "The dashboard's page is not built; \`make page\` tries again."
	$(LIMNER) demo

test: install-dev page ## Lint, types and all tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest $(TWO)

##@ Set-up

check-python: ## Is there a Python that will do?
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
		sys.exit(0 if v >= (3, 11) else f"Limner needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Say PYTHON=...")'

install: $(VENV)/.installed ## A virtual environment with Limner in it
install-dev: $(VENV)/.installed-dev ## The same, with what the tests need

$(BIN)/python: | check-python
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python scripts/install_torch.py $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[serve,metrics]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[serve,metrics,onnx,quantize,video,dev]"
	@touch $@

page: src/limner/server/page/index.html ## Build the dashboard's page (Node from the machine, or from PyPI)

PAGE_SOURCES := $(shell find web -type f -not -path '*/node_modules/*' -not -path '*/dist/*' 2>/dev/null)
src/limner/server/page/index.html: $(PAGE_SOURCES) | $(VENV)/.installed
	$(BIN)/python scripts/build_page.py

status: install ## What this machine has, and what Limner makes of it
	$(LIMNER) doctor

shell: install ## A Python prompt with Limner imported
	$(BIN)/python -i -c 'import limner'

##@ Train

train: install ## Fine-tune on DATASET (EPOCHS, SAMPLE, MAX_LENGTH, ENCODER, DECODER)
	$(LIMNER) train --dataset $(DATASET) $(TRAIN_FLAGS)
train-quick: install ## 100 pictures, one epoch, the small validation set
	$(LIMNER) train --dataset validation --sample 100 --num-train-epochs 1 --max-length $(MAX_LENGTH)
train-modern: install ## SigLIP + SmolLM-135M
	$(LIMNER) train --dataset $(DATASET) --preset balanced $(TRAIN_FLAGS)
train-large: install ## SigLIP-so400m + SmolLM2-1.7B
	$(LIMNER) train --dataset $(DATASET) --preset large $(TRAIN_FLAGS)
train-premium: install ## SigLIP2-so400m + Qwen2.5-3B
	$(LIMNER) train --dataset $(DATASET) --preset premium $(TRAIN_FLAGS)
train-legacy: install ## ViT + DistilGPT2
	$(LIMNER) train --dataset $(DATASET) --preset legacy $(TRAIN_FLAGS)
train-flickr: install ## On Flickr30k with transformed captions
	$(LIMNER) train --dataset flickr $(TRAIN_FLAGS)
train-coco: install ## On COCO with GPT-4o captions
	$(LIMNER) train --dataset coco $(TRAIN_FLAGS)
train-multi: install ## On Flickr30k and COCO together
	$(LIMNER) train --dataset flickr coco $(TRAIN_FLAGS)
train-all: install ## On every data set of the catalogue
	$(LIMNER) train --dataset all $(TRAIN_FLAGS)
list-models: install ## The runs that are here, and their models
	$(LIMNER) runs list
quantize: ## (comes with the export verbs)
	@echo "limner quantize is not here yet; it comes with the export verbs." && exit 1
upload-hub: ## (comes with the export verbs)
	@echo "Uploading is not here yet; it comes with the export verbs." && exit 1

##@ Work on Limner

lint: install-dev ## Style, types, and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
format: install-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
test-quick: install-dev ## The tests without the slow ones
	$(BIN)/python -m pytest $(TWO) -m "not slow"
clean: ## Remove build products and caches, keep the environment, runs and data
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/limner/server/page web/dist
clean-all: clean ## Remove the environment and downloaded data too (never runs)
	rm -rf $(VENV) cache web/node_modules
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo test check-python install install-dev page status shell train train-quick train-modern train-large \
	train-premium train-legacy train-flickr train-coco train-multi train-all list-models quantize upload-hub \
	lint format test-quick clean clean-all help
