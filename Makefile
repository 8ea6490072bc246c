# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test check compiled sim bench fuzz mutants hil hil-smoke packages clean

setup: $(STAMP)

# As root, Debian's packages that are missing are installed; otherwise they are named.
packages:
	@bash tools/rig/packages.sh

$(STAMP): pyproject.toml setup.py $(wildcard hal/native_*build.py hal/native_*source.py) | packages
	test -x $(BIN)/python || $$(command -v $(PYTHON) || echo python3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,plot]'
	$(BIN)/python -m compileall -q protocol hal firmware tools
	touch $@

demo: $(STAMP)
	$(BIN)/apf demo --board local

# The fast rings on all cores, then those that start processes, one after the other.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto -m 'not process'
	$(BIN)/python -m pytest -q -m process

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_house.py tests/unit/test_promises.py tests/unit/test_mutants.py

# The hot modules as machine code, beside copies of all others (setup.py): PYTHONPATH=build/compiled.
COMPILED := build/compiled
SOURCES := $(shell find firmware hal protocol tools board_configs -name '*.py' -o -name '*.toml')
compiled: $(COMPILED)/.ready

$(COMPILED)/.ready: $(SOURCES) setup.py pyproject.toml | $(STAMP)
	rm -rf $(COMPILED)
	APF_COMPILED=1 $(BIN)/python -W ignore setup.py -q build --build-lib $(COMPILED)
	touch $@

# Whole cards in virtual time, all faults on: a quarter of an hour of each seed.
SEEDS ?= 1-500
sim: compiled
	PYTHONPATH=$(COMPILED) $(BIN)/apf sim --seeds $(SEEDS)

# numpy is what two of them compare with; without it they say so.
bench: $(STAMP)
	$(BIN)/python -c 'import numpy' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' || true
	$(BIN)/apf bench

# Each target for SECONDS; TARGET=name for one of them. Ends 1 on a crash, and keeps its input.
# The engine is installed where there is a wheel of it; without, inputs are made by chance.
SECONDS ?= 10
fuzz: $(STAMP)
	$(BIN)/python -c 'import atheris' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -e '.[fuzz]' || true
	$(BIN)/python -m tests.fuzz run --seconds $(SECONDS) $(TARGET)

# Bugs on purpose, each in a copy of the tree: the simulator must find every one, and nothing without.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants $(NAMES)

# Stock kernels with stock drivers in virtual machines; CASE=name for one of the cases. As root what
# machines need is installed. The report is also written to build/hil.json.
hil: $(STAMP)
	@bash tools/rig/qemu_packages.sh
	@mkdir -p build
	$(BIN)/python -m tests.hil run $(addprefix --case ,$(CASE)) --json build/hil.json

hil-smoke: $(STAMP)
	@bash tools/rig/qemu_packages.sh
	@mkdir -p build
	$(BIN)/python -m tests.hil run --smoke --json build/hil-smoke.json

clean:
	rm -rf $(VENV) build *.egg-info
