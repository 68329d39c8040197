"""`vit bench`: how fast a model is here, and what it takes."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vitcli.cli.options import JsonOpt, OptionalCheckpointArg
from vitcli.errors import VitError
from vitcli.text import by, plural, safe

if TYPE_CHECKING:
    from vitcli.inference.bench import Cost

SecondsOpt = Annotated[float, typer.Option("--seconds", min=1, max=110, help="Time for all of it.")]


def bench(checkpoint: OptionalCheckpointArg = None, seconds: SecondsOpt = 110, json: JsonOpt = False) -> None:
    """Measure images a second and memory of each engine, precision and batch on this machine.

    Pixels are prepared before: decoding is not in the numbers. Marked is what `vit predict` takes by itself.
    """
    from vitcli.cli import console
    from vitcli.inference.bench import bench as measured
    from vitcli.machine import available_cpus, processor

    source = console.resolved(checkpoint)
    if checkpoint is None:
        console.note(source.why)
    with console.progress("measuring") as tell:
        costs = list(measured(source, seconds=seconds, tell=tell))
    if all(cost.error for cost in costs):
        raise VitError(f"nothing could be measured: {costs[0].error}")
    if json:
        head = {"schema": "vit.bench/1", "model": source.name, "image_size": list(source.preprocess.size)}
        machine = {"processor": processor(), "cores": available_cpus()}
        console.document({**head, **machine, "ways": list(map(_as_dict, costs))})
        return
    console.note(f"{safe(source.name)}, {by(source.preprocess.size)} pixels, {plural(available_cpus(), 'core')}")
    numbers = ("images", "images/s", "ms a call", "MiB")
    table = console.table("engine", "device", "precision", *numbers, "by default for", right=numbers)
    for cost in costs:
        console.row(table, cost.way.engine, cost.way.device, cost.way.precision, cost.way.batch, *_cells(cost))
    console.stdout().print(table)


def _as_dict(cost: "Cost") -> dict[str, object]:
    own = asdict(cost)
    return {**own.pop("way"), **own, "default_for": list(cost.default_for)}


def _cells(cost: "Cost") -> Iterator[str]:
    if cost.error is not None:
        yield from ("", "", "", cost.error)
        return
    yield f"{cost.images_per_second:.1f}"
    yield f"{cost.milliseconds:.1f}"
    yield "" if cost.memory is None else f"{cost.memory / 2**20:.0f}"
    yield " and ".join(cost.default_for)
