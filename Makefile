# Every target does its own set-up: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each test process needs a gigabyte. Stealing keeps the tests of a file together, with their fixtures.
PARALLEL := --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: help setup demo test test-all lint fix bench docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install reta with its development tools

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup  ## distil handwritten digits with three methods and write runs/demo/report.html
	$(BIN)/reta demo

test: setup  ## the fast tests, on all cores (about 7 minutes on two)
	$(BIN)/python -m pytest $(PARALLEL)

test-all: setup  ## all tests, slow ones included (most of an hour on two cores)
	$(BIN)/python -m pytest $(PARALLEL) -m ''

lint: setup  ## formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: setup  ## repair formatting and style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## measure every part against its plain version; fill in docs/performance.md
	$(BIN)/reta bench --suite cpu --json results/bench-cpu.json
	$(BIN)/python benchmarks/claims.py

docs: setup  ## regenerate the generated pages of docs/
	$(BIN)/python docs/paper_in_code.py

clean:  ## remove what the tools left behind (not runs/)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
