"""The recipe: every number that changes the result of a training run. Presets, and changes to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from model.audio import AudioParams
from model.batch import FrameParams
from model.denoiser import NoiseParams
from model.unet import UNetParams
from shards.balance import Balance
from shards.errors import shorten
from shards.params import MAX_SEED, describe_mismatch
from shards.params import iterate_values as iterate_values  # of a recipe too

FORBID = ConfigDict(extra="forbid")
Beta = Annotated[float, Field(ge=0, lt=1)]
MAX_STEPS = 10**9  # at a hundred steps a second, a third of a year
# Of FrameParams: what changes nothing where the network takes speech features alone.
MEL_NUMBERS = ("audio_gain_db", "audio_band_db")
# Of AudioParams: what changes nothing where the network takes mels alone.
SPEECH_NUMBERS = ("input", "speech_size", "speech_rows_before", "speech_rows_after", "speech_encoder")
MAX_BATCH = 10**6  # frames: a thousand GPUs with a thousand each


class ModelError(Exception):
    """An error that the user can fix; commands print it as one line."""


@dataclass(frozen=True, config=FORBID)
class LossParams:
    """The weights of the pixels in the loss."""

    # Divide by the mask's area. The authors' code divides by all pixels, so large masks count more.
    over_mask: bool = True
    # Additional weight of the pixels around the lips: a quarter of the mask, and what people look at.
    lip_weight: float = Field(default=1.0, ge=0, le=100)


@dataclass(frozen=True, config=FORBID)
class OptimParams:
    """AdamW, and the moving average of the weights (EMA), which sampling uses."""

    # A step moves a weight by about this much, and weights are below 1: with 0.1 no network learns.
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    warmup_steps: int = Field(default=500, ge=0, le=MAX_STEPS)
    after_warmup: Literal["constant", "cosine"] = "constant"  # cosine: down to a tenth at the last step
    # Over the last so many steps the rate falls linearly to zero. A run at a constant rate can be extended
    # for as long as it still learns, and then be given this end.
    decay_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0, le=10)  # 0.01 to 0.3 are usual
    max_grad_norm: float = Field(default=1.0, ge=0, le=1e4)  # 0: do not clip; 1 is usual
    ema_decay: float = Field(default=0.9995, ge=0, lt=1)
    # min(decay, (1 + step) / (10 + step)): the average forgets the random initial weights.
    ema_warmup: bool = True


@dataclass(frozen=True, config=FORBID)
class WatchParams:
    """How often a run is logged, evaluated and saved. Changes no result, so a resumed run may change it."""

    log_every: int = Field(default=50, ge=1, le=MAX_STEPS)  # steps
    evaluate_every: int = Field(
        default=1000, ge=1, le=MAX_STEPS
    )  # steps between held-out losses and pictures
    save_every: int = Field(default=1000, ge=1, le=MAX_STEPS)  # steps between checkpoints
    keep_last: int = Field(default=3, ge=1, le=10_000)  # checkpoints, besides the best
    held_out_frames: int = Field(default=512, ge=1, le=10**7)  # at most
    pictures: int = Field(default=6, ge=0, le=100)  # held-out frames in the picture of each evaluation


@dataclass(frozen=True, config=FORBID)
class Recipe:
    """All parameters of a training run. ``PRESETS`` has the paper's recipes and ours."""

    network: UNetParams = field(default_factory=lambda: UNetParams(mask_channel=True))
    noise: NoiseParams = field(default_factory=lambda: NoiseParams(target="v"))
    frames: FrameParams = field(default_factory=FrameParams)
    loss: LossParams = field(default_factory=LossParams)
    optim: OptimParams = field(default_factory=OptimParams)
    watch: WatchParams = field(default_factory=WatchParams)
    batch: int = Field(default=160, ge=1, le=MAX_BATCH)  # frames per step, over all ranks
    steps: int = Field(default=200_000, ge=1, le=MAX_STEPS)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    # Shards whose frames are shuffled together, for datasets larger than the disk; 0: all frames.
    window: int = Field(default=0, ge=0, le=10**6)
    # What targets are drawn from evenly. `frames`: each frame once an epoch, so a person with ten times as
    # much video counts ten times as much. `clips`, `speakers`: they take turns, a frame each; a clip's or
    # speaker's frames repeat when all of its own have been used. With a window, they do so within it.
    balance: Balance = "frames"
    # Share of the training clips that is not trained on: the held-out loss selects the best checkpoint. The
    # test split is not used.
    held_out_share: float = Field(default=0.05, ge=0, lt=1)
    # Which of the two held-out losses selects the best checkpoint: with the previous mouth and the true
    # surroundings visible (`seeing`), where the best copier wins, or with the previous mouth hidden and other
    # surroundings (`listening`), where only the audio tells how the mouth moves. No effect where
    # `held_out_share` is 0, as in the preset `own`: then the newest checkpoint is used.
    best_by: Literal["seeing", "listening"] = "seeing"
    # Learn to draw in one pass, from pure noise and without guidance, what the network of the start draws in
    # its own steps with its guidance (Salimans and Ho 2022; Meng et al. 2023). Needs --start-from.
    distill: bool = False
    # Stop when the mean loss exceeds this; an untrained network has about 1. 0: never.
    max_loss: float = Field(default=10.0, ge=0, le=1e4)

    def __post_init__(self) -> None:
        if self.optim.decay_steps > self.steps:
            raise ValueError(
                f"optim.decay_steps is {self.optim.decay_steps}, expected at most steps {self.steps}"
            )
        if self.frames.audio_dropped and not self.network.audio.null:
            raise ValueError("frames.audio_dropped needs network.audio.null, the embedding of no audio")
        if (region := self.frames.mask_region) is not None:
            top, size = self.network.top, self.network.size
            if region[1] < top or max(region) > size:
                raise ValueError(
                    f"frames.mask_region is {region}, expected x0 y0 x1 y1 in a crop of {size} px, y0 from "
                    f"network.top {top} on"
                )


