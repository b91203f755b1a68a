"""The command group. Commands are loaded when called, so ``--help`` does not wait for MediaPipe."""

from __future__ import annotations

import importlib

import click

# name -> (module below pipeline.commands, what --help says of it)
COMMANDS = {
    "fetch": "Bring a corpus from its publisher, or a part of it, each file checked.",
    "synth": "Make a corpus of talking clips with known truth.",
    "clips": "Stage 1: find every file and read its facts.",
    "landmarks": "Stage 2: 478 face points for every frame.",
    "align": "Stage 3: crop matrices and mask boxes.",
    "mels": "Stage 4: two mel rows for every frame.",
    "shard": "Stage 5, and whatever is missing before it: raw clips to shards.",
    "train": "Stage 6: a network from shards, on one GPU or many.",
    "sample": "Stage 7: a split's clips, drawn anew to their own or another speech.",
    "evaluate": "Stage 8: figures of what was drawn, beside the truth and baselines.",
    "report": "Stage 9: one page that shows the data, the training and the results.",
    "edit": "Make the person in a video say what is heard in a recording.",
    "app": "The same on a page in the browser.",
    "verify": "Check that a dataset is whole and right.",
    "explain": "What became of a clip, at which stage, and why.",
    "diff": "What two datasets differ in.",
    "prune": "Remove what older datasets left in a bucket.",
    "preview": "Look into a dataset: a contact sheet, or a clip as video.",
}


class LazyGroup(click.Group):
    """Knows the names; imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pipeline.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redub", prog_name="pipeline")
def cli() -> None:
    """Raw talking-face video to shards to train on: redub.

    `pipeline shard --dataset crema-d` does all that is missing, from raw clips to shards.
    """


def main() -> None:
    cli(prog_name="pipeline")


if __name__ == "__main__":
    main()
