"""`vit models`: what is bundled, what is cached on this machine, what is worth having. No torch, no network."""

from dataclasses import asdict
from typing import Any

from vitcli.cli.console import document, row, stdout, table
from vitcli.cli.options import JsonOpt
from vitcli.text import by, safe


def models(json: JsonOpt = False) -> None:
    """List the checkpoints here, and some worth having."""
    from vitcli.checkpoint.catalog import list_models

    found = list_models()
    if json:
        document({"schema": "vit.models/1", "models": [asdict(model) for model in found]})
        return
    from rich.text import Text

    console = stdout()
    here = table("name", "", "classes", "size", "parameters", right=("classes", "size", "parameters"))
    for model in found:
        if model.kind != "suggestion":
            row(here, model.name, model.kind, model.num_classes or "", _size(model), _millions(model))
    console.print(here)
    console.print(Text("\non the Hub, downloaded when first used", style="dim"))
    for model in found:
        if model.kind == "suggestion":
            console.print(Text(safe(model.name)).append(f"\n    {safe(model.note)}", style="dim"))


def _size(model: Any) -> str:
    return by(model.image_size, "x") if model.image_size else ""


def _millions(model: Any) -> str:
    return f"{model.parameters / 1e6:.1f}M" if model.parameters else ""
