"""Measure how well a pasted mouth fits its surroundings, on real videos of any size.

    python benchmarks/paste.py --landmarker face_landmarker.task VIDEO ...
    python benchmarks/paste.py --landmarker face_landmarker.task --run runs/x --steps 2 --guidance 2 VIDEO ...

A run is sampled as `pipeline edit` does: by the options, else as the published model that it is or comes from
needs it, else by the defaults.

Without a run, no network is needed: the re-drawn crop of an instant is the one ``--later`` instants later,
so another mouth of the same face, which has been through 128 px. Grain, texture and seam are those of
``surroundings.py``, medians of the frames. Flicker is the mean absolute second difference of three successive
frames inside the box, over that of the source: motion at constant speed has none. It is that of the frames
smoothed by 2 px, and of the grain that this removes. With a run the mouths have the video's own speech, and
PSNR is of the frames' pixels inside the box against the source's.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from surroundings import SurroundingsFit, measure_surroundings

from model.execution import Execution, select_device
from pipeline.params import Params
from sampler.paste import paste
from sampler.rollout import load_generator
from shards.schema import Frame
from stages.edit.plan import EditPlan
from stages.edit.reader import FrameReader, VideoFacts, probe_video
from stages.edit.render import MouthGenerator, read_crops
from stages.edit.run import EditParams, make_plans
from stages.engine.progress import no_progress
from stages.media.audio import mix_to_mono, read_channels
from stages.media.networks import find_network
from stages.media.video import RgbConverter
from stages.mels import MelsParams, compute_mel_rows, count_samples
from stages.speech import SpeechParams, compute_speech_rows, find_model, load_encoder

SIZE = 128


def compute_depth(shape: tuple[int, ...], matrix: NDArray[np.floating], box: NDArray[np.integer]) -> Any:
    """How far inside the box each pixel's centre is, px of the crop; negative outside: (H, W)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    u, v = (matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] for axis in range(2))
    return np.minimum.reduce([u - box[0] + 0.5, box[2] - 0.5 - u, v - box[1] + 0.5, box[3] - 0.5 - v])


def plan_edit(video: Path, seconds: float, landmarker: Path) -> EditPlan:
    facts = VideoFacts.from_json(probe_video(video, EditParams().max_pixels).facts)
    length = min(facts.seconds, Fraction(seconds))
    params = EditParams()
    with TemporaryDirectory() as scratch:
        [plan] = make_plans(
            video,
            facts,
            length,
            size=SIZE,
            model=landmarker,
            params=params,
            faces=[params.face],
            scratch=Path(scratch),
            progress=no_progress,
        )
    return plan


def draw_crops(plan: EditPlan, generator: MouthGenerator | None, later: int) -> tuple[list[Frame], list[int]]:
    """Re-drawn crops of the first stretch with a face, and their instants."""
    segments = [plan.get_segment_index(k) for k in range(plan.n_instants)]
    first = next(k for k, segment in enumerate(segments) if segment >= 0)
    instants = [k for k in range(first, plan.n_instants) if segments[k] == segments[first]]
    with FrameReader(plan.video, plan.facts, plan.stamps) as reader:
        frames = list(read_crops(plan, reader, instants, SIZE))
    if generator is None:
        crops = []
        for frame, other in zip(frames, frames[later:], strict=False):
            x0, y0, x1, y1 = frame.box
            crop = frame.pixels.copy()
            crop[y0:y1, x0:x1] = other.pixels[y0:y1, x0:x1]
            crops.append(crop)
        return crops, instants[: len(crops)]
    sound, _ = mix_to_mono(read_channels(plan.video, 0.0, count_samples(plan.n_instants)))
    mels = compute_mel_rows(sound, MelsParams())
    encoder = find_model(SpeechParams(encoder="whisper-tiny.en")) if generator.takes_speech else None
    speech = None if encoder is None else compute_speech_rows(sound, load_encoder(encoder))
    return list(generator(iter(frames), mels, instants[0], speech)), instants


def measure_video(plan: EditPlan, generator: MouthGenerator | None, later: int) -> dict[str, float]:
    crops, instants = draw_crops(plan, generator, later)
    fits: list[SurroundingsFit] = []
    errors: list[float] = []
    flicker: dict[str, list[float]] = {}
    recent: list[tuple[Frame, Frame]] = []
    convert = RgbConverter()
    with FrameReader(plan.video, plan.facts, plan.stamps) as reader:
        for k, redrawn in zip(instants, crops, strict=True):
            source_frame = int(plan.source_frames[k])
            image, crop_plan = convert(reader[source_frame]), plan.plan_crop(k)
            crop, matrix = crop_plan.crop(image, plan.get_source_time(source_frame), SIZE)
            box = crop_plan.box if generator is None else generator.select_box(crop_plan.box)
            patch = paste(image, crop, redrawn, matrix, box, crop_plan.oval)
            result = image.copy()
            result[patch.region] = patch.pixels
            rows, columns = (slice(max(0, side.start - 60), side.stop + 60) for side in patch.region)
            depth = compute_depth(image.shape, matrix, box)
            fits.append(
                measure_surroundings(result[rows, columns], image[rows, columns], depth[rows, columns])
            )
            error = (result[rows, columns].astype(np.float64) - image[rows, columns]) ** 2
            errors.append(float(error[depth[rows, columns] > 0].mean()))
            recent = [*recent[-2:], (result, image)]
            if len(recent) == 3:
                for name, images in zip(("result", "source"), zip(*recent, strict=True), strict=True):
                    first, middle, last = (picture[rows, columns].astype(np.float64) for picture in images)
                    change = first - 2 * middle + last
                    smooth = cv2.GaussianBlur(change, (0, 0), 2)
                    for band, values in (("flicker", smooth), ("grain_flicker", change - smooth)):
                        flicker.setdefault(f"{band} {name}", []).append(
                            float(np.abs(values[depth[rows, columns] > 0]).mean())
                        )
    scale = float(np.sqrt(np.abs(np.linalg.det(matrix[:, :2]))))
    return {
        **{name: float(np.nanmedian([asdict(fit)[name] for fit in fits])) for name in asdict(fits[0])},
        **{
            band: float(np.mean(flicker[f"{band} result"]) / np.mean(flicker[f"{band} source"]))
            for band in ("flicker", "grain_flicker")
        },
        **({} if generator is None else {"psnr": float(10 * np.log10(255**2 / np.mean(errors)))}),
        "frame_px_per_crop_px": 1 / scale,
        "frames": len(fits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--landmarker", type=Path, required=True)
    parser.add_argument("--run", type=find_network)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each video")
    parser.add_argument("--later", type=int, default=7, help="instants, of another mouth")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    generator = None
    if args.run is not None:
        params = Params().make_sample_params(args.run, steps=args.steps, guidance=args.guidance)
        generator = load_generator(args.run, params, select_device("cpu"), Execution())
    results = {}
    for video in args.videos:
        row = measure_video(plan_edit(video, args.seconds, args.landmarker), generator, args.later)
        results[str(video)] = row
        print(video.name, ", ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
