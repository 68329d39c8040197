"""`vit pack`: a data set as tar shards."""

from typing import Annotated

import typer

from vitcli.cli.options import DataArg, FoldersOpt, JsonOpt
from vitcli.errors import EXIT_SOME_FAILED
from vitcli.text import plural, safe

OutArg = Annotated[str, typer.Argument(help="Folder for the shards; one that a killed pack left is gone on with.")]
ShrinkOpt = Annotated[
    int | None, typer.Option("--size", min=16, help="Make images smaller that have more pixels on their shorter side.")
]
ShardsOpt = Annotated[
    int | None, typer.Option("--shards", min=1, help="How many archives, about; by default of 256 MiB each.")
]


def pack(
    data: DataArg,
    out: OutArg,
    size: ShrinkOpt = None,
    shards: ShardsOpt = None,
    folders: FoldersOpt = None,
    json: JsonOpt = False,
) -> None:
    """Write a data set to tar shards (WebDataset's layout) that --data reads in any order, from a disk or a store.

    Order, labels and splits stay, and without --size every byte of the images, so that a run on the shards is the run
    on the folder, bit for bit. Started again after a stop it goes on. Exit code 3: images that could not be read are
    left out.
    """
    from vitcli.cli import console
    from vitcli.data.pack import pack as write

    with console.progress() as bar:
        done = write(data, out, size=size, shards=shards, folders=folders, progress=bar)
    if json:
        console.document({
            "schema": "vit.packed/1", "folder": str(done.folder), "images": done.images, "shards": done.shards,
            "kept": done.kept, "bytes": done.bytes, "left_out": list(done.left_out),
        })  # fmt: skip
    else:
        before = f", {done.kept} of them there already" if done.kept else ""
        images = ", ".join(f"{count} {split}" for split, count in done.images.items())
        console.note(
            f"{safe(done.folder)}: {images}, {done.bytes / 2**20:.1f} MiB in {plural(done.shards, 'shard')}{before}"
        )
    for one in done.left_out[:5]:
        console.note(f"left out: {one}")
    if done.left_out:
        console.note(f"{plural(len(done.left_out), 'image')} could not be read")
        raise typer.Exit(EXIT_SOME_FAILED)
