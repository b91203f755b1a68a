"""Which changes to the recipe make a network follow the audio, after equal samples (or minutes) each.

    python benchmarks/ablation.py --shards data/grid/shards --to runs/ablation --samples 80000
    python benchmarks/ablation.py --shards data/grid/shards --to runs/x --minutes 3 --only "multi-speaker"
    python benchmarks/ablation.py --shards data/grid/shards --to runs/x --network small

Every row is a run of ``model.loop.train`` in a process of its own, ``--jobs`` of them at a time. Then clips
of the test split are generated autoregressively with each other's speech and with their own, at each
``--guidance``, and scored by ``stages.evaluate.listening``. An existing run is continued, so samples can be
added later. ``--network`` scores a network that is there instead: a published one, or a run's folder. A row's
result.json has its scores, how the clips were generated and how many pairs there were.

People that the network never saw are a second test: the clips of ``--strangers`` whose speakers are not
trained on, with each other's speech and with their own, all together and each speaker alone. ``--recolour``
scores them once more with another skin or in another light, ``--quieter`` the first ones with quieter speech.
A frozen mouth is scored beside all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from recolour import RECOLOURS

from model import loop
from model.audio import SILENCE_DB
from model.batch import build_network_input
from model.checkpoint import check_resumable, list_checkpoints, load_network, restore_state
from model.execution import Execution, Ranks, select_device
from model.recipe import DEMO, SMALL, Recipe, build_recipe, iterate_values, nest_changes
from model.unet import UNet, count_parameters
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator
from shards.atomic import write_atomically
from shards.reader import Dataset, open_dataset
from shards.resident import TRAIN_SPLIT, load_resident, split_held_out
from shards.schema import ClipSample, Frames, ShardError
from shards.speech_scale import measure_speech_scale
from shards.table import Row
from stages.evaluate.baselines import freeze_mouth
from stages.evaluate.listening import PairMouths, average_scores, score_pair, score_pixels
from stages.evaluate.word_times import locate_alignment, read_alignments
from stages.media import weights
from stages.media.faces import FaceFinder
from stages.media.networks import find_network
from stages.mels import find_reference
from stages.metrics.closure import Word
from stages.metrics.identity import identity_distances
from stages.metrics.mouth import Mouths
from stages.metrics.mouth_finder import find_mouths
from stages.sample.generate import generate_clips
from stages.sample.pairs import Pair, pair_clips, read_pair

Changes = Mapping[str, Any]


def take_numbers(recipe: Recipe, *names: str) -> Changes:
    """Changes that set numbers as a recipe has them."""
    values = dict(iterate_values(asdict(recipe)))
    return {name: values[name] for name in names}


OPTIMISER = take_numbers(SMALL, "optim.learning_rate", "optim.ema_decay")
# `demo` without what its presets have learned from these rows (docs/performance.md, The ablation).
AS_IT_WAS: Changes = {**OPTIMISER, "frames.context_share": 0.0, "noise.log_snr_shift": 0.0}
CONTEXT: Changes = {**AS_IT_WAS, "frames.context_share": 1.0}
TEMPORAL: Changes = {
    **CONTEXT,
    "network.audio.encoder": "temporal",
    "network.audio.rows_before": 31,
    "network.audio.rows_after": 31,
}
# The window and the encoder that were measured on several people: nine rows as they are.
SPEECH = take_numbers(
    SMALL, *(f"network.audio.speech_{name}" for name in ("rows_before", "rows_after", "encoder"))
)
GAIN: Changes = {"frames.audio_gain_db": 12.0, "frames.audio_band_db": 6.0}
MOVED: Changes = {"frames.jitter_shift": 4.0, "frames.jitter_rotation": 4.0, "frames.jitter_scale": 0.04}
APPEARANCE = take_numbers(
    SMALL, *(f"frames.common_{name}" for name in ("gamma", "contrast", "hue", "colour"))
)
MIRRORED = take_numbers(SMALL, "frames.mirror_share")
# The paper's recipe in a network of the same shape, with the same optimiser: its own learning rate is made
# for a thousand times as many samples.
PAPER_SMALL: Changes = {
    **take_numbers(
        DEMO, "network.channels", "network.multiples", "network.blocks", "network.attention_sizes",
        "network.head_channels", "network.dropout", "network.patch", "network.top", "optim.warmup_steps",
        "batch",
    ),
    **OPTIMISER,
    "optim.ema_warmup": True,
}  # fmt: skip
# name -> preset and changes
ROWS: dict[str, tuple[str, Changes]] = {
    "paper, small": ("paper-multi-speaker", PAPER_SMALL),
    "as it was": ("demo", AS_IT_WAS),
    "context 0.5": ("demo", {**AS_IT_WAS, "frames.context_share": 0.5}),
    "context": ("demo", CONTEXT),
    "context, high noise": ("demo", {**CONTEXT, "frames.context_min_noise": 0.5}),
    "context, noisier": ("demo", {**CONTEXT, "noise.log_snr_shift": -3.0}),
    "context, mask": ("demo", {**CONTEXT, "frames.mask_region": (14, 60, 114, 128)}),
    "context, jitter": ("demo", {**CONTEXT, **MOVED}),
    "context, colour": ("demo", {**CONTEXT, "frames.jitter_colour": 0.1}),
    "context, appearance": ("demo", {**CONTEXT, **APPEARANCE}),
    "context, mirrored": ("demo", {**CONTEXT, **MIRRORED}),
    "context, balanced": ("demo", {**CONTEXT, "balance": "speakers"}),
    "context, base": ("demo", {**CONTEXT, "noise.base": "identity"}),
    "context, people": ("demo", {**CONTEXT, **APPEARANCE, **MIRRORED, "balance": "speakers"}),
    "context, gain": ("demo", {**CONTEXT, **GAIN}),
    "context, temporal": ("demo", TEMPORAL),
    "context, temporal, gain": ("demo", {**TEMPORAL, **GAIN}),
    "context, speech": ("demo", {**CONTEXT, **SPEECH, "network.audio.input": "speech"}),
    "context, both": ("demo", {**CONTEXT, **SPEECH, "network.audio.input": "both"}),
    "context, all rows": ("demo", {**CONTEXT, "network.top": 0}),
    "context, hidden": ("demo", {**CONTEXT, "frames.previous_hidden": 1.0}),
    "all": ("demo", {**TEMPORAL, **GAIN, **MOVED, "frames.jitter_colour": 0.1}),
    "multi-speaker": ("multi-speaker", {}),
    "paper multi-speaker": ("paper-multi-speaker", {}),
}
# row -> name -> sampling params besides each --guidance with the default ones
SAMPLING: dict[str, dict[str, Changes]] = {
    "context": {
        "common noise 0": {"common_noise": 0.0},
        "common noise 0.5": {"common_noise": 0.5},
        "common noise 0.8": {"common_noise": 0.8},
        "common noise 1": {"common_noise": 1.0},
        "1 step": {"steps": 1},
        "2 steps": {"steps": 2},
        "10 steps": {"steps": 10},
    },
    "paper, small": {
        "as the paper, 100 steps": {"sampler": "ancestral", "steps": 100, "common_noise": 0.0},
    },
}
# Of clips with their own speech; the other columns are of clips with each other's.
OWN_COLUMNS = {
    "opening_correlation", "psnr_box_db", "psnr_box_first_db", "psnr_box_last_db", "border_colour",
    "smoothness_box", "identity_distance",
}  # fmt: skip
COLUMNS = (
    "audio_obedience", "audio_obedience_net", "obedience_speech", "obedience_source", "opening_correlation",
    "smoothness_box", "psnr_box_db", "psnr_box_first_db", "psnr_box_last_db", "border_colour",
    "silence_ratio", "closure",
)  # fmt: skip
RESULT, LOG = "result.json", "log.txt"  # of a row, in its folder
# Of a result, besides what it has by name: a list of how the clips of each name were generated.
RECORDS = "sampling"


def make_recipe(name: str, args: argparse.Namespace) -> Recipe:
    """The recipe of a row: constant learning rate, no checkpoints but the last."""
    preset, changes = ROWS[name]
    settings = {"optim.after_warmup": "constant", **changes, **args.set}
    recipe = build_recipe(preset, nest_changes(settings))
    steps = -(-args.samples // recipe.batch) if args.samples else 10**8
    watch = replace(
        recipe.watch, log_every=100, evaluate_every=10**9, save_every=1000, keep_last=1, pictures=0
    )
    return replace(recipe, steps=steps, watch=watch)


def train(run: Path, recipe: Recipe, dataset: Dataset, args: argparse.Namespace) -> None:
    """Train a new or an existing run for ``args.samples`` in all, or ``args.minutes`` more."""
    device = select_device(args.device)
    ids = select_speakers(dataset, dataset.clips.ids_in_split(TRAIN_SPLIT), args.speakers)
    train_ids, _ = split_held_out(ids, recipe.held_out_share, seed=recipe.seed)
    network_input = build_network_input(recipe.network, recipe.frames)
    data = load_resident(
        dataset, train_ids, network_input, device=device, workers=args.workers, balance=recipe.balance
    )
    scale = measure_speech_scale(dataset, train_ids, network_input) if network_input.speech_size else None
    state = loop.create_state(recipe, device, scale)
    checkpoints = list_checkpoints(run)
    if checkpoints:
        # more samples may be added, and nothing else changed
        check_resumable(checkpoints[-1], recipe, str(dataset.manifest["digest"]))
        restore_state(state, checkpoints[-1])
    if args.minutes:
        watch = threading.Thread(target=stop_after, args=(run, state, 60 * args.minutes), daemon=True)
        watch.start()
    loop.train(
        state,
        data,
        None,
        recipe=recipe,
        execution=Execution(compile=args.compile, precision=args.precision),
        ranks=Ranks(0, 1, device),
        run=run,
        digest=str(dataset.manifest["digest"]),
    )


def check_row(name: str, dataset: Dataset, args: argparse.Namespace) -> None:
    """Raise ShardError where the network of a row takes what the clips of a dataset lack.

    Ends the program if --sampling names a way that the row does not have.
    """
    recipe = make_recipe(name, args)
    list_sampling(name, recipe, args)
    network_input = build_network_input(recipe.network)
    ids = select_speakers(dataset, dataset.clips.ids_in_split(TRAIN_SPLIT), args.speakers)
    network_input.check_members(dataset.clips, ids, dataset.storage.address)
    for clip_set in list_clip_sets(dataset, args):
        ids = sorted({clip_id for pair in clip_set.pairs for clip_id in (pair.clip_id, pair.audio_clip_id)})
        network_input.check_members(clip_set.dataset.clips, ids, clip_set.dataset.storage.address)


def stop_after(run: Path, state: Any, seconds: float) -> None:
    """End the training loop of this process ``seconds`` after its next step: compiling is not training."""
    first = state.step
    while state.step == first:
        time.sleep(0.05)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGTERM)


def make_default_params(args: argparse.Namespace) -> SampleParams:
    """What all ways to generate clips have in common, but for their guidance."""
    return SampleParams(steps=args.steps, common_noise=args.common_noise)


def list_all_sampling(name: str, recipe: Recipe, args: argparse.Namespace) -> dict[str, SampleParams]:
    """How the clips of a row can be generated, by name."""
    default = make_default_params(args)
    guidances = args.guidance if recipe.network.audio.null else [1.0]
    params = {f"guidance {guidance:g}": replace(default, guidance=guidance) for guidance in guidances}
    strongest = replace(default, guidance=max(guidances))
    return params | {what: replace(strongest, **changes) for what, changes in SAMPLING.get(name, {}).items()}


def list_sampling(name: str, recipe: Recipe, args: argparse.Namespace) -> dict[str, SampleParams]:
    """How the clips of a row are generated, by name: in all ways, or as --sampling says."""
    params = list_all_sampling(name, recipe, args)
    if args.sampling is None:
        return params
    if args.sampling not in params:
        raise SystemExit(f"--sampling {args.sampling}: expected one of the row {name}: {'; '.join(params)}")
    return {args.sampling: params[args.sampling]}


def drop_other_scores(
    result: Mapping[str, Any], samples: int, sampling: Mapping[str, SampleParams], default: SampleParams
) -> dict[str, Any]:
    """``result`` without the scores of other ways to generate clips; empty if of another number of samples.

    ``sampling``: params by the name of a way. All other ways have ``default``, but for their guidance. Scores
    of a file without records stay: ``format_row`` says that their params are not known.
    """
    if result.get("samples") != samples:
        return {}

    def is_other(way: str, params: Mapping[str, Any] | None) -> bool:
        if params is None:  # no network generates a frozen mouth
            return False
        return params != asdict(sampling.get(way, replace(default, guidance=params["guidance"])))

    records = result.get(RECORDS, [])
    others = {each["name"] for each in records if is_other(each["way"], each["params"])}
    for name in sorted(others):
        logging.info("%s: generated with other params before, dropped", name)
    remaining = {name: value for name, value in result.items() if name not in others}
    return remaining | {RECORDS: [each for each in records if each["name"] not in others]}


def add_scores(
    result: Mapping[str, Any],
    way: str,
    params: SampleParams | None,
    clip_sets: Sequence[tuple[ClipSet, Scores]],
) -> dict[str, Any]:
    """``result`` with the means of one way to generate clips, their params and numbers of pairs.

    ``params``: None for clips that no network generates.
    """
    groups = group_pairs(way, clip_sets)
    records = [each for each in result.get(RECORDS, []) if each["name"] not in groups]
    for name, scores in groups.items():
        n_own = sum(pair.clip_id == pair.audio_clip_id for pair, _ in scores)
        records.append(
            {
                "name": name,
                "way": way,
                "params": None if params is None else asdict(params),
                "pairs": {"own": n_own, "swapped": len(scores) - n_own},
            }
        )
    return {**result, **{name: average_pairs(scores) for name, scores in groups.items()}, RECORDS: records}


def measure_row(name: str, args: argparse.Namespace) -> None:
    """Train a row, generate the clips of the split and score them."""
    run = args.to / get_folder_name(name)
    start = time.perf_counter()
    train(run, make_recipe(name, args), open_dataset(args.shards, hashes=False), args)
    seconds = time.perf_counter() - start
    network, saved = load_network(run, which="newest")
    possible, default = list_all_sampling(name, saved.recipe, args), make_default_params(args)
    # What is left was measured before: this is one more way to generate clips.
    result = drop_other_scores(read_result(run), saved.position, possible, default) or {
        "samples": saved.position,
        "seconds": seconds,
        "parameters": count_parameters(network),
    }
    sampling = list_sampling(name, saved.recipe, args)
    score_network(network, saved.recipe, sampling, run, result, args)


def measure_network(path: Path, args: argparse.Namespace) -> None:
    """Generate the clips of the split with a network that is there, score them and print the row."""
    network, saved = load_network(path)
    folder = args.to / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    result = {"samples": saved.position or "-", "parameters": count_parameters(network)}
    sampling = list_sampling(path.stem, saved.recipe, args)
    score_network(network, saved.recipe, sampling, folder, result, args)
    for line in format_row(path.stem, folder):
        print(line, flush=True)


def score_network(
    network: UNet,
    recipe: Recipe,
    sampling: Mapping[str, SampleParams],
    folder: Path,
    result: dict[str, Any],
    args: argparse.Namespace,
) -> None:
    """Write ``result`` with the scores of each way to generate clips to ``folder``."""
    landmarker = args.landmarker or weights.find(weights.LANDMARKER)
    dataset = open_dataset(args.shards, hashes=False)
    with contextlib.ExitStack() as stack:
        clip_sets = [
            (clip_set, stack.enter_context(TruthMouths(landmarker)))
            for clip_set in list_clip_sets(dataset, args)
        ]
        frozen = [(each, score_frozen(each)) for each, _ in clip_sets]
        result = add_scores(result, "frozen mouth", None, frozen)
        for what, params in sampling.items():
            device, execution = select_device(args.device), Execution(compile=False, precision=args.precision)
            generator = FrameGenerator(network, recipe, params, device, execution)
            scores = [(each, score_clips(generator, each, truth, args)) for each, truth in clip_sets]
            result = add_scores(result, what, params, scores)
            write_json(folder / RESULT, result)


@dataclass(frozen=True)
class ClipSet:
    """Clips to generate and score, with each other's speech and with their own."""

    name: str  # "" for clips of the people that are trained on
    dataset: Dataset
    pairs: list[Pair]
    change: Callable[[ClipSample], ClipSample] = lambda clip: clip

    def read(self, dataset: Dataset, pair: Pair) -> tuple[ClipSample, ClipSample]:
        """The clip and the clip whose speech is used."""
        clip, speech = read_pair(dataset, pair)
        return self.change(clip), self.change(speech)