PAPER_NETWORK = UNetParams(
    zero_init=False, audio=AudioParams(rows_before=2, rows_after=1, normalised=False, null=False)
)  # fmt: skip
PAPER_FRAMES = FrameParams(
    identity="first",
    before_first="target",
    previous_noise=0,
    previous_warp=0,
    previous_blur=0,
    previous_hidden=0,
    audio_dropped=0,
)
PAPER_OPTIM = OptimParams(
    learning_rate=5e-5,
    warmup_steps=0,
    betas=(0.9, 0.999),
    max_grad_norm=0,
    ema_decay=0.9999,
    ema_warmup=False,
)
# The authors' JSON: 13,698,691 parameters; 735 epochs of 432,000 frames.
PAPER_MULTI_SPEAKER = Recipe(
    network=PAPER_NETWORK,
    noise=NoiseParams(schedule="cosine", steps=1000, target="epsilon", embedding="gamma"),
    frames=PAPER_FRAMES,
    loss=LossParams(over_mask=False, lip_weight=0),
    optim=PAPER_OPTIM,
    batch=160,
    steps=1_984_500,
    max_loss=0,
)
# Table 1, with the nine channels of the text: 66,655,619 parameters; 895 epochs of 73,704 frames (4.2).
PAPER_SINGLE_SPEAKER = replace(
    PAPER_MULTI_SPEAKER,
    network=replace(PAPER_NETWORK, multiples=(1, 2, 4, 8), attention_sizes=(), head_channels=32, dropout=0.2),
    noise=NoiseParams(schedule="linear", steps=2000, target="epsilon", embedding="gamma"),
    batch=40,
    steps=1_649_000,
)
# What makes a network follow the audio, and rows that cost and bring nothing (docs/performance.md, Learning).
OUR_AUDIO = AudioParams(rows_before=8, rows_after=8, encoder="conv")
OUR_FRAMES = FrameParams(previous_hidden=0.7, context_share=1.0)
OUR_NOISE = NoiseParams(target="v", log_snr_shift=-3.0)
MULTI_SPEAKER = Recipe(
    network=UNetParams(mask_channel=True, top=56, audio=OUR_AUDIO),
    noise=OUR_NOISE,
    frames=OUR_FRAMES,
    loss=LossParams(lip_weight=2.0),
    best_by="listening",
)
SINGLE_SPEAKER = replace(
    MULTI_SPEAKER,
    network=replace(MULTI_SPEAKER.network, multiples=(1, 2, 4, 8), attention_sizes=(32, 16)),
    batch=64,
    steps=100_000,
)
# For crops of 256 px, not trained yet: the networks above, with one more resolution before theirs, so
# attention looks at as many places. What is in px doubles. Four pixels show what one did, so the noise that
# hides as much is four times as strong: the levels are shifted by the log of that too.
TOP_256 = 2 * MULTI_SPEAKER.network.top
FRAMES_256 = replace(OUR_FRAMES, previous_warp=2 * OUR_FRAMES.previous_warp)
NOISE_256 = replace(OUR_NOISE, log_snr_shift=-4.4)
MULTI_SPEAKER_256 = replace(
    MULTI_SPEAKER,
    network=replace(MULTI_SPEAKER.network, size=256, top=TOP_256, multiples=(1, 1, 2, 3)),
    noise=NOISE_256,
    frames=FRAMES_256,
)
SINGLE_SPEAKER_256 = replace(
    SINGLE_SPEAKER,
    network=replace(SINGLE_SPEAKER.network, size=256, top=TOP_256, multiples=(1, 1, 2, 4, 8)),
    noise=NOISE_256,
    frames=FRAMES_256,
)
# A model of one's own: minutes of training that start from another run (docs/own-model.md has the figures).
# The network and what goes with it are the start's; these are the numbers that stand without one.
OWN = replace(
    MULTI_SPEAKER,
    optim=OptimParams(learning_rate=1e-3, warmup_steps=20, after_warmup="cosine", ema_decay=0.99),
    watch=WatchParams(log_every=20, evaluate_every=240, save_every=120, held_out_frames=64, pictures=0),
    batch=16,
    steps=240,  # three minutes of an idle core with 1.8 million parameters
    held_out_share=0,  # of ten seconds none can be spared
)
# Minutes on a laptop's CPU: shows that everything works, not the quality that is possible.
DEMO = replace(
    MULTI_SPEAKER,
    network=replace(
        MULTI_SPEAKER.network,
        channels=32,
        multiples=(1, 1, 2),
        blocks=1,
        attention_sizes=(16,),
        head_channels=32,
        dropout=0.0,
        patch=2,
    ),
    optim=OptimParams(learning_rate=2e-3, warmup_steps=50, after_warmup="cosine", ema_decay=0.99),
    watch=WatchParams(log_every=20, evaluate_every=200, save_every=200, held_out_frames=64),
    batch=16,
    steps=400,
)
# What the packaged model `small` is trained with: some people, an hour or two of a CPU (its page has the
# figures). Each person counts alike, whatever their clips, and skin, light and side say nothing.
SMALL = replace(
    DEMO,
    network=replace(
        DEMO.network,
        audio=replace(
            OUR_AUDIO, input="both", speech_rows_before=4, speech_rows_after=4, speech_encoder="flat"
        ),
    ),
    frames=replace(
        OUR_FRAMES,
        common_gamma=1.5,
        common_contrast=0.3,
        common_hue=20.0,
        common_colour=0.3,
        mirror_share=0.5,
    ),
    optim=OptimParams(
        learning_rate=1e-3, warmup_steps=50, after_warmup="constant", decay_steps=1500, ema_decay=0.999
    ),
    watch=WatchParams(log_every=100, evaluate_every=500, save_every=500, held_out_frames=64),
    balance="speakers",
    steps=10_500,
)
# One pass a frame where its start takes several (docs/model.md, One pass a frame).
FAST = replace(
    SMALL,
    optim=OptimParams(
        learning_rate=5e-4, warmup_steps=50, after_warmup="constant", decay_steps=1000, ema_decay=0.99
    ),
    steps=1500,
    distill=True,
)
PRESETS = {
    "multi-speaker": MULTI_SPEAKER,
    "single-speaker": SINGLE_SPEAKER,
    "multi-speaker-256": MULTI_SPEAKER_256,
    "single-speaker-256": SINGLE_SPEAKER_256,
    "paper-multi-speaker": PAPER_MULTI_SPEAKER,
    "paper-single-speaker": PAPER_SINGLE_SPEAKER,
    "demo": DEMO,
    "small": SMALL,
    "fast": FAST,
    "own": OWN,
}
# What a run that starts from another takes from it: the network, and what the network was trained to see.
FROM_START = ("network", "noise", "frames.before_first", "frames.mask_region", "frames.audio_dropped")


