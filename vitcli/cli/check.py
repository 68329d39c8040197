"""`vit check`: a data set before hours are spent on it."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vitcli.cli import console
from vitcli.cli.options import DataArg, DeviceOpt, FoldersOpt, ForceOpt, JsonOpt
from vitcli.cli.settings import new_file, refuse
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import plural, safe

JudgeArg = Annotated[
    str | None,
    typer.Argument(help="With --labels: whose features judge, as for vit predict -m; or a run."),
]
NearOpt = Annotated[
    bool,
    typer.Option(
        "--near/--no-near",
        help="Look for nearly equal pictures, too, by their pixels; crops and recolourings: vit similar --duplicates.",
    ),
]
LabelsOpt = Annotated[
    bool,
    typer.Option("--labels", help="Instead: which labels are probably wrong, by what the other images have learnt."),
]
ManifestOpt = Annotated[
    str | None,
    typer.Option("--out", "-o", help="With --labels: write all images as a CSV to review, which --data then takes."),
]
DoubtsPageOpt = Annotated[
    str | None, typer.Option("--html", help="With --labels: write a page of the pictures in doubt.")
]


def check(
    data: DataArg,
    model: JudgeArg = None,
    labels: LabelsOpt = False,
    out: ManifestOpt = None,
    html: DoubtsPageOpt = None,
    force: ForceOpt = False,
    near: NearOpt = True,
    folders: FoldersOpt = None,
    device: DeviceOpt = None,
    json: JsonOpt = False,
) -> None:
    """Look through a data set: counts, damaged files, duplicates, leaks between splits, images that surprise.

    Exit code 3 when something would spoil a measurement. With --labels a model's features say which labels to doubt,
    and exit code 3 means that images could not be read. No file of the data is changed.
    """
    if labels:
        refuse({"--no-near": not near}, "--labels compares no pixels")
        _labels(data, model, out, html, force, folders, device, json)
        return
    of_labels = {"a model": model, "--out": out, "--html": html, "--force": force, "--device": device}
    refuse(of_labels, "only --labels asks a model and writes files")
    from vitcli.cli.views.dataset import show
    from vitcli.data.check import check as look

    with console.progress() as bar:
        report = look(data, near=near, folders=folders, progress=bar)
    if json:
        content = {"schema": "vit.check/1", **asdict(report), "root": str(report.root), "spoiled": report.spoiled}
        console.document(content)
    else:
        show(report)
    sys.stdout.flush()
    if report.spoiled:
        console.note("something here would spoil a measurement")
        raise typer.Exit(EXIT_SOME_FAILED)


def _labels(
    data: str,
    model: str | None,
    out: str | None,
    html: str | None,
    force: bool,
    folders: str | None,
    device: str | None,
    json: bool,
) -> None:
    manifest = new_file(out, "--out", (".csv",), force) if out else None
    sheet = new_file(html, "--html", (".html", ".htm"), force) if html else None
    if manifest and manifest.exists() and Path(data).exists() and manifest.samefile(data):
        raise UsageError(f"--out {safe(manifest)} is the data itself, which nothing here changes: choose another name")
    from vitcli.cli.views import doubts as view
    from vitcli.data.sources import read_splits
    from vitcli.training.doubts import doubts, write_manifest
    from vitcli.training.start import bundled_for

    named = console.resolved(model) if model else None  # a wrong name is told before the data are read
    found = read_splits(data, folders=folders)
    if manifest and found.kind == "idx":
        raise UsageError("--out lists files, and the images of IDX files are none: --html shows them")
    for line in found.notes:
        console.note(line)
    some = next((samples for samples in found.named.values() if len(samples)), None)
    judge = named or console.resolved(None, bundled=bundled_for(some) if some else None)
    if named is None:
        console.note(judge.why)
    with console.progress("features") as bar:
        result = doubts(judge, found, device=device, progress=bar)
    view.show(result, found, json=json)
    if sheet:
        view.write_sheet(result, found, sheet)
        console.note(f"pictures: {safe(sheet)}")
    if manifest:
        left_out = write_manifest(result, manifest)
        console.note(f"to review: {safe(manifest)}; correct its column label, then use it with --data")
        if left_out:
            console.note(f"not in it, for their names are not UTF-8: {plural(left_out, 'image')}")
    sys.stdout.flush()
    for one in result.failed[:5]:
        console.note(f"left out: {one.error}")
    if result.failed:
        console.note(f"{plural(len(result.failed), 'image')} could not be read")
        raise typer.Exit(EXIT_SOME_FAILED)