def list_clip_sets(dataset: Dataset, args: argparse.Namespace) -> list[ClipSet]:
    """The clips of the split, and those of strangers: each dataset's, then once more in each other colour."""
    known = select_speakers(dataset, dataset.clips.ids_in_split(args.split), args.speakers)
    clip_sets = [ClipSet("", dataset, pair_evenly(dataset, known, args))]
    if args.quieter:
        lower = partial(lower_mels, args.quieter)
        clip_sets.append(ClipSet(f"{args.quieter:g} dB quieter", dataset, clip_sets[0].pairs, lower))
    trained = select_speakers(dataset, dataset.clips.ids_in_split(TRAIN_SPLIT), args.speakers)
    people = set(dataset.clips.column("speaker", trained))
    for address in args.strangers:
        strangers = open_dataset(address, hashes=False)
        ids = list(strangers.clips)
        ids = select_speakers(strangers, ids, set(strangers.clips.column("speaker", ids)) - people)
        pairs = pair_evenly(strangers, ids, args)
        clip_sets.append(ClipSet("strangers", strangers, pairs))
        clip_sets += [
            ClipSet(f"strangers, {colour}", strangers, pairs, RECOLOURS[colour]) for colour in args.recolour
        ]
    return clip_sets


def lower_mels(decibel: float, clip: ClipSample) -> ClipSample:
    """A clip as it is within a recording that is so much louder elsewhere."""
    return replace(clip, mels=np.maximum(clip.mels - np.float32(decibel), np.float32(SILENCE_DB)))


