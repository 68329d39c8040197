"""`vit resize-posemb`: a checkpoint for another image size, grid or patch size."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcli.cli.options import CheckpointArg, FoldersOpt, JsonOpt, PosembKernelOpt
from vitcli.errors import UsageError
from vitcli.text import as_json, safe

if TYPE_CHECKING:
    from vitcli.checkpoint.config import Checkpoint
    from vitcli.checkpoint.resize import Resized
    from vitcli.data.samples import Samples
    from vitcli.model.resample import Positions

SizeOpt = Annotated[str | None, typer.Option("--size", "-s", help="Image size to fit: 384, or HxW such as 384x512.")]
GridOpt = Annotated[str | None, typer.Option("--grid", help="The same as patches: 24, or ROWSxCOLUMNS.")]
FromGridOpt = Annotated[
    str | None, typer.Option("--from-grid", help="The stored grid, where it is neither square nor said in the file.")
]
NewPatchOpt = Annotated[str | None, typer.Option("--patch-size", help="Resize the patches too: 14, or HxW.")]
ResizedOpt = Annotated[str, typer.Option("--out", "-o", help="Folder for the new checkpoint.")]
CheckOpt = Annotated[
    str | None, typer.Option("--check", help="Labelled images: accuracy before and after, through `vit evaluate`.")
]
PictureOpt = Annotated[
    str | None, typer.Option("--picture", help="Draw position similarity before and after to this .png or .svg.")
]


def resize_posemb(
    checkpoint: CheckpointArg,
    out: ResizedOpt,
    size: SizeOpt = None,
    grid: GridOpt = None,
    patch_size: NewPatchOpt = None,
    from_grid: FromGridOpt = None,
    posemb_kernel: PosembKernelOpt = None,
    check: CheckOpt = None,
    folders: FoldersOpt = None,
    picture: PictureOpt = None,
    json: JsonOpt = False,
) -> None:
    """Fit a checkpoint to another image size: position embeddings are resampled in 2-D, by their place in the image.

    Writes a full checkpoint, its preprocessing included, and reports what the positions lost.
    """
    from vitcli.checkpoint.resize import resize
    from vitcli.checkpoint.write import new_folder
    from vitcli.cli.console import note, resolved
    from vitcli.cli.settings import size as pair

    if not (size or grid or patch_size):
        raise UsageError("say what to resize to: --size, --grid or --patch-size")
    if size and grid:
        raise UsageError("--size and --grid are two ways to say the same; give one")
    if folders and not check:
        raise UsageError("--folders says what the folders of --check are, which is missing")
    folder = new_folder(out)
    source = resolved(checkpoint)
    for line in source.notes:
        note(line)
    if source.vit and not source.vit.num_pos_tokens and (posemb_kernel or from_grid):
        raise UsageError(
            f"{safe(source.name)} has no position embedding, so --posemb-kernel and --from-grid say nothing"
        )
    sizes: dict[str, Any] = {
        "img_size": pair(size, "--size"),
        "grid": pair(grid, "--grid"),
        "patch_size": pair(patch_size, "--patch-size"),
        "from_grid": pair(from_grid, "--from-grid"),
    }
    wishes = {name: (value[0], value[1]) for name, value in sizes.items() if value}
    if check and source.outputs != "classes":
        why = source.why_no_classes or "several of its labels may hold for one image (multi-label)"
        raise UsageError(f"--check scores classes, and of {safe(source.name)}: {why}")
    data = _labelled(check, folders) if check else None  # what is wrong with it is known before anything is written
    resized = resize(source, **wishes, kernel=posemb_kernel or "timm")
    if picture:
        _draw(resized, Path(picture))
    _write(resized, source, folder)
    report = _report(resized, source, folder)
    if data:
        report["accuracy"] = _check(source, folder, *data)
    if json:
        print(as_json(report))
    else:
        _show(report, classifies=source.why_no_classes is None)


def _write(resized: "Resized", source: "Checkpoint", folder: Path) -> None:
    from dataclasses import replace

    from vitcli.checkpoint.weights import stored_type
    from vitcli.checkpoint.write import save_model

    change = {
        "from": source.name,
        "grid": [list(p.grid) for p in (resized.before, resized.after) if p],
        "patch_size": [list(resized.patch_before), list(resized.model.config.patch_size)],
        "kernel": resized.kernel,
    }
    changes = [*source.provenance.get("resized", []), change]
    described = replace(
        source,
        preprocess=resized.preprocess,
        provenance={**source.provenance, "resized": changes},
        licence=None,  # of the original, whose name is in the provenance
    )
    save_model(folder, resized.model, described, dtype=stored_type(source))


def _report(resized: "Resized", source: "Checkpoint", folder: Path) -> dict[str, Any]:
    """What --json prints."""

    def positions(found: "Positions | None") -> dict[str, Any] | None:
        return None if found is None else {"grid": list(found.grid), "neighbours": found.neighbours, "far": found.far}

    before = source.vit
    assert before is not None
    return {
        "schema": "vit.resize-posemb/1",
        "from": source.name,
        "checkpoint": str(folder),
        "kernel": resized.kernel,
        "image_size": [list(before.img_size), list(resized.model.config.img_size)],
        "patch_size": [list(resized.patch_before), list(resized.model.config.patch_size)],
        "positions": [positions(resized.before), positions(resized.after)],
        "round_trip_error": resized.round_trip,
    }


def _show(report: dict[str, Any], classifies: bool) -> None:
    from vitcli.checkpoint.card import use_command
    from vitcli.cli import console

    def by(size: list[int]) -> str:
        return f"{size[0]}×{size[1]}"

    def cosine(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    table = console.table("", "before", "after", right=("before", "after"))
    console.row(table, "image, pixels", *map(by, report["image_size"]))
    console.row(table, "patch, pixels", *map(by, report["patch_size"]))
    before, after = report["positions"]
    if before and after:
        console.row(table, "grid, patches", by(before["grid"]), by(after["grid"]))
        console.row(table, "similarity of neighbours", cosine(before["neighbours"]), cosine(after["neighbours"]))
        console.row(table, "similarity half the image apart", cosine(before["far"]), cosine(after["far"]))
        console.row(table, "changed, there and back", "", f"{report['round_trip_error']:.1%}")
        console.row(table, "kernel", "", report["kernel"])
    for name, value in report.get("accuracy", {}).items():
        console.row(table, name, *(f"{share:.4f}" for share in value))
    console.stdout().print(table)
    if report["round_trip_error"] is None:
        console.note("the model has no position embedding: only its sizes changed")
    console.note(f"use it: {use_command(report['checkpoint'], classifies=classifies)}")


def _labelled(data: str, folders: str | None) -> tuple["Samples", tuple[str, ...]]:
    """The images that `--check` scores, and the names of their classes."""
    from vitcli.cli.console import data_opened

    found = data_opened(data, val_fraction=0.0, folders=folders)
    return found.test or (found.val if len(found.val) else found.train), found.classes


def _check(source: "Checkpoint", folder: Path, samples: "Samples", classes: tuple[str, ...]) -> dict[str, list[float]]:
    """Accuracy of the checkpoint before and after, on labelled images."""
    from vitcli.inference.evaluate import evaluate

    models = (source, str(folder))
    return {f"accuracy of {len(samples)} images": [evaluate(m, samples, classes).measures.top1 for m in models]}


def _draw(resized: "Resized", path: Path) -> None:
    if resized.tiles is None or resized.before is None or resized.after is None:
        raise UsageError("--picture: the model has no position embedding to draw")
    from vitcli.report.figures import save, similarity_figure

    grids = (resized.before.grid, resized.after.grid)
    pairs = [(tiles.numpy(), grid) for tiles, grid in zip(resized.tiles, grids, strict=True)]
    save(similarity_figure(pairs, ("before", "after")), path)
