"""`vit predict`: what is in each image."""

import codecs
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcli.cli.options import (
    ClassNamesOpt,
    CsvOpt,
    DeviceOpt,
    EngineOpt,
    EnginePrecisionOpt,
    ExactOpt,
    ForceOpt,
    FromFileOpt,
    ImagesArg,
    JsonlOpt,
    JsonOpt,
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
from vitcli.cli.settings import new_file, refuse, typed
from vitcli.errors import UsageError, VitError
from vitcli.text import plural, safe

if TYPE_CHECKING:
    from vitcli.checkpoint.config import Checkpoint
    from vitcli.images.find import ImageSource
    from vitcli.inference.embed import Embedder
    from vitcli.inference.joining import Joined
    from vitcli.inference.predict import Model, Prediction
    from vitcli.inference.stream import Stream

TopOpt = Annotated[
    int | None,
    typer.Option("--top", "-k", min=1, help="Classes for each image; 5, or every label above its threshold."),
]
RejectOpt = Annotated[
    str | None,
    typer.Option("--reject", help="Answer unknown to images less familiar than all but this share of the model's own."),
]
SetsOpt = Annotated[
    str | None, typer.Option("--sets", help="Also the set of classes that holds the truth so often: 90%.")
]
ResultOpt = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        help="File for all of it, .jsonl, .json or .csv, gone on with after a stop; or the folder of --shard or --why.",
    ),
]
FORMS = (".jsonl", ".json", ".csv")
WhyOpt = Annotated[
    bool, typer.Option("--why", help="Draw what in each image spoke for its first class, over the picture.")
]
WhyClassOpt = Annotated[
    str | None, typer.Option("--why-class", help="With --why: for this class, whatever the answer.")
]
MOST_BYTES = 1 << 16  # of a line of such a list


def predict(
    images: ImagesArg = None,
    model: ModelOpt = None,
    top: TopOpt = None,
    json: JsonOpt = False,
    jsonl: JsonlOpt = False,
    csv: CsvOpt = False,
    out: ResultOpt = None,
    force: ForceOpt = False,
    from_file: FromFileOpt = None,
    reject: RejectOpt = None,
    sets: SetsOpt = None,
    why: WhyOpt = False,
    why_class: WhyClassOpt = None,
    engine: EngineOpt = "auto",
    device: DeviceOpt = None,
    precision: EnginePrecisionOpt = "auto",
    batch_size: TogetherOpt = None,
    exact: ExactOpt = False,
    class_names: ClassNamesOpt = None,
    shard: ShardOpt = None,
    part_size: PartSizeOpt = None,
    merge: MergeOpt = None,
    on: OnOpt = None,
) -> None:
    """Name what is in each image.

    One bad file never stops the rest; the exit code is then 3.
    """
    if json + jsonl + csv > 1:
        raise UsageError("choose one of --json, --jsonl and --csv")
    form = "json" if json else "jsonl" if jsonl else "csv" if csv else None
    if form and out is not None and not why:
        raise UsageError(f"--{form} is of standard output; the ending of --out says the form of a file")
    if merge is not None:
        other = typed(predict, locals(), "merge", "json", "jsonl", "csv", "out", "force")
        refuse(other, "--merge joins what --shard made")
        _merged(Path(merge), form or "jsonl", out, force)
        return
    refuse_inputs(images, from_file)
    if why:
        refuse({"--shard": shard, "--part-size": part_size, "--force": force}, "--why draws a few images, in a folder")
        if precision == "int8":
            raise UsageError("--why explains the model as it is, not as --precision int8 rounds it: leave one out")
    elif why_class is not None:
        raise UsageError("--why-class goes with --why; without it, it would change nothing")
    else:
        refuse_shard(shard, out, part_size, file=True)
        several_need_a_file(out)
    path = None if shard or why or out is None else new_file(out, "--out", FORMS, force)
    from vitcli.checkpoint.naming import named
    from vitcli.cli.console import note, resolved
    from vitcli.cli.views import predictions as prediction_view
    from vitcli.inference.predict import load

    checkpoint = named(resolved(model), class_names)
    for line in checkpoint.notes:
        note(line)
    if model is None:
        note(_what_was_taken(checkpoint))
    found = images_named(images, from_file)
    rejected, held = share(reject, "--reject"), share(sets, "--sets")
    explainer = None
    if why:
        from vitcli.cli.why import Why

        explainer = Why(checkpoint, found, label=why_class, out=out, device=device, exact=exact)
        found = iter(explainer.images)
    loaded = load(checkpoint, engine=engine, precision=precision, device=device_here(device, shard))
    refuse_batches(batch_size, loaded)
    if loaded.temperature != 1:
        note(f"probabilities are calibrated, temperature {loaded.temperature:g}")
    if checkpoint.outputs == "labels" and checkpoint.num_classes > 1:
        which = "; those above their thresholds are shown" if loaded.thresholds and top is None else ""
        note(f"each label is judged by itself (multi-label): probabilities do not add up to 1{which}")
    wishes: dict[str, Any] = {"top_k": top, "exact": exact, "reject": rejected, "sets": held}
    with computed_on(on, out, loaded.stream, {"--shard": shard, "--why": why}):
        if out is not None and not why:
            _in_parts(loaded, found, wishes, batch_size, path or Path(out), shard, part_size)
            return
    predictions = loaded.predict(found, batch_size=batch_size, **wishes)
    said = prediction_view.Said(
        checkpoint,
        loaded.familiarity.facts.data if loaded.familiarity else None,
        rejects=rejected is not None,
        sets=held,
        why=why,
        page=explainer.page if explainer else None,
    )
    if explainer:
        predictions = explainer.explained(predictions)
    write = prediction_view.writer(form or "table")
    say_failed(write(predictions, said))