def select_speakers(dataset: Dataset, clip_ids: Sequence[str], speakers: Collection[str] | None) -> list[str]:
    """The clips of these speakers, or all. Ends the program if there are too few for a pair."""
    of_clips = dataset.clips.column("speaker", clip_ids)
    ids = [
        clip_id
        for clip_id, speaker in zip(clip_ids, of_clips, strict=True)
        if speakers is None or speaker in speakers
    ]
    if len(ids) < 2:
        names = (
            "" if speakers is None else f" of the speakers {', '.join(sorted(speakers)) or 'not trained on'}"
        )
        known = ", ".join(sorted(set(of_clips)))
        raise SystemExit(
            f"{dataset.storage.address}: {len(ids)} clips{names}, expected 2 or more; there are {known}"
        )
    return ids


def pair_evenly(dataset: Dataset, clip_ids: Sequence[str], args: argparse.Namespace) -> list[Pair]:
    """Swapped and own pairs, ``args.clips`` and ``args.own_clips`` at most: speakers in turn, in order."""
    pairs = []
    for audio, most in (("own", args.own_clips or args.clips), ("swapped", args.clips)):
        turns = Counter[str]()
        places = []
        for pair in pair_clips(dataset, clip_ids, audio, seed=0):
            speaker = dataset.clips[pair.clip_id]["speaker"]
            places.append((turns[speaker], pair))
            turns[speaker] += 1
        places.sort(key=lambda item: item[0])
        pairs += [pair for _, pair in places[:most]]
    return pairs