def build_recipe(preset: str, *changes: Mapping[str, Any], start: Recipe | None = None) -> Recipe:
    """A preset with ``changes``, nested as in ``Recipe``; later changes override earlier ones.

    ``start`` is the recipe of the run that this one starts from: what FROM_START names is taken from it, and
    no change may differ from it. A number of the mels is refused where the network takes none; a file that
    has one from before can still be read.

    Raises ModelError with one line that names the key, its value and what was expected.
    """
    if preset not in PRESETS:
        raise ModelError(f"preset {shorten(preset)} is not known; known are {', '.join(PRESETS)}")
    values: dict[str, Any] = asdict(PRESETS[preset])
    if start is not None:
        start_values = asdict(start)
        for name in FROM_START:
            section, _, key = name.partition(".")
            if key:
                values[section] = values[section] | {key: start_values[section][key]}
            else:
                values[section] = start_values[section]
    for change in changes:
        values = _merge(values, change, "")
    recipe = _validate(values)
    if start is not None:
        _check_start(recipe, start)
    if not recipe.network.audio.takes_mels:
        for name in MEL_NUMBERS:
            if value := getattr(recipe.frames, name):
                raise ModelError(
                    f"frames.{name} is {value:g}, expected 0: it acts on mels alone, and with "
                    f"network.audio.input {recipe.network.audio.input!r} the network takes none"
                )
    return recipe


