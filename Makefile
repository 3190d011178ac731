# `make demo` and `make test` are all a new machine needs: Python 3.11+ and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check figures docs wheel clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"deepfusion needs Python 3.11 or newer, but $(PYTHON) is {v.major}.{v.minor}: set PYTHON=/path/to/python3.11" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,parity,data,corpora,c4,tensorboard]'
	@touch $@

demo: $(VENV)/.installed ## Grow a T5 on real text and compare it at equal FLOPs (5 minutes and the install)
	$(BIN)/deepfusion demo

test: $(VENV)/.installed-dev lint types docs ## Lint, type-check, build the site and test everything (25 minutes on 2 cores)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

figures: $(VENV)/.installed ## Draw the figures from committed results into runs/figures (minutes)
	$(BIN)/deepfusion figures --all

docs: $(VENV)/.installed-docs ## Build the site into build/site (seconds; works offline, also opened as a file)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

wheel: $(VENV)/.installed-dev ## Build the wheel into dist/
	$(BIN)/python -m build

clean: ## Remove the environment and build outputs, keep runs/
	rm -rf $(VENV) build dist *.egg-info