Scores = list[tuple[Pair, dict[str, float]]]


def score_clips(
    generator: FrameGenerator, clip_set: ClipSet, truth: TruthMouths, args: argparse.Namespace
) -> Scores:
    """Generate and score all pairs."""
    dataset, pairs = clip_set.dataset, clip_set.pairs
    speeches = {pair.audio_clip_id: dataset.clips[pair.audio_clip_id] for pair in pairs}
    words = find_words(speeches, args.alignments) if args.alignments else {}
    reference = find_reference(dataset)
    clips = generate_clips(generator, dataset, pairs, slots=len(pairs), read=clip_set.read)

    def score(item: tuple[Pair, Frames]) -> tuple[Pair, dict[str, float]]:
        pair, frames = item
        clip, speech = clip_set.read(dataset, pair)
        mouths = PairMouths(truth.find(frames), truth.get(speech), truth.get(clip))
        scores = score_pair(frames, clip, speech, mouths, words.get(speech.key), reference=reference)
        return pair, scores | score_identity(frames, clip)

    with ThreadPoolExecutor(args.finders) as pool:  # finding faces frees the GIL
        return list(pool.map(score, clips))


def find_words(speeches: Mapping[str, Row], folder: Path) -> dict[str, list[Word]]:
    """The words of those clips that have word times: strangers may have none."""
    files = {clip_id: row for clip_id, row in speeches.items()
             if (folder / locate_alignment(clip_id, row["speaker"])).is_file()}  # fmt: skip
    return read_alignments(folder, files) if files else {}


