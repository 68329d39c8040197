"""`vit similar`: the pictures that are most like another one, and pictures that are there more than once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitcli.cli.options import DeviceOpt, EngineOpt, ForceOpt, FromFileOpt, JsonOpt, ModelOpt
from vitcli.cli.predict import images_named, refuse_inputs
from vitcli.cli.settings import new_file
from vitcli.errors import EXIT_SOME_FAILED, UsageError, VitError
from vitcli.text import plural, safe

if TYPE_CHECKING:
    from vitcli.checkpoint.config import Checkpoint
    from vitcli.inference.evaluate import Unreadable
    from vitcli.inference.similar import Source
    from vitcli.inference.stored_vectors import Stored

AmongArg = Annotated[
    str, typer.Argument(help="A folder or an archive of images, or a file of vit embed: .parquet, .npz, .csv.")
]
QueriesArg = Annotated[
    list[str] | None, typer.Argument(help="Images to find the like of: files, folders, globs; - is standard input.")
]
NearestOpt = Annotated[int | None, typer.Option("-k", min=1, help="Neighbours of each; 5 by default.")]
DuplicatesOpt = Annotated[
    float | None,
    typer.Option("--duplicates", help="Instead: groups of images whose cosine is this or more, such as 0.97."),
]
SheetOpt = Annotated[str | None, typer.Option("--html", help="Write a page with the pictures to this file.")]
NEIGHBOURS = 5


def similar(
    among: AmongArg,
    queries: QueriesArg = None,
    k: NearestOpt = None,
    duplicates: DuplicatesOpt = None,
    model: ModelOpt = None,
    from_file: FromFileOpt = None,
    json: JsonOpt = False,
    html: SheetOpt = None,
    force: ForceOpt = False,
    engine: EngineOpt = "auto",
    device: DeviceOpt = None,
) -> None:
    """Find the pictures that are most like another, or those that are there more than once.

    By the cosine of a model's vectors, exactly. Vectors of a folder are kept in the cache, by the images' content.
    """
    if duplicates is None:
        refuse_inputs(queries, from_file)
    elif queries or from_file or k is not None:
        raise UsageError("--duplicates compares the images with one another: no queries and no -k")
    sheet = new_file(html, "--html", (".html", ".htm"), force) if html else None
    from vitcli.cli.console import note, progress, resolved
    from vitcli.cli.views import similar as view
    from vitcli.inference.embed import Embedder
    from vitcli.inference.folder_vectors import folder_vectors, query_vectors
    from vitcli.inference.similar import duplicates as groups_of
    from vitcli.inference.similar import neighbours, too_many, write_for_index
    from vitcli.inference.stored_vectors import open_vectors
    from vitcli.storage.named import is_address, is_pattern
    from vitcli.storage.tar import is_tar

    elsewhere = is_address(among) or is_pattern(among) or is_tar(among)
    stored = None if elsewhere or Path(among).is_dir() else open_vectors(Path(among))
    if stored and too_many(stored):
        path = stored.path.with_suffix(".index.npy")
        if path.exists() and not force:
            raise UsageError(f"{safe(path)} is there already; --force replaces it")
        write_for_index(stored, path)
        raise VitError(
            f"{stored.n} vectors are too many to look at each; {safe(path)} has them for an index library: faiss, "
            "usearch and hnswlib read it with numpy.load, and the names are beside it in .txt"
        )
    if duplicates is not None and stored:
        if model:
            raise UsageError("the vectors are there already: no --model")
        view.show_groups(groups_of(stored, duplicates), duplicates, json=json, sheet=sheet)
        return
    checkpoint = resolved(model or (_maker(stored) if stored else None))
    if model is None and not stored:
        note(checkpoint.why)
    said = _said(stored, checkpoint) if stored else {}
    embedder = Embedder(checkpoint, engine=engine, device=device, **said)  # type: ignore[arg-type]
    failed: list[Unreadable] = []
    if stored:
        source: Source = stored
    else:
        with progress("vectors") as bar:
            source, failed = folder_vectors(among, embedder, bar)
    if duplicates is not None:
        view.show_groups(groups_of(source, duplicates), duplicates, json=json, sheet=sheet)
    else:
        names, vectors, unread = query_vectors(images_named(queries, from_file), embedder)
        found = neighbours(source, vectors, k or NEIGHBOURS)
        failed = [*failed, *unread]
        view.show_neighbours(names, found, failed, json=json, sheet=sheet)
    for one in failed[:5]:
        note(f"left out: {one.error}")
    if failed:
        note(f"{plural(len(failed), 'image')} could not be read")
        raise typer.Exit(EXIT_SOME_FAILED)


def _maker(stored: "Stored") -> str:
    """The name of the model that made the vectors, where it means the same everywhere. Raises UsageError."""
    name = str(stored.about["model"])
    if stored.about.get("source") not in ("bundled", "hub"):
        raise UsageError(f"{safe(stored.path)} was made with {safe(name)}: say where that checkpoint is with -m")
    return name


def _said(stored: "Stored", checkpoint: "Checkpoint") -> dict[str, object]:
    """How the vectors were made, so that queries are made alike. Raises UsageError for other weights."""
    from vitcli.checkpoint.weights import weights_digest

    about = stored.about
    if weights_digest(checkpoint) != about["sha256"]:
        made = f"it was made with {safe(about['model'])}: name that with -m"
        raise UsageError(
            f"{safe(stored.path)} has vectors of other weights than those of {safe(checkpoint.name)}; {made}"
        )
    said = about.get("precision")
    precision = said if said in ("int8", "bf16", "fp16") else "fp32"
    return {"what": about["what"], "precision": precision, "exact": about.get("exact") is True}
