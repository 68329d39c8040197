"""`vit models`: what is bundled, what is cached on this machine, what is worth having. No torch, no network."""

import json as json_format
from dataclasses import asdict
from typing import Any

from vitcli.cli.options import JsonOpt


def models(json: JsonOpt = False) -> None:
    """List the checkpoints here, and some worth having."""
    from vitcli.checkpoint.catalog import list_models

    found = list_models()
    if json:
        print(json_format.dumps({"schema": "vit.models/1", "models": [asdict(model) for model in found]}))
        return
    from vitcli.cli.console import row, stdout, table

    console = stdout()
    grid = table("name", "classes", "size", "parameters", right=("classes", "size", "parameters"))
    headings = {
        "bundled": "bundled",
        "cached": "on this machine",
        "suggestion": "on the Hub, downloaded when first used",
    }
    for kind, heading in headings.items():
        of_kind = [model for model in found if model.kind == kind]
        if not of_kind:
            continue
        row(grid, heading, "", "", "", style="bold")
        for model in of_kind:
            row(grid, "  " + model.name, model.num_classes or "", _size(model), _millions(model))
            if model.note:
                row(grid, "    " + model.note, "", "", "", style="dim")
    console.print(grid)


def _size(model: Any) -> str:
    return "x".join(map(str, model.image_size)) if model.image_size else ""


def _millions(model: Any) -> str:
    return f"{model.parameters / 1e6:.1f}M" if model.parameters else ""