def score_frozen(clip_set: ClipSet) -> Scores:
    """Scores of the first frame's mouth in every frame of the clips, where they need no mouths."""
    own = [pair for pair in clip_set.pairs if pair.clip_id == pair.audio_clip_id]
    clips = [(pair, clip_set.read(clip_set.dataset, pair)[0]) for pair in own]
    frozen = [(pair, clip, freeze_mouth(clip)) for pair, clip in clips]
    return [
        (pair, score_pixels(frames, clip, own=True) | score_identity(frames, clip))
        for pair, clip, frames in frozen
    ]


def score_identity(generated: Frames, clip: ClipSample) -> dict[str, float]:
    """The mean difference of colour around the lips from the clip's first frame, of all frames."""
    n_frames = min(len(generated), len(clip.frames))
    distances = identity_distances(generated[:n_frames], clip.frames[0], clip.boxes[:n_frames])
    return {"identity_distance": float(distances.mean())}


def group_pairs(what: str, clip_sets: Sequence[tuple[ClipSet, Scores]]) -> dict[str, Scores]:
    """Scores of pairs by what was scored: sets of one name together, and each stranger alone."""
    groups: dict[str, Scores] = {}
    for clip_set, scores in clip_sets:
        for pair, each in scores:
            names = [clip_set.name]
            if clip_set.name:
                speaker = clip_set.dataset.clips[pair.clip_id]["speaker"]
                names.append(f"{clip_set.name}, {speaker}")
            for name in names:
                groups.setdefault(name, []).append((pair, each))
    return {f"{what}, {name}" if name else what: scores for name, scores in sorted(groups.items())}


