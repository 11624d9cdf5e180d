# Every target makes the environment first where it isn't there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file at a time, in the order that tests/conftest.py gives. More processes than cores, of up to
# 2 GB each: many tests wait for processes that they have started, or have killed.
PROCESSES := $(shell expr 1 + `nproc`)
PARALLEL := -n $(PROCESSES) --maxprocesses 5 --dist loadfile --no-loadscope-reorder
# Few and long: a test at a time, and one process more, because these wait the most.
PARALLEL_CLUSTER := -n $(shell expr 2 + `nproc`) --maxprocesses 5 --dist load --maxschedchunk 1

.PHONY: help demo test coverage test-cluster check bench docs photos results study clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(READY) ## the whole job on drawings, into demo/
	$(BIN)/infineg demo --out demo

photos: $(READY) ## the whole job on your photographs: make photos PHOTOS=/path
	@test -n "$(PHOTOS)" || { echo 'make photos PHOTOS=/path (with cats/, near/ and random/)'; exit 2; }
	PHOTOS="$(PHOTOS)" $(BIN)/infineg build configs/photos.yaml
	PHOTOS="$(PHOTOS)" $(BIN)/infineg train configs/photos.yaml --resume

results: photos ## the same, and the tables of README and docs/results.md, into study/
	PYTHONPATH=tests/bench $(BIN)/python -m study.results "$(PHOTOS)" --run runs/photos --out study

study: $(READY) ## which negatives are worth it, measured, into study/: make study PHOTOS=/path
	@test -n "$(PHOTOS)" || { echo 'make study PHOTOS=/path (with cats/, near/KIND/, random/KIND/, imagenet_sample/WNID/)'; exit 2; }
	PYTHONPATH=tests/bench $(BIN)/python -m study "$(PHOTOS)" --out study

test: $(READY) ## the tests that need no cluster, GPU, network or minutes
	$(BIN)/python -m pytest $(PARALLEL)

coverage: $(READY) ## the same, and the lines that no test reaches
	$(BIN)/python -m pytest $(PARALLEL) --cov=infineg --cov=pipeline --cov=train --cov-report=term:skip-covered

test-cluster: $(READY) ## several Ray nodes, actors, trainers, which are killed; minutes
	$(BIN)/python -m pytest $(PARALLEL_CLUSTER) -m cluster

check: $(READY) ## format, lint, types, imports, dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry infineg pipeline train

bench: $(READY) ## full-length measurements, minutes each
	$(BIN)/python -m pytest -m slow --timeout 3600 -s

docs: $(VENV)/.docs ## the pages of docs/ as a site, into site/
	$(BIN)/python docs/make_reference.py
	$(BIN)/zensical build --clean --strict

clean: ## removes the environment and what the demo made
	rm -rf $(VENV) demo site .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	touch $@
