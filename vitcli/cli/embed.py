"""`vit embed`: what a model makes of each image before its head, as a file of vectors."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

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
    MergeOpt,
    ModelOpt,
    OnOpt,
    PartSizeOpt,
    ShardOpt,
    TogetherOpt,
)
from vitcli.cli.parts import (
    Work,
    computed_on,
    device_here,
    file_by_parts,
    refuse_shard,
    say_failed,
    several_need_a_file,
    shard_into,
)
from vitcli.cli.predict import images_named, refuse_batches, refuse_inputs
from vitcli.cli.settings import refuse, typed
from vitcli.errors import UsageError
from vitcli.text import by, plural, safe

if TYPE_CHECKING:
    from vitcli.inference.embed import Embedding
    from vitcli.inference.joining import Joined

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
    shard: ShardOpt = None,
    part_size: PartSizeOpt = None,
    merge: MergeOpt = None,
    on: OnOpt = None,
) -> None:
    """Turn images into vectors for search, clustering or a classifier of your own: a row an image, in order.

    With --data also its label and split. One bad file is a row with its error; the exit code is then 3.
    """
    if merge is not None:
        refuse(typed(embed, locals(), "merge", "out", "force"), "--merge joins what --shard made")
    elif data is None:
        refuse_inputs(images, from_file)
    elif images or from_file:
        raise UsageError("name images or --data, not both")
    if folders and not data:
        raise UsageError("--folders says what the folders of --data are, which is missing")
    refuse_shard(shard, out, part_size, file=True)
    if out is None:
        raise UsageError("--out is missing: a file ending in .parquet, .npz or .csv, or - for JSON lines")
    several_need_a_file(out)
    if on and out == "-":
        raise UsageError("--on computes for a file: name it with --out")
    from vitcli.cli.console import note, resolved, waiting
    from vitcli.data.sources import read_splits
    from vitcli.inference.embed import Embedder, Labelled, labelled_sources
    from vitcli.inference.part_forms import VectorFiles, part_bytes, vectors_ending
    from vitcli.inference.parts import SIZE
    from vitcli.inference.shards import parse_shard
    from vitcli.inference.stream import sources
    from vitcli.inference.vectors import check_path, check_shape, write_vectors

    path = Path(out)
    if out != "-" and shard is None:
        check_path(path)
        if path.exists() and not force:
            raise UsageError(f"{safe(path)} is there already; --force replaces it")
        if not path.parent.is_dir():
            raise UsageError(f"{safe(path.parent)}: no such folder")
    if merge is not None:
        _merged(Path(merge), out)
        return
    checkpoint = resolved(model)
    for line in checkpoint.notes:
        note(line)
    if model is None:
        note(checkpoint.why)
    embedder = Embedder(
        checkpoint, what=what, normalize=normalize, dtype=dtype, engine=engine, precision=precision,
        device=device_here(device, shard), batch_size=batch_size, exact=exact,
    )  # fmt: skip
    refuse_batches(batch_size, embedder)
    check_shape(path, embedder.shape)
    if data is None:
        items: Iterator[Labelled] = (Labelled(source) for source in sources(images_named(images, from_file)))
    else:
        splits = read_splits(data, folders=folders)
        for line in splits.notes:
            note(line)
        items = labelled_sources(splits)
    if out == "-":
        with waiting("computing vectors"):
            found = embedder.embeddings(items)
            written = write_vectors(sys.stdout, found, embedder.about(), embedder.shape, labelled=data is not None)
        say_failed(written.failed)
        return
    ending = vectors_ending(path) if shard else ".parquet" if path.suffix.lower() == ".parquet" else ".npz"
    rows = {"labelled": data is not None, "shape": embedder.shape and list(embedder.shape), "engine": embedder.settle()}
    work = Work(
        VectorFiles(embedder.shape, labelled=data is not None, ending=ending),
        {**embedder.about(), "rows": rows}, items, lambda item: item.name, embedder.embeddings, "computing vectors",
        part_size, part_bytes(embedder.shape, SIZE),
    )  # fmt: skip
    with computed_on(on, out, embedder.stream, {"--shard": shard, "--data": data}):
        if shard is not None:
            shard_into(path, work, parse_shard(shard))
        else:
            file_by_parts(path, work, lambda joined: _write_joined(joined, path))


def _merged(folder: Path, out: str) -> None:
    """All vectors of the parts in `folder` as one process would have given them."""
    from vitcli.inference.joining import join
    from vitcli.inference.part_forms import VectorFiles, vectors_ending

    joined = join(folder, VectorFiles(None, ending=vectors_ending(folder)))
    _write_joined(joined, sys.stdout if out == "-" else Path(out))
    say_failed(joined.failed)


def _write_joined(joined: "Joined[Embedding]", target: "Path | TextIO") -> None:
    from vitcli.cli.console import note
    from vitcli.inference.vectors import write_vectors

    about = dict(joined.about)
    rows = about.pop("rows")
    shape = rows["shape"] and tuple(rows["shape"])
    written = write_vectors(target, joined.rows, about, shape, labelled=rows["labelled"])
    if isinstance(target, Path):
        note(f"{plural(written.n, 'row')} of {by(written.shape)} {about['dtype']} in {safe(target)}")
