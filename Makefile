# On a fresh machine: Python 3.11 or newer and make are enough; everything else goes into .venv.
#   make demo          draw a data set, train Faster R-CNN on it, test it, show what it finds
#   make test          run the tests, but for those that take more than ten seconds each
#   make test-slow     run these: notebooks, processes that are killed, devices
#   make test-deep     fuzzing, kills, a full disk and a memory soak, for MINUTES=30, from SEED=0
#   make test-lowest   run the tests on the lowest versions that pyproject.toml allows, in .venv-lowest
#   make test-newest   run the tests on the newest versions, in .venv-newest
#   make lint          check the style and the types
#   make coverage      run the tests and print which lines they miss
#   make docs          build the site into build/site, and open each of its pages in a browser
#   make clean         remove .venv and those two, caches, the site and runs of the demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := -n 2 --dist loadfile
MINUTES ?= 30
SEED ?= 0

.PHONY: demo test test-slow test-deep test-lowest test-newest lint coverage docs clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#  *make/make/p' Makefile

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "detkit needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu install python3-venv."; exit 1; }
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv
	@echo "Installing into $(VENV) (PyTorch is some gigabytes: a few minutes the first time)"
	@UV=$$(command -v uv || echo $(BIN)/uv); \
	  $$UV pip install -q --python $(BIN)/python --compile-bytecode -r requirements.lock && \
	  $$UV pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e . && \
	  $(BIN)/python -m compileall -q detkit
	@touch $@

demo: $(READY)
	@$(BIN)/detkit demo

test: $(READY)
	@$(BIN)/python -m pytest $(PYTEST) -m "not slow"

test-slow: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-lowest test-newest: test-%: $(READY)
	@echo "Installing into .venv-$* (a few minutes)"
	@$(PYTHON) -m venv --clear --without-pip .venv-$*
	@UV=$$(command -v uv || echo $(BIN)/uv); \
	  $$UV pip install -q --python .venv-$*/bin/python --compile-bytecode --resolution $(RESOLUTION) -e '.[dev]'
	@.venv-$*/bin/python -m pytest $(PYTEST)

test-deep: $(READY)
	@$(BIN)/python -m tests.deep --minutes $(MINUTES) --seed $(SEED)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

coverage: $(READY)
	@UV=$$(command -v uv || echo $(BIN)/uv); $$UV pip install -q --python $(BIN)/python 'pytest-cov>=6'
	@$(BIN)/python -m pytest $(PYTEST) --cov detkit --cov-report term-missing:skip-covered

docs: $(READY)
	@UV=$$(command -v uv || echo $(BIN)/uv); $$UV pip install -q --python $(BIN)/python -r docs/requirements.lock
	@$(BIN)/python -m docs.generate.notebooks
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@$(BIN)/python -m docs.generate.check build/site

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis runs/demo
	find detkit tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
