"""Logits of labelled images in parts: what each of several processes does of an evaluation, and all of it read again.

Every image of the split is answered, whatever classes the model knows: those that do not count are left out later.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitcli.data.samples import Samples
from vitcli.errors import VitError
from vitcli.inference.embed import Embedding
from vitcli.inference.joining import join
from vitcli.inference.part_forms import VectorFiles, vectors_ending
from vitcli.inference.parts import difference
from vitcli.inference.predict import Model
from vitcli.inference.stream import Answer, Source
from vitcli.metrics import Labels
from vitcli.text import plural, safe


def logits_form(model: Model, folder: Path) -> VectorFiles:
    """How parts of the logits of `model` are kept in `folder`."""
    return VectorFiles((len(model.labels),), ending=vectors_ending(folder))


def logits_about(model: Model, exact: bool) -> dict[str, Any]:
    """What logits are made with."""
    return {**model.answers_about(), "schema": "vit.evaluate-part/1", "dtype": "float32", "exact": exact}


def logits_of(
    model: Model, sources: Iterator[Source], *, batch_size: int | None = None, exact: bool = False
) -> Iterator[Embedding]:
    """The logits of `model` as rows that can be kept."""
    for answer in model.answers(sources, batch_size=batch_size, exact=exact):
        yield Embedding(answer.name, answer.values, answer.error)


def kept_answers(folder: Path, model: Model, exact: bool, samples: Samples, wanted: Labels) -> Iterator[Answer]:
    """What the parts in `folder` say of the samples `wanted`, in their order.

    Raises VitError where they are not all there, or of another model or other images.
    """
    joined = join(folder, logits_form(model, folder))
    if differs := difference(joined.about, logits_about(model, exact), ("engine", "precision")):
        raise VitError(f"the parts in {safe(folder)} were made with {differs}")
    other = VitError(
        f"the parts in {safe(folder)} are of other images than this split's {plural(len(samples), 'image')}"
    )
    if joined.images != len(samples):
        raise other
    counts = set(wanted.tolist())
    for i, row in enumerate(joined.rows):
        if row.path != samples.name(i):
            raise other
        if i in counts:
            yield Answer(row.path, row.vector, row.error)
