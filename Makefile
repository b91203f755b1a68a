# `make demo` and `make test` install what they need into .venv. They need Python 3.10-3.13 and pip, no root.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.redub-installed

.PHONY: help demo test test-oldest lint types unit clean

help:
	@echo "make demo   install, download six clips, build shards, train on five, edit the sixth, report"
	@echo "make test   install, lint, check types, run the tests"
	@echo "make test-oldest   the package itself, with the oldest libraries that it allows, in a temporary folder"
	@echo "make clean  remove what the demo built (data/, runs/, samples/, evaluation/) and caches; $(VENV) stays"

$(READY): pyproject.toml constraints.txt
	@echo "== creating $(VENV) with $$($(PYTHON) --version) and installing redub (some minutes, only once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "redub needs Python 3.10-3.13; for example: make demo PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[app,dvc,dvclive,phonemes,s3,sign,speech,dev]'
	@echo "== downloading MediaPipe's face model; after that redub needs no network"
	@$(BIN)/python -c 'from stages.media import weights; print(weights.find(weights.LANDMARKER))' \
	  || echo "not found; redub searches again when it needs it"
	@touch $@

demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: export DVC_NO_ANALYTICS := 1
# The clips of one actor lie in a folder of that name, as one's own videos would. By its name one of them is in
# the test split: it is edited and scored, and never trained on.
demo: $(READY)
	@echo "== 1/6 downloading six clips of actor 1001 of CREMA-D"
	@if pipeline fetch --dataset crema-d --only '1001_DFA_*' --to data/crema-d/raw >&2; then \
	    mkdir -p data/demo/raw/1001 && cp -u data/crema-d/raw/VideoFlash/1001_DFA_*.flv data/demo/raw/1001/ && \
	    echo demo demo data/demo/raw/1001/1001_DFA_SAD_XX.flv data/demo/raw/1001/1001_DFA_HAP_XX.flv; \
	  else echo "== no network: using a synthetic corpus" >&2; dvc repro synth >&2 && \
	    echo made demo-made $$(find data/made/raw -name '*.mp4' | sort | head -n 2); fi > $(VENV)/.demo
	@echo "== 2/6 dvc repro: building shards from raw clips (clips, landmarks, align, mels, shard)"
	@read name run clips < $(VENV)/.demo && dvc repro shard@$$name
	@echo "== 3/6 verifying the shards and rendering a contact sheet and a preview video"
	@read name run clips < $(VENV)/.demo && \
	  pipeline verify --full data/$$name/shards && \
	  pipeline preview data/$$name/shards -o data/$$name/sheet.png && \
	  pipeline preview data/$$name/shards --video any -o data/$$name/clip.mp4
	@echo "== 4/6 dvc repro: training the packaged model further on these clips (some minutes)"
	@read name run clips < $(VENV)/.demo && dvc repro train@$$run
	@echo "== 5/6 editing a clip to the speech of another one"
	@read name run video audio < $(VENV)/.demo && \
	  pipeline edit --video $$video --audio $$audio \
	    --run runs/$$run --any-face -o data/$$name/edited.mp4 --preview data/$$name/side-by-side.mp4
	@echo "== 6/6 dvc repro: generating clips, scoring them, writing the report"
	@read name run clips < $(VENV)/.demo && dvc repro report@$$run
	@echo; echo "What was built:"
	@read name run clips < $(VENV)/.demo && \
	  echo "  data/$$name/shards/           plain WebDataset shards, index.parquet, dataset.json" && \
	  echo "  data/$$name/clips.parquet     one row for every raw file: used, or why not" && \
	  echo "  data/$$name/sheet.png         every clip: crops, mask boxes, mels" && \
	  echo "  data/$$name/clip.mp4          one clip with its mask box, and sound made from its mels" && \
	  echo "  runs/$$run/                  checkpoints, metrics.jsonl, pictures, tensorboard" && \
	  echo "  data/$$name/edited.mp4        a clip with the speech of another one" && \
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

# Its PyTorch is the one of constraints.txt, whose wheel for processors may be at hand; the oldest one takes 6 GB of
# disk: make test-oldest TORCH=constraints-oldest.txt
TORCH ?= constraints.txt
test-oldest:
	@echo "== installing the package with the libraries of constraints-oldest.txt (some minutes)"
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && mkdir "$$folder/source" \
	  && cp -r pipeline stages sampler model shards pyproject.toml README.md LICENSE "$$folder/source" \
	  && { grep -v '^torch==' constraints-oldest.txt; grep '^torch==' $(TORCH); } > "$$folder/constraints.txt" \
	  && $(PYTHON) -m venv "$$folder/venv" \
	  && "$$folder/venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps \
	    -w "$$folder" "$$folder/source" \
	  && "$$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
	    -c "$$folder/constraints.txt" "$$folder"/redub-*.whl \
	  && echo "== what an installed package must be able to do" \
	  && OMP_NUM_THREADS=1 bash .ci/road "$$folder/venv/bin" shards

clean:
	rm -rf data runs samples evaluation .mypy_cache .ruff_cache .pytest_cache .hypothesis
