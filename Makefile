# make demo       the whole pipeline on a bundled trained model
# make test       the test suite
# make test-clients   the C++ and JavaScript programs of standalone folders; fetches what they need
# make lint       formatting, types, import rules
# make slow       the long tests
# make test-gpu   the tests that need an NVIDIA GPU; fails where there is none
# make bench-gpu  the benchmark on an NVIDIA GPU, eight minutes at most; fails where there is none
# make clean      remove the virtual environment and the demo
#
# Everything runs in .venv, which is made when it is missing or when the requirements change.
# PYTHON=python3.12 chooses the interpreter, PIP_ARGS passes options to pip, WORKERS=1 runs tests in one process.

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ORACLES := $(VENV)/oracles
CLIENTS := $(VENV)/clients
# A process takes up to 1.5 GiB. Tests of one file share what they export, so they stay in one process.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-clients lint slow test-gpu bench-gpu clean

help:
	@sed -n '1,8s/^# //p' Makefile

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v[:2] else f"Python {v[0]}.{v[1]} is too old; set PYTHON to 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[cpu,openvino,rtx,audio,hub,triton,test,dev]'
	touch $@

# What tests compare with and cannot be installed beside our packages: each release in a folder of its own.
$(ORACLES)/.installed: tests/oracles.txt $(INSTALLED)
	for release in $$(grep -v '^#' $<); do \
	  test -d "$(ORACLES)/$$release" || \
	  $(BIN)/python -m pip install $(PIP_ARGS) --quiet --no-deps --target "$(ORACLES)/$$release" "$$release" || exit 1; \
	done
	touch $@

demo: $(INSTALLED)
	$(BIN)/flash-export demo --output demo

test: $(INSTALLED) $(ORACLES)/.installed
	$(PYTEST) -m 'not slow and not client'

# A missing compiler, Node or browser is a skip that says so.
test-clients: $(INSTALLED)
	PYTHON=$(BIN)/python sh tests/standalone/fetch_clients.sh $(CLIENTS)
	FLASH_EXPORT_CLIENTS=$(abspath $(CLIENTS)) $(PYTEST) -m client

slow: $(INSTALLED) $(ORACLES)/.installed
	$(PYTEST) -m slow

# Tests that are all skipped prove nothing, so that without a GPU none is begun. One process: they share the GPU.
test-gpu: $(INSTALLED)
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device, so nothing can be tested; run this where there is an NVIDIA GPU and a CUDA build of torch")'
	$(BIN)/python -m pytest --numprocesses 0 -m gpu

bench-gpu: $(INSTALLED)
	PYTHONPATH=benchmarks $(BIN)/python -m gpu

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo
