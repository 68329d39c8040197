"""`vit convert`: a Vision Transformer of another project becomes a checkpoint of ours."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcli.cli.options import ClassNamesOpt, DryRunOpt, JsonOpt
from vitcli.errors import UsageError
from vitcli.text import as_json, did_you_mean, safe

if TYPE_CHECKING:
    from vitcli.checkpoint.convert.result import Converted, Settings, Source

SourceArg = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A folder that transformers wrote, a .safetensors, .npz or PyTorch file, org/name on the Hub.",
    ),
]
ConvertedOpt = Annotated[
    str | None, typer.Option("--out", "-o", help="Folder for the checkpoint; not needed with --dry-run.")
]
PickleOpt = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read a .pth, .pt or .bin, in a process with limits: such files can run code."),
]
NoHeadOpt = Annotated[bool, typer.Option("--no-head", help="Leave the classifier out, keep the representation.")]
SaidOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="What the file does not say, as name=value: num_heads, act, norm_eps, img_size; mean, std, crop_pct, "
        "crop_mode, interpolation. May be repeated.",
    ),
]

_MEANS = {"classes": "", "labels": ", each judged by itself", "embedding": ", no classes", "quantities": ", no classes"}
_FACTS = ("num_heads", "act", "norm_eps", "img_size")
_PREPROCESS = ("mean", "std", "crop_pct", "crop_mode", "interpolation")


def convert(
    source: SourceArg,
    out: ConvertedOpt = None,
    allow_pickle: PickleOpt = False,
    no_head: NoHeadOpt = False,
    settings: SaidOpt = None,
    class_names: ClassNamesOpt = None,
    dry_run: DryRunOpt = False,
    json: JsonOpt = False,
) -> None:
    """Convert a ViT of transformers, the authors (.npz), DINO, DINOv2, DeiT, MAE, CLIP, SigLIP, open_clip, torchvision.

    What the file is, is found by its content. The result gives the original's numbers; what would not is refused.
    """
    from pathlib import Path

    from vitcli.checkpoint.convert.recognise import check_config
    from vitcli.checkpoint.convert.recognise import convert as recognise
    from vitcli.checkpoint.convert.source import open_source
    from vitcli.checkpoint.write import new_folder
    from vitcli.cli import console
    from vitcli.cli.console import downloads, waiting

    if out is None and not dry_run:
        raise UsageError("say where the checkpoint goes: --out FOLDER (or --dry-run)")
    folder = new_folder(out) if out is not None else None
    said = _said(settings or [], no_head, class_names)
    with downloads() as progress:
        original = open_source(source, allow_pickle=allow_pickle, progress=progress, check_config=check_config)
    converted, architecture = recognise(original, said)
    if not dry_run:
        from vitcli.checkpoint.convert.store import store

        assert folder is not None
        with waiting("writing the checkpoint"):
            store(converted, architecture, original, Path(folder))
    report = _report(original, converted, architecture, None if dry_run else str(folder))
    if json:
        print(as_json(report))
        return
    table = console.table("", "")
    table.show_header = False
    for name, value in _rows(report):
        console.row(table, name, value)
    console.stdout().print(table)
    for line in report["notes"]:
        console.note(line)
    if dry_run:
        console.note("dry run: nothing was written")
    else:
        from vitcli.checkpoint.card import use_command

        classifies = report["outputs"] in ("classes", "labels")
        console.note(f"use it: {use_command(str(folder), classifies=classifies)}")


def _said(assignments: list[str], no_head: bool, class_names: str | None) -> "Settings":
    from vitcli.checkpoint.convert.result import Settings
    from vitcli.checkpoint.model_args import checked_facts
    from vitcli.cli.settings import assigned

    values = assigned(assignments)
    for name in values:
        if name not in _FACTS + _PREPROCESS:
            raise UsageError(f"--set: no setting '{safe(name)}'.{did_you_mean(name, _FACTS + _PREPROCESS)}")
    facts = checked_facts({name: value for name, value in values.items() if name in _FACTS}, "--set")
    preprocess = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in _PREPROCESS}
    return Settings(facts, preprocess, head=not no_head, class_names=class_names)


def _report(source: "Source", converted: "Converted", architecture: str, folder: str | None) -> dict[str, Any]:
    """What --json prints."""
    from vitcli.checkpoint.convert.names import counted

    vit = converted.vit
    return {
        "schema": "vit.convert/1",
        "from": source.name,
        "checkpoint": folder,
        "family": converted.family,
        "architecture": architecture,
        "image_size": list(vit.img_size),
        "patch_size": list(vit.stride),
        "width": vit.embed_dim,
        "layers": vit.depth,
        "heads": vit.num_heads,
        "activation": vit.act if vit.mlp == "mlp" else vit.mlp,
        "norm_eps": vit.norm_eps,
        "pooling": vit.global_pool,
        "classes": vit.num_classes,
        "outputs": converted.outputs,
        "labels": list(converted.labels[:5]),
        "parameters": sum(array.size for array in converted.tensors.values()),
        "preprocessing": converted.preprocess.to_config(),
        "dropped": list(counted(converted.dropped)),
        "notes": [*source.notes, *converted.notes],
    }


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    size, patch, how = report["image_size"], report["patch_size"], report["preprocessing"]
    names = ", ".join(report["labels"]) or "without names"
    names += ", …" if 0 < len(report["labels"]) < report["classes"] else ""
    return [
        ("recognised", report["family"]),
        ("architecture", f"{report['architecture']}, {report['parameters'] / 1e6:.1f}M parameters"),
        ("image", f"{size[0]}×{size[1]} pixels, patches of {patch[0]}×{patch[1]}"),
        ("encoder", f"width {report['width']}, {report['layers']} layers, {report['heads']} heads"),
        ("arithmetic", f"{report['activation']}, epsilon {report['norm_eps']:g}, pooling: {report['pooling']}"),
        (
            "outputs",
            f"{report['classes']} ({names}){_MEANS[report['outputs']]}" if report["classes"] else "the representation",
        ),
        (
            "preprocessing",
            f"{how['crop_mode']}, crop {how['crop_pct']:.3g}, {how['interpolation']}, mean {how['mean']}",
        ),
        ("dropped", "; ".join(report["dropped"]) or "nothing"),
    ]
