# One command each; everything that is needed is set up by the first one that needs it.
#
#   make run       the store "demo" in the foreground (NAME=..., ARGS="--memory 1GiB ...")
#   make test      the quick tier: lint, native tests, system tests (TESTS=tests/wal for a part)
#   make tour      a finite demonstration on real input
#   make bench | chaos | fuzz      (ARGS=...)
#   make powercut  power cuts of a real file system under a running store; needs root (ARGS="--cycles 200")
#   make lint | native | models | build | clean
#
# PYTHON=... chooses the interpreter, CC=... the compiler. Only setting up .venv needs the network (pip).

NAME ?= demo
ARGS ?=
TESTS ?= tests
# Test files beside each other: most of them wait for processes and disks.
JOBS ?= 2
CC ?= cc
export CC

# The first interpreter that is new enough; check-machine.sh says so when there is none.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done || echo python3)
VENV := .venv
PY := $(VENV)/bin/python
CORE := $(wildcard shmkv/segment/core/*.c shmkv/segment/core/*.h)

.PHONY: run test tour lint bench chaos fuzz powercut models native build venv clean
.DELETE_ON_ERROR:

run: build
	@$(PY) -m shmkv.supervisor $(NAME) $(ARGS)

# The native tests are among them: tests/segment/test_native.py builds and runs each program.
test: lint
	$(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(TESTS)

lint: build
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m mypy.stubtest shmkv.segment._core

native: $(VENV)/made
	$(MAKE) -C tests/native all-quick SECONDS_EACH=$(or $(SECONDS_EACH),1)

tour bench chaos fuzz powercut: build
	@$(PY) tools/$@.py $(ARGS)

models:
	@command -v spin >/dev/null || { echo "missing: spin; remedy on Debian and Ubuntu: apt-get install spin" >&2; exit 1; }
	./models/run.sh $(ARGS)

build: $(VENV)/built
venv: $(VENV)/made

# Stamps. `made`: the environment has what pyproject.toml asks for. `built`: the extension is the one of these sources.
# (editable_mode=compat: the default one costs every interpreter 20 ms at its start.)
$(VENV)/made: pyproject.toml tools/check-machine.sh
	@./tools/check-machine.sh $(PYTHON)
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV): packages, and the extension"
	@$(PY) -m pip install --quiet --disable-pip-version-check "setuptools>=65" wheel
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		--config-settings editable_mode=compat --editable ".[dev]"
	@touch $@

$(VENV)/built: setup.py $(CORE) | $(VENV)/made
	@so=$$(ls shmkv/segment/_core*.so 2>/dev/null); \
	if [ -z "$$so" ] || [ -n "$$(find setup.py $(CORE) -newer "$$so")" ]; then \
		echo "building the extension" && $(PY) -W ignore setup.py --quiet build_ext --inplace; \
	fi
	@touch $@

clean:
	rm -rf build $(VENV) shmkv/segment/*.so *.egg-info
