# Two commands do all the set-up: `make demo` and `make test`. They need Python 3.10-3.13 and pip, no root.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.redub-installed

.PHONY: help demo test lint types unit clean

help:
	@echo "make demo   install, bring real clips, build shards from them, show where to look"
	@echo "make test   install, lint, check types, run the tests"
	@echo "make clean  remove what the demo built (data/) and the tools' caches; keeps $(VENV)"

$(READY): pyproject.toml constraints.txt
	@echo "== creating $(VENV) with $$($(PYTHON) --version) and installing redub (minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "redub needs Python 3.10-3.13; set PYTHON=python3.11, say"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[dvc,dev]'
	@touch $@

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/demo.sh

test: lint types unit

lint: $(READY)
	@echo "== ruff: lint and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@echo "== mypy: types"
	@$(BIN)/mypy

unit: $(READY)
	@echo "== pytest: the tests (minutes; those that need real clips or a model skip with a reason)"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf data .mypy_cache .ruff_cache .pytest_cache .hypothesis
