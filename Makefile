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
	@echo "== fetching MediaPipe's face model, so that redub works without a network from now on"
	@$(BIN)/python -c 'from stages import weights; print(weights.find(weights.LANDMARKER))' \
	  || echo "it is looked for again when it is needed"
	@touch $@

demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: export DVC_NO_ANALYTICS := 1
demo: $(READY)
	@echo "== 1/3 bringing the six CREMA-D clips of actor 1001"
	@if pipeline fetch --dataset crema-d; then echo crema-d made > $(VENV)/.demo; \
	  else echo "== no network: the demo goes on with the made corpus alone"; echo made > $(VENV)/.demo; fi
	@echo "== 2/3 dvc repro: raw clips -> clips, landmarks, align, mels -> shards"
	@dvc repro $$(sed 's/[^ ]*/shard@&/g' $(VENV)/.demo)
	@echo "== 3/3 checking the shards and drawing what is in them"
	@for name in $$(cat $(VENV)/.demo); do \
	  pipeline verify --full data/$$name/shards && \
	  pipeline preview data/$$name/shards -o data/$$name/sheet.png && \
	  pipeline preview data/$$name/shards --video any -o data/$$name/clip.mp4 || exit 1; \
	done
	@echo; echo "What was built, and where to look:"
	@for name in $$(cat $(VENV)/.demo); do \
	  echo "  data/$$name/shards/        plain WebDataset shards, index.parquet, dataset.json"; \
	  echo "  data/$$name/clips.parquet  what became of each file that was found"; \
	  echo "  data/$$name/sheet.png      every clip: crops, mask boxes, mels"; \
	  echo "  data/$$name/clip.mp4       one clip with its box, and the sound of its mels"; \
	done

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
