# `make demo` and `make test` install what they need into .venv. They need Python 3.10-3.13 and pip, no root.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.redub-installed

.PHONY: help demo test lint types unit clean

help:
	@echo "make demo   install, download six clips, build shards, train a small network, edit a clip, report"
	@echo "make test   install, lint, check types, run the tests"
	@echo "make clean  remove what the demo built (data/, runs/, samples/, evaluation/) and caches; $(VENV) stays"

$(READY): pyproject.toml constraints.txt
	@echo "== creating $(VENV) with $$($(PYTHON) --version) and installing redub (some minutes, only once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "redub needs Python 3.10-3.13; for example: make demo PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[app,dvc,phonemes,s3,speech,dev]'
	@echo "== downloading MediaPipe's face model; after that redub needs no network"
	@$(BIN)/python -c 'from stages.media import weights; print(weights.find(weights.LANDMARKER))' \
	  || echo "not found; redub searches again when it needs it"
	@touch $@

demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: export DVC_NO_ANALYTICS := 1
demo: $(READY)
	@echo "== 1/6 downloading six CREMA-D clips of actor 1001"
	@if pipeline fetch --dataset crema-d --only '1001_DFA_*'; then echo "crema-d demo" > $(VENV)/.demo; \
	  else echo "== no network: using a synthetic corpus"; echo "made demo-made" > $(VENV)/.demo; fi
	@echo "== 2/6 dvc repro: building shards from raw clips (clips, landmarks, align, mels, shard)"
	@read name run < $(VENV)/.demo && dvc repro shard@$$name
	@echo "== 3/6 verifying the shards and rendering a contact sheet and a preview video"
	@read name run < $(VENV)/.demo && \
	  pipeline verify --full data/$$name/shards && \
	  pipeline preview data/$$name/shards -o data/$$name/sheet.png && \
	  pipeline preview data/$$name/shards --video any -o data/$$name/clip.mp4
	@echo "== 4/6 dvc repro: training a small network (some minutes)"
	@read name run < $(VENV)/.demo && dvc repro train@$$run
	@echo "== 5/6 editing the first clip to the speech of the last one"
	@read name run < $(VENV)/.demo && \
	  clips=$$(find data/$$name/raw -name '*.flv' -o -name '*.mp4' | sort) && \
	  pipeline edit --video $$(echo "$$clips" | head -n 1) --audio $$(echo "$$clips" | tail -n 1) \
	    --run runs/$$run --steps 10 --any-face -o data/$$name/edited.mp4 --preview data/$$name/side-by-side.mp4
	@echo "== 6/6 dvc repro: generating clips, scoring them, writing the report"
	@read name run < $(VENV)/.demo && dvc repro report@$$run
	@echo; echo "What was built:"
	@read name run < $(VENV)/.demo && \
	  echo "  data/$$name/shards/           plain WebDataset shards, index.parquet, dataset.json" && \
	  echo "  data/$$name/clips.parquet     one row for every raw file: used, or why not" && \
	  echo "  data/$$name/sheet.png         every clip: crops, mask boxes, mels" && \
	  echo "  data/$$name/clip.mp4          one clip with its mask box, and sound made from its mels" && \
	  echo "  runs/$$run/                  checkpoints, metrics.jsonl, pictures, tensorboard" && \
	  echo "  data/$$name/edited.mp4        the first clip with the speech of the last one" && \
	  echo "  data/$$name/side-by-side.mp4  before and after" && \
	  echo "  samples/$$run/               generated clips, with their own speech and with each other's" && \
	  echo && echo "Start with the report: $(CURDIR)/evaluation/$$run/report.html"

test: lint types unit

lint: $(READY)
	@echo "== ruff: lint and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@echo "== mypy: types"
	@$(BIN)/mypy

unit: $(READY)
	@echo "== pytest: the tests (some minutes; tests that need real clips or a model skip with a reason)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

clean:
	rm -rf data runs samples evaluation .mypy_cache .ruff_cache .pytest_cache .hypothesis
