# Each target works on a fresh machine with Python >= 3.11 and make alone: it goes through `make install`.
# uv is used where it is there (seconds), pip where not (minutes).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
GOLDENS ?= tests/goldens
METHOD ?= watermark_segmentation

.PHONY: help install quickstart test test-slow test-long lint docs format bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv with the package and its tools in it
	@echo "install: $(BIN)/sealmark is ready"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "install: $(PYTHON) is older than 3.11; name another one: make install PYTHON=python3.12"; exit 1; }
ifdef UV
	@echo "install: with uv, about 6 GB on disk"
	@test -x $(BIN)/python || uv venv --quiet --seed --python $(PYTHON) $(VENV)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
else
	@echo "install: with pip (uv would be faster: pip install uv), about 6 GB on disk"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
endif
	@touch $@

quickstart: install  ## train, test and predict on embedded data, ending with a picture and a table; or METHOD=sscd, masksim, syncseal, seal2real
	$(BIN)/python -m experiments.$(METHOD).quickstart

test: install  ## the fast suite on every core, with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not long and not gpu" --cov --cov-report=term:skip-covered --goldens $(GOLDENS)

test-slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow --goldens $(GOLDENS)

test-long: install  ## kills, fuzzing and soaks: hours
	$(BIN)/python -m pytest -m long --timeout 14400 --goldens $(GOLDENS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## check the pages: links, named files, commands, and the worked example
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow and not long and not gpu" tests/docs

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## the speed tables of experiments/benchmarks/README.md
	$(BIN)/python -m experiments.benchmarks

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
