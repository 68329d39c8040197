"""`vit embed`: what a model makes of each image before its head, as a file of vectors."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from vitcli.cli.options import (
    DataOpt,
    DeviceOpt,
    EngineOpt,
    EnginePrecisionOpt,
    ExactOpt,
    FoldersOpt,
    ForceOpt,
    FromFileOpt,
    ImagesArg,
    ModelOpt,
    TogetherOpt,
)
from vitcli.cli.predict import images_named, refuse_batches, refuse_inputs
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import by, plural, safe

VectorsOpt = Annotated[
    str | None, typer.Option("--out", "-o", help="File for the vectors: .parquet, .npz or .csv; - prints JSON lines.")
]
WhatOpt = Annotated[
    str,
    typer.Option(
        "--what", help="pre_logits (what the head sees), class, mean (of the patches), patches, or blocks.0 and so on."
    ),
]
NormalizeOpt = Annotated[bool, typer.Option("--normalize", help="Vectors of length 1.")]
DtypeOpt = Annotated[Literal["float32", "float16"], typer.Option("--dtype", help="How values are kept.")]


def embed(
    images: ImagesArg = None,
    model: ModelOpt = None,
    out: VectorsOpt = None,
    data: DataOpt = None,
    folders: FoldersOpt = None,
    from_file: FromFileOpt = None,
    what: WhatOpt = "pre_logits",
    normalize: NormalizeOpt = False,
    dtype: DtypeOpt = "float32",
    force: ForceOpt = False,
    engine: EngineOpt = "auto",
    device: DeviceOpt = None,
    precision: EnginePrecisionOpt = "fp32",
    batch_size: TogetherOpt = None,
    exact: ExactOpt = False,
) -> None:
    """Turn images into vectors for search, clustering or a classifier of your own: a row an image, in order.

    With --data also its label and split. One bad file is a row with its error; the exit code is then 3.
    """
    if data is None:
        refuse_inputs(images, from_file)
    elif images or from_file:
        raise UsageError("name images or --data, not both")
    if folders and not data:
        raise UsageError("--folders says what the folders of --data are, which is missing")
    if out is None:
        raise UsageError("--out is missing: a file ending in .parquet, .npz or .csv, or - for JSON lines")
    from vitcli.cli.console import note, resolved, waiting
    from vitcli.data.sources import read_splits
    from vitcli.inference.embed import Embedder
    from vitcli.inference.vectors import check_path, write_vectors

    path = Path(out)
    if out != "-":
        check_path(path)
        if path.exists() and not force:
            raise UsageError(f"{safe(path)} is there already; --force replaces it")
        if not path.parent.is_dir():
            raise UsageError(f"{safe(path.parent)}: no such folder")
    checkpoint = resolved(model)
    for line in checkpoint.notes:
        note(line)
    if model is None:
        note(checkpoint.why)
    embedder = Embedder(
        checkpoint, what=what, normalize=normalize, dtype=dtype, engine=engine, precision=precision, device=device,
        batch_size=batch_size, exact=exact,
    )  # fmt: skip
    refuse_batches(batch_size, embedder)
    if data is None:
        found = embedder.of(images_named(images, from_file))
    else:
        splits = read_splits(data, folders=folders)
        for line in splits.notes:
            note(line)
        found = embedder.of_splits(splits)
    with waiting("computing vectors"):
        target = sys.stdout if out == "-" else path
        written = write_vectors(target, found, embedder.about(), embedder.shape, labelled=data is not None)
    if out != "-":
        note(f"{plural(written.n, 'row')} of {by(written.shape)} {dtype} in {safe(path)}")
    if written.failed:
        note(f"{written.failed} of the images could not be read")
        raise typer.Exit(EXIT_SOME_FAILED)