def average_pairs(scores: Scores) -> dict[str, Any]:
    """Means of clips with each other's speech, and of some columns with their own."""
    own = [each for pair, each in scores if pair.clip_id == pair.audio_clip_id]
    swapped = [each for pair, each in scores if pair.clip_id != pair.audio_clip_id]
    means = average_scores(swapped) | {
        name: mean for name, mean in average_scores(own).items() if name in OWN_COLUMNS
    }
    return {name: asdict(mean) for name, mean in means.items()}


class TruthMouths:
    """Mouths in crops, by one face finder per thread; those of ground truth clips are found once."""

    def __init__(self, landmarker: Path) -> None:
        self.landmarker = landmarker
        self.local = threading.local()
        self.finders: list[FaceFinder] = []
        self.mouths: dict[str, Mouths] = {}

    def __enter__(self) -> TruthMouths:
        return self

    def __exit__(self, *_: object) -> None:
        for finder in self.finders:
            finder.__exit__()

    def find(self, frames: Frames) -> Mouths:
        if not hasattr(self.local, "finder"):
            self.local.finder = FaceFinder(self.landmarker, max_faces=1).__enter__()
            self.finders.append(self.local.finder)
        return find_mouths(frames, self.local.finder)

    def get(self, clip: ClipSample) -> Mouths:
        if clip.key not in self.mouths:
            self.mouths[clip.key] = self.find(clip.frames)
        return self.mouths[clip.key]


def get_folder_name(row: str) -> str:
    return row.replace(" ", "-").replace(",", "")


