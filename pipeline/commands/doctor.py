"""`pipeline doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say in ten lines what this machine has for redub, and what to do about what is missing.

    Versions, libraries, extras, processor, GPU, ffmpeg, model files, disk. Asks no network, and loads PyTorch
    only to ask it about a GPU. Exits with 1 when something is missing that `pipeline edit` needs; what it
    downloads by itself is not.
    """
    from pipeline.doctor import examine_machine

    findings = examine_machine()
    can_edit = all(finding.status != "MISSING" for finding in findings)
    if as_json:
        click.echo(json.dumps({"can_edit": can_edit, "findings": list(map(asdict, findings))}, indent=1))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            for line in finding.format_lines(width):
                click.echo(line)
    ctx.exit(0 if can_edit else 1)
