# Two commands do all the set-up: `make demo` and `make test`. They need Python 3.10-3.13 and pip, no root.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.redub-installed

.PHONY: help demo test lint types unit clean

help:
	@echo "make demo   install, bring real clips, build shards, train a small network, edit a clip, report"
	@echo "make test   install, lint, check types, run the tests"
	@echo "make clean  remove what the demo built (data/, runs/, samples/, evaluation/) and the tools' caches; keeps $(VENV)"

$(READY): pyproject.toml constraints.txt
	@echo "== creating $(VENV) with $$($(PYTHON) --version) and installing redub (minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "redub needs Python 3.10-3.13; set PYTHON=python3.11, say"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[app,dvc,s3,dev]'
	@echo "== fetching MediaPipe's face model, so that redub works without a network from now on"
	@$(BIN)/python -c 'from stages import weights; print(weights.find(weights.LANDMARKER))' \
	  || echo "it is looked for again when it is needed"
	@touch $@

demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: export DVC_NO_ANALYTICS := 1
demo: $(READY)
	@echo "== 1/6 bringing the six CREMA-D clips of actor 1001"
	@if pipeline fetch --dataset crema-d --only '1001_DFA_*'; then echo "crema-d demo" > $(VENV)/.demo; \
	  else echo "== no network: the demo goes on with the made corpus"; echo "made demo-made" > $(VENV)/.demo; fi
	@echo "== 2/6 dvc repro: raw clips -> clips, landmarks, align, mels -> shards"
	@read name run < $(VENV)/.demo && dvc repro shard@$$name
	@echo "== 3/6 checking the shards and drawing what is in them"
	@read name run < $(VENV)/.demo && \
	  pipeline verify --full data/$$name/shards && \
	  pipeline preview data/$$name/shards -o data/$$name/sheet.png && \
	  pipeline preview data/$$name/shards --video any -o data/$$name/clip.mp4
	@echo "== 4/6 dvc repro: training a small network (minutes)"
	@read name run < $(VENV)/.demo && dvc repro train@$$run
	@echo "== 5/6 editing the first clip with the speech of the last"
	@read name run < $(VENV)/.demo && \
	  clips=$$(find data/$$name/raw -name '*.flv' -o -name '*.mp4' | sort) && \
	  pipeline edit --video $$(echo "$$clips" | head -n 1) --audio $$(echo "$$clips" | tail -n 1) \
	    --run runs/$$run --steps 10 -o data/$$name/edited.mp4 --preview data/$$name/side-by-side.mp4
	@echo "== 6/6 dvc repro: drawing clips anew, scoring them, one page that shows it all"
	@read name run < $(VENV)/.demo && dvc repro report@$$run
	@echo; echo "What was built, and where to look:"
	@read name run < $(VENV)/.demo && \
	  echo "  data/$$name/shards/           plain WebDataset shards, index.parquet, dataset.json" && \
	  echo "  data/$$name/clips.parquet     what became of each file that was found" && \
	  echo "  data/$$name/sheet.png         every clip: crops, mask boxes, mels" && \
	  echo "  data/$$name/clip.mp4          one clip with its box, and the sound of its mels" && \
	  echo "  runs/$$run/                  checkpoints, metrics.jsonl, pictures, tensorboard" && \
	  echo "  data/$$name/edited.mp4        the first clip, saying what the last one says" && \
	  echo "  data/$$name/side-by-side.mp4  before and after" && \
	  echo "  samples/$$run/               clips drawn anew, to their own speech and to each other's" && \
	  echo && echo "Open this first: $(CURDIR)/evaluation/$$run/report.html"

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
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

clean:
	rm -rf data runs samples evaluation .mypy_cache .ruff_cache .pytest_cache .hypothesis
