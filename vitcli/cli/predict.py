"""`vit predict`: what is in each image."""

import codecs
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitcli.cli.options import (
    CsvOpt,
    DeviceOpt,
    EngineOpt,
    EnginePrecisionOpt,
    ExactOpt,
    JsonlOpt,
    JsonOpt,
    ModelOpt,
    TogetherOpt,
)
from vitcli.errors import EXIT_SOME_FAILED, UsageError, VitError
from vitcli.text import safe, some

if TYPE_CHECKING:
    from vitcli.checkpoint.config import Checkpoint
    from vitcli.inference.predict import Model
    from vitcli.inference.stream import Stream

ImagesArg = Annotated[
    list[str] | None, typer.Argument(help="Files, folders, globs; - reads one image from standard input.")
]
TopOpt = Annotated[int, typer.Option("--top", "-k", min=1, help="Classes to show for each image.")]
FromFileOpt = Annotated[
    str | None, typer.Option("--from-file", help="Read paths from this file, one a line; - is standard input.")
]
RejectOpt = Annotated[
    str | None,
    typer.Option("--reject", help="Answer unknown to images less familiar than all but this share of the model's own."),
]
SetsOpt = Annotated[
    str | None, typer.Option("--sets", help="Also the set of classes that holds the truth so often: 90%.")
]
MOST_BYTES = 1 << 16  # of a line of such a list


def predict(
    images: ImagesArg = None,
    model: ModelOpt = None,
    top: TopOpt = 5,
    json: JsonOpt = False,
    jsonl: JsonlOpt = False,
    csv: CsvOpt = False,
    from_file: FromFileOpt = None,
    reject: RejectOpt = None,
    sets: SetsOpt = None,
    engine: EngineOpt = "auto",
    device: DeviceOpt = None,
    precision: EnginePrecisionOpt = "fp32",
    batch_size: TogetherOpt = None,
    exact: ExactOpt = False,
) -> None:
    """Name what is in each image.

    One bad file never stops the rest; the exit code is then 3.
    """
    if not images and not from_file:
        raise UsageError("name images: files, folders, globs, or - for standard input; see vit predict --help")
    if images and "-" in images and sys.stdin.isatty():
        raise UsageError("- reads an image from standard input, which is the terminal; pipe one in")
    if images and "-" in images and from_file == "-":
        raise UsageError("standard input holds an image or a list of paths, not both: name one of them as a file")
    if json + jsonl + csv > 1:
        raise UsageError("choose one of --json, --jsonl and --csv")
    from vitcli.cli.console import note, resolved
    from vitcli.cli.views import predictions as prediction_view
    from vitcli.images.find import find_images
    from vitcli.inference.predict import load

    checkpoint = resolved(model)
    for line in checkpoint.notes:
        note(line)
    if model is None:
        note(_what_was_taken(checkpoint))
    names = _lines(from_file, images or []) if from_file else images or []
    skipped: Counter[str] = Counter()
    sources = find_images(names, skipped=skipped, stdin=sys.stdin.buffer)
    first = next(sources, None)
    if first is None:
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "nothing else either"
        raise VitError(f"no images in {safe(' '.join(images or [from_file or '']))} ({left_out})")
    rejected, held = share(reject, "--reject"), share(sets, "--sets")
    loaded = load(checkpoint, engine=engine, precision=precision, device=device)
    refuse_batches(batch_size, loaded)
    if loaded.temperature != 1:
        note(f"probabilities are calibrated, temperature {loaded.temperature:g}")
    if checkpoint.outputs == "labels" and checkpoint.num_classes > 1:
        note("each label is judged by itself (multi-label): probabilities do not add up to 1")
    predictions = loaded.predict(
        chain([first], sources), top_k=top, batch_size=batch_size, exact=exact, reject=rejected, sets=held
    )
    said = prediction_view.Said(
        checkpoint,
        loaded.familiarity.facts.data if loaded.familiarity else None,
        rejects=rejected is not None,
        sets=held,
    )
    write = prediction_view.writer("json" if json else "jsonl" if jsonl else "csv" if csv else "table")
    if failed := write(predictions, said):
        note(f"{failed} of the images could not be read")
        raise typer.Exit(EXIT_SOME_FAILED)


def refuse_batches(batch_size: int | None, model: "Model | Stream") -> None:
    """Raises UsageError where `model`, however many images come, takes them one by one."""
    if batch_size is not None and model.choose(sys.maxsize).engine == "onnxruntime":
        raise UsageError(
            "--batch-size belongs to --engine torch; ONNX Runtime computes one image at a time, which is faster"
        )


def share(text: str | None, option: str) -> float | None:
    """5% and 0.05 are one share; None where nothing is asked. Raises UsageError."""
    if text is None:
        return None
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"{option} {safe(text, 40)}: write a share between 0 and 1, such as 5% or 0.05")
    return value


def _what_was_taken(checkpoint: "Checkpoint") -> str:
    if checkpoint.source != "bundled":
        return checkpoint.why
    more = "for photographs of 200 everyday things: -m photo-vit; for ImageNet's 1000 classes: -m imagenet"
    return f"{checkpoint.name} (bundled) knows {some(checkpoint.labels, 10)}; {more}"


def _lines(file: str, before: Iterable[str]) -> Iterator[str]:
    """Paths from a list that may be longer than memory, in whatever bytes the system's names have. Raises VitError."""
    yield from before
    with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as lines:
        where = "standard input" if file == "-" else safe(file)
        line = lines.readline(MOST_BYTES).removeprefix(codecs.BOM_UTF8)
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise VitError(f"{where}: a list in UTF-16; save it as UTF-8")
        while line:
            if len(line) == MOST_BYTES:
                raise VitError(f"{where}: not a list of paths: a line is longer than any path")
            if path := os.fsdecode(line.rstrip(b"\r\n")):
                # What follows on standard input are paths, not an image.
                yield "./-" if path == file == "-" else path
            line = lines.readline(MOST_BYTES)