def write_json(path: Path, content: object) -> None:
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def run_rows(names: Sequence[str], args: argparse.Namespace) -> None:
    """Each row in a process of its own, ``args.jobs`` at a time; prints a row when it is done."""
    options = sys.argv[1:]
    pending, running = list(names), dict[str, subprocess.Popen[bytes]]()
    while pending or running:
        while pending and len(running) < args.jobs:
            name = pending.pop(0)
            folder = args.to / get_folder_name(name)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG).open("ab") as log:
                command = [sys.executable, __file__, *options, "--row", name]
                running[name] = subprocess.Popen(command, stdout=log, stderr=log)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                folder = args.to / get_folder_name(name)
                for line in format_row(name, folder):
                    print(line, flush=True)
                if process.returncode:
                    print(f"| {name} | failed, see {folder / LOG} |", flush=True)
        time.sleep(0.2)


def read_result(folder: Path) -> dict[str, Any]:
    """The scores of a row so far; empty if it has none."""
    path = folder / RESULT
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return result


def format_row(name: str, folder: Path) -> Iterator[str]:
    """A line of the table for each way in which the row's clips were generated."""
    result = read_result(folder)
    recorded = {each["name"] for each in result.get(RECORDS, [])}
    for title, scores in result.items():
        if isinstance(scores, dict):
            what = title + ("" if title in recorded else " (params not recorded)")
            cells = [f"{scores[key]['value']:.2f}" if key in scores else "-" for key in COLUMNS]
            if (net := scores.get("audio_obedience_net")) and net["low"] is not None:
                cells[1] += f" [{net['low']:.2f}, {net['high']:.2f}]"
            yield f"| {name} | {result['samples']} | {what} | {' | '.join(cells)} |"


def split_names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name for name in text.split(",") if name]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--to", type=Path, required=True, help="folder for the runs and their results")
    parser.add_argument("--samples", type=int, default=0, help="to train each row on")
    parser.add_argument(
        "--minutes", type=float, default=0, help="to train each row for, instead of --samples"
    )
    parser.add_argument("--only", help="rows, separated by semicolons")
    parser.add_argument(
        "--speakers", type=split_names, metavar="A,B", help="only the clips of these, in training and test"
    )
    parser.add_argument(
        "--strangers", nargs="+", default=[], metavar="SHARDS", help="datasets of people to test on alone"
    )
    parser.add_argument(
        "--recolour", nargs="+", default=[], choices=list(RECOLOURS), help="the strangers once more"
    )
    parser.add_argument(
        "--quieter",
        type=float,
        default=0,
        metavar="DB",
        help="clips of the split once more, with mels this much lower; speech features do not change",
    )
    parser.add_argument("--network", type=find_network, help="score this one, train none")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--clips",
        type=int,
        help="number of clips of the split and of each dataset of "
        "strangers, divided evenly among the speakers; default: all",
    )
    parser.add_argument("--own-clips", type=int, help="of these, with their own speech; default: --clips")
    parser.add_argument("--steps", type=int, default=4, help="of the sampler")
    parser.add_argument("--common-noise", type=float, default=SampleParams().common_noise)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--sampling", metavar="NAME", help="only this way to generate clips; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--workers", type=int, default=1, help="threads per row that decode frames")
    parser.add_argument("--finders", type=int, default=1, help="threads per row that find mouths")
    parser.add_argument("--alignments", type=Path, help="folder with SPEAKER/CLIP.align, for closure")
    parser.add_argument("--landmarker", type=Path, help="MediaPipe's face_landmarker.task")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for all rows")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.samples > 0) + (args.minutes > 0) + (args.network is not None) != 1:
        parser.error("give one of --samples, --minutes and --network")
    args.set = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in args.set)}
    return args


def main() -> None:
    args = parse_arguments()
    if args.row:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        measure_row(args.row, args)
        return
    print(
        f"| row | samples | sampling | {' | '.join(COLUMNS)} |\n{'| --- ' * (3 + len(COLUMNS))}|", flush=True
    )
    if args.network:
        measure_network(args.network, args)
        return
    names = args.only.split(";") if args.only else list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: known rows are {'; '.join(ROWS)}")
    dataset = open_dataset(args.shards, hashes=False)
    possible = []
    for name in names:
        try:
            check_row(name, dataset, args)
            possible.append(name)
        except ShardError as err:
            print(f"| {name} | not trained: {err} |", flush=True)
    run_rows(possible, args)


if __name__ == "__main__":
    main()
