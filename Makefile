# Each target works on a fresh machine with Python >= 3.11 and make alone: it goes through `make install`.
# uv is used where it is there (seconds), pip where not (minutes).
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
GOLDENS ?= tests/goldens
METHOD ?= watermark_segmentation
# Other versions than the tested ones, with uv: make install CONSTRAINTS= (newest), and RESOLUTION=lowest-direct (oldest).
CONSTRAINTS ?= constraints.txt
RESOLUTION ?= highest
# They have an environment of their own: an installed version that will do is never replaced by an older one.
VENV := .venv$(if $(CONSTRAINTS),,-$(RESOLUTION))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart test coverage test-slow test-long lint docs audit hashes format bench clean

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
	VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet --resolution $(RESOLUTION) $(CONSTRAINTS:%=--constraint %) --editable '.[dev]'
else
	@test "$(RESOLUTION)" = highest || { echo "install: RESOLUTION=$(RESOLUTION) needs uv: pip install uv"; exit 1; }
	@echo "install: with pip (uv would be faster: pip install uv), about 6 GB on disk"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) --editable '.[dev]'
endif
	@touch $@

quickstart: install  ## train, test and predict on embedded data, ending with a picture and a table; or METHOD=sscd, masksim, syncseal, seal2real
	$(BIN)/python -m experiments.$(METHOD).quickstart

FAST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not long and not gpu" --goldens $(GOLDENS)

test: install  ## the fast suite on every core
	$(FAST)

coverage: install  ## the fast suite with the lines that it leaves out; takes half as long again
	$(FAST) --cov --cov-report=term:skip-covered

test-slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow --goldens $(GOLDENS)

test-long: install  ## kills, fuzzing and soaks: hours; a part of them: LONG=kills, hostile or soak
	$(BIN)/python -m pytest -m long -k "$(LONG)" --timeout 14400 --goldens $(GOLDENS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## check the pages: links, named files, commands, and the worked example
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow and not long and not gpu" tests/docs

audit: install  ## licences of all dependencies, and known weaknesses where the service can be reached; or fail: AUDIT=--strict
	@$(BIN)/python -c 'import pip_audit' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) pip-audit || true
	$(BIN)/python -m experiments.audit $(AUDIT)

hashes:  ## requirements.hashes.txt: the tested versions with their hashes, for pip install --require-hashes (needs uv)
	uv pip compile pyproject.toml --constraint constraints.txt --generate-hashes --no-emit-index-url --no-annotate --quiet -o requirements.hashes.txt

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## the speed tables of experiments/benchmarks/README.md
	$(BIN)/python -m experiments.benchmarks

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache
