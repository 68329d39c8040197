"""What a recipe leaves open (`amp`, `micro_batch`, `compile`), decided for the machine that trains.

A run decides once, before it begins, and keeps that in run.json: what goes on elsewhere goes on as it began.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitcli.machine import best_precision, emulated, on_cpu
from vitcli.training.recipe import Recipe, override

OF_THE_MACHINE = ("amp", "micro_batch", "compile")  # what differs between machines that follow one recipe
MOST_ON_CPU = 64  # images a pass: more gain nothing, and their activations leave the cache
PAYS = 300.0  # seconds of training from which on compiling, which takes half a minute or so, pays on a GPU


def settled(recipe: Recipe, device: str, processes: int = 1) -> Recipe:
    """`recipe` with everything decided, for `processes` of them with a `device` each.

    On an accelerator a micro-batch is as large as the batch allows; whoever finds that it does not fit takes a smaller
    one. Nothing is compiled that was not asked to be: that takes an estimate (`worth_compiling`).
    """
    amp = best_precision(device) if recipe.amp == "auto" else recipe.amp
    micro = recipe.micro_batch or _micro_batch(recipe, device, processes)
    return replace(recipe, amp=amp, micro_batch=micro, compile=bool(recipe.compile))


def _micro_batch(recipe: Recipe, device: str, processes: int) -> int:
    """On a CPU at most half of a batch above 32, so that a second process may join later."""
    most = min(MOST_ON_CPU, max(32, recipe.batch_size // 2)) if on_cpu(device) else recipe.batch_size
    fitting = recipe.micro_batches_up_to(most, processes) or recipe.micro_batches_up_to(most)
    return fitting[0]


def worth_compiling(seconds: float, device: str) -> bool:
    """Whether a training of so many seconds on `device` gains more from compilation than that costs.

    On CPUs it gains next to nothing (docs/decisions.md).
    """
    return device.startswith(("cuda", "xpu")) and seconds > PAYS


def as_recorded(recipe: Recipe, config: Mapping[str, Any]) -> Recipe:
    """`recipe` with what was decided for the run in whose run.json `config` is."""
    kept = {name: value for name, value in config.get("recipe", {}).items() if name in OF_THE_MACHINE}
    return override(recipe, kept, "run.json")


def moved(recipe: Recipe, device: str) -> str | None:
    """What `device` lacks for a run of `recipe`, and what to do, in one line; None where nothing is amiss."""
    if not emulated(recipe.amp, device):
        return None
    where = "this processor" if on_cpu(device) else "this GPU"
    name = {"bf16": "bfloat16", "fp16": "float16"}[recipe.amp]
    return f"{where} has no {name} instructions: --set amp=fp32 is several times as fast"