def _in_parts(
    model: "Model",
    found: "Iterator[ImageSource]",
    wishes: dict[str, Any],
    batch_size: int | None,
    out: Path,
    shard: str | None,
    size: int | None,
) -> None:
    """Predictions into the file `out`, or those of a shard into that folder."""
    from vitcli.inference.part_forms import PredictionLines
    from vitcli.inference.parts import SIZE
    from vitcli.inference.shards import parse_shard
    from vitcli.inference.stream import sources

    work = Work(
        PredictionLines(), model.about(**wishes), sources(found), lambda source: source.name,
        lambda left: model.predict(left, batch_size=batch_size, **wishes), "naming what is in the images",
        size, SIZE,
    )  # fmt: skip
    if shard is not None:
        shard_into(out, work, parse_shard(shard))
    else:
        file_by_parts(out, work, lambda joined: _write_joined(joined, out.suffix.lower()[1:], out))


def _merged(folder: Path, form: str, out: str | None, force: bool) -> None:
    """All predictions of the parts in `folder` as one process would have given them."""
    from vitcli.inference.joining import join
    from vitcli.inference.part_forms import PredictionLines

    path = None if out is None else new_file(out, "--out", FORMS, force)
    joined = join(folder, PredictionLines())
    failed = _write_joined(joined, path.suffix.lower()[1:] if path else form, path)
    say_failed(failed)


def _write_joined(joined: "Joined[Prediction]", form: str, path: Path | None) -> int:
    """How many of them failed."""
    from vitcli.cli.console import note
    from vitcli.cli.views.predictions import Described, Said, writer
    from vitcli.files import replacing

    about = joined.about
    model = Described(about["name"], about["revision"], about["outputs"])
    said = Said(model, "" if about["familiarity"] else None, about["reject"] is not None, about["sets"])
    if path is None:
        return writer(form)(joined.rows, said)
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
        with redirect_stdout(text):
            failed = writer(form)(joined.rows, said)
        text.detach()
    note(f"{plural(joined.images, 'image')} in {safe(path)}")
    return failed


def refuse_inputs(images: list[str] | None, from_file: str | None) -> None:
    """Raises UsageError for `images` and a list `from_file` that cannot both be read, and where there is neither."""
    if not images and not from_file:
        raise UsageError("name images: files, folders, globs, or - for standard input; see --help")
    if images and "-" in images and sys.stdin.isatty():
        raise UsageError("- reads an image from standard input, which is the terminal; pipe one in")
    if images and "-" in images and from_file == "-":
        raise UsageError("standard input holds an image or a list of paths, not both: name one of them as a file")


def images_named(images: list[str] | None, from_file: str | None) -> "Iterator[ImageSource]":
    """The images that arguments and list name, as they come. Raises VitError where there are none."""
    from vitcli.images.find import find_images

    names = _lines(from_file, images or []) if from_file else images or []
    skipped: Counter[str] = Counter()
    found = find_images(names, skipped=skipped, stdin=sys.stdin.buffer)
    first = next(found, None)
    if first is None:
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "nothing else either"
        raise VitError(f"no images in {safe(' '.join(images or [from_file or '']))} ({left_out})")
    return chain([first], found)


def refuse_batches(batch_size: int | None, model: "Model | Stream | Embedder") -> None:
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
    known = f"{checkpoint.num_classes} kinds of animals and things, such as {', '.join(checkpoint.labels[:3])}"
    return f"{checkpoint.name} (bundled) knows {known}; for ImageNet's 1000 classes: -m imagenet"


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