def _check_start(recipe: Recipe, start: Recipe) -> None:
    """Raise ModelError unless all that FROM_START names is as in the recipe of the start.

    Nor may the start be distilled: it has forgotten all noise levels but one.
    """
    if start.distill:
        raise ModelError(
            "the start draws in one pass and cannot be trained further, expected the network that it was "
            "distilled from"
        )
    start_values = dict(iterate_values(asdict(start)))
    for name, value in iterate_values(asdict(recipe)):
        if name.startswith(FROM_START) and value != start_values[name]:
            raise ModelError(
                f"{name} is {shorten(value)}, expected {shorten(start_values[name])} as in the run that this "
                "one starts from"
            )


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from the result of ``asdict``. Raises ModelError."""
    return _validate(values)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a run's files have it, for ``recipe_from_dict``.

    Without the numbers of speech features where the network takes none, and `distill` where it is not: those
    files are as they were before there were any.
    """
    values = asdict(recipe)
    if not recipe.distill:
        del values["distill"]
    if not recipe.network.audio.takes_speech:
        for name in SPEECH_NUMBERS:
            del values["network"]["audio"][name]
    return values


def nest_changes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.learning_rate": 1e-4} -> {"optim": {"learning_rate": 1e-4}}."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, key = name.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ModelError(f"{name}: {section} is set to a value already")
        target[key] = value
    return nested


def compare_recipes(new: Recipe, old: Recipe) -> list[tuple[str, Any, Any]]:
    """(name, new value, old value) of every number that differs and must not when a run is resumed.

    ``watch`` may differ. ``steps`` and the decay at their end may while the learning rate is constant: a run
    may be extended. ``batch`` may, for fewer or more GPUs: still no frame is repeated or missing in an epoch.
    The numbers of speech features may if neither network takes them, and so may those of mels.
    """
    may_differ = {"batch"}
    if not (new.network.audio.takes_speech or old.network.audio.takes_speech):
        may_differ |= {f"network.audio.{name}" for name in SPEECH_NUMBERS}
    if not (new.network.audio.takes_mels or old.network.audio.takes_mels):
        may_differ |= {f"frames.{name}" for name in MEL_NUMBERS}
    if new.optim.after_warmup == old.optim.after_warmup == "constant":
        may_differ |= {"steps", "optim.decay_steps"}
    old_values = dict(iterate_values(asdict(old)))
    return [
        (name, value, old_values[name])
        for name, value in iterate_values(asdict(new))
        if value != old_values[name] and name not in may_differ and not name.startswith("watch.")
    ]


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if key not in base:
            raise ModelError(f"{prefix}{shorten(key)[1:-1]} is not known; known are {', '.join(base)}")
        nested = isinstance(base[key], Mapping)
        if nested != isinstance(value, Mapping):
            expected = f"a section of {', '.join(base[key])}" if nested else "a value, not a section"
            raise ModelError(f"{prefix}{key} is {shorten(value)}, expected {expected}")
        merged[key] = _merge(base[key], value, f"{prefix}{key}.") if nested else value
    return merged


def _validate(values: Mapping[str, Any]) -> Recipe:
    try:
        # as JSON, where a tuple is a list and no string becomes a number
        return pydantic.TypeAdapter(Recipe).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as err:
        raise ModelError(describe_mismatch(err, Recipe)) from err
    except (TypeError, ValueError) as err:
        raise ModelError(f"the recipe: not numbers and names ({err})") from err
