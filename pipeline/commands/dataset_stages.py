"""`pipeline clips`, `cut`, `landmarks`, `align`, `mels`, `speech` and `shard`: the dataset stages."""

from __future__ import annotations

import click

from pipeline.options import BuildRequest, stage_options


def _make_stage_command(name: str, text: str) -> click.Command:
    """The command that runs one stage."""

    @stage_options
    def run(request: BuildRequest) -> None:
        from pipeline.build import build_dataset

        build_dataset(request, (name,))

    resume = "Run again to continue where it stopped; what has not changed is not computed again."
    return click.command(name, help=f"{text}\n\n{resume}")(run)


clips = _make_stage_command(
    "clips", "List every file in --raw, read its facts, and write one row for each to WORK/clips.parquet."
)
cut = _make_stage_command(
    "cut",
    "Cut files into clips of one speaking face each, in sync with its voice, where --cut or `cut.enabled` "
    "asks for it. WORK/clips.parquet gets a row for every span of every file.",
)
landmarks = _make_stage_command(
    "landmarks", "Find 478 face points in every frame of every usable clip, at 25 fps."
)
align = _make_stage_command(
    "align", "Map each face to its canonical place: a matrix and a mask box for every frame."
)
mels = _make_stage_command(
    "mels", "Compute mel rows of each clip's sound, exactly two for every video frame."
)
speech = _make_stage_command(
    "speech",
    "Compute speech features of each clip's sound by the encoder that `speech.encoder` names, two rows for "
    "every video frame; nothing where it is none.",
)


@click.command("shard")
@click.option("--only", is_flag=True, help="Run no earlier stage; stop where one must run (for dvc.yaml).")
@stage_options
def shard(request: BuildRequest, only: bool) -> None:
    """Build shards from raw clips: run every stage whose output is missing or stale.

    Run again to continue where it stopped; what has not changed is not computed again. The shards are a
    plain WebDataset; `dataset.json` beside them is written last.
    """
    from pipeline.build import build_dataset
    from pipeline.dataset_stages import STAGES

    build_dataset(request, ("shard",) if only else tuple(STAGES))
