"""What each way to compute a model costs on this machine: images a second, the time of a call, memory.

Every way runs in a process of its own, so that its memory is its own, and on pixels that are prepared already: what
decoding costs depends on the pictures. The ways that `vit predict` takes by default are measured first.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.errors import VitError
from vitcli.inference.engines import Engine, EngineName, Numbers, Output, choose, open_engine
from vitcli.inference.stream import IMAGES_ON_GPU, IMAGES_PER_CALL
from vitcli.machine import available_cpus, default_device, devices, gpu_visible, on_cpu
from vitcli.model.shapes import Array

SECONDS = 110.0  # of all; with the start it is below two minutes
EACH = 4.0  # seconds of calls that are timed, at most
LEAST = 3  # calls of a median
ONE, MANY = "one image", "many images"


@dataclass(frozen=True)
class Way:
    """How a model is run."""

    engine: EngineName
    device: str
    precision: Numbers
    batch: int  # images of one call


@dataclass(frozen=True)
class Cost:
    """What a way costs; or why it was not measured."""

    way: Way
    default_for: tuple[str, ...]  # ONE and MANY, where `vit predict` takes this way by itself
    images_per_second: float | None = None
    milliseconds: float | None = None  # of a call, the median
    memory: int | None = None  # bytes, at most: of the process, or on a GPU of what torch holds there
    error: str | None = None


def bench(
    checkpoint: Checkpoint, *, seconds: float = SECONDS, tell: Callable[[int, int], None] | None = None
) -> Iterator[Cost]:
    """The cost of each way of `ways`, the defaults first; what there was no time for has an `error`.

    `tell` is told how many are done, and of how many.
    """
    ends = time.monotonic() + seconds
    taken = defaults(checkpoint)
    known = [*dict.fromkeys([*taken.values(), *ways(checkpoint)])]
    done = 0
    for group in _groups(known):
        for cost in _in_a_process(checkpoint, group, ends, len(known) - done):
            if tell:
                tell(done, len(known))
            done += 1
            yield replace(cost, default_for=tuple(name for name, one in taken.items() if one == cost.way))
    if tell:
        tell(done, len(known))


def _groups(known: list[Way]) -> Iterator[list[Way]]:
    """Ways that one process measures, the smaller batch first: torch takes seconds to start, and peaks only grow."""
    for group in dict.fromkeys(_setup(way) for way in known):
        yield sorted((way for way in known if _setup(way) == group), key=lambda way: way.batch)


def _setup(way: Way) -> tuple[object, ...]:
    return way.engine, way.device, way.precision, way.batch if way.engine == "onnxruntime" else None


def defaults(checkpoint: Checkpoint) -> dict[str, Way]:
    """The ways that `vit predict` takes for one image and for many."""
    found = {}
    for name, images in ((ONE, 1), (MANY, sys.maxsize)):
        engine = choose(checkpoint, images=images).engine
        device = default_device() if engine == "torch" else "cpu"
        precision: Numbers = "fp16" if device.startswith("cuda") else "fp32"
        most = (
            available_cpus()
            if engine == "onnxruntime"
            else IMAGES_PER_CALL[engine]
            if on_cpu(device)
            else IMAGES_ON_GPU
        )
        found[name] = Way(engine, device, precision, 1 if images == 1 else most)
    return found


def ways(checkpoint: Checkpoint) -> list[Way]:
    """Engine, device, precision and batch, as far as this machine and the model have them."""
    batches = dict.fromkeys((1, available_cpus()))
    if checkpoint.exported:
        return [Way("onnxruntime", "cpu", "fp32", batch) for batch in batches]
    found: list[Way] = []
    if checkpoint.vit is not None:
        precisions: tuple[Numbers, ...] = ("fp32", "int8")
        found += [Way("onnxruntime", "cpu", precision, batch) for precision in precisions for batch in batches]
    for device in dict.fromkeys(one.partition(":")[0] for one in (devices() if gpu_visible() else ["cpu"])):
        most = IMAGES_PER_CALL["torch"] if on_cpu(device) else IMAGES_ON_GPU
        halves: tuple[Numbers, ...] = ("bf16",) if on_cpu(device) else ("bf16", "fp16")
        for number in ("fp32", *halves):
            found += [Way("torch", device, number, batch) for batch in (1, most)]
    return found


def _in_a_process(checkpoint: Checkpoint, group: Sequence[Way], ends: float, left: int) -> Iterator[Cost]:
    """The cost of each way in `group`, of `left` that are still to be measured until `ends`; then it is given up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    seconds = min(EACH, max(ends - time.monotonic(), 0) / left / 2)
    process = context.Process(target=_measure, args=(checkpoint, group, seconds, theirs), daemon=True)
    process.start()
    theirs.close()
    error = None
    for way in group:
        if error is None:
            try:
                if ours.poll(max(ends - time.monotonic(), 0)):
                    found: Cost = ours.recv()
                    yield found
                    continue
                error = "no time left"
            except EOFError:
                error = "its process died"
        yield Cost(way, (), error=error)
    process.kill()
    process.join()
    ours.close()


def _measure(checkpoint: Checkpoint, group: Sequence[Way], seconds: float, answer: Connection) -> None:
    engine: Engine | None = None
    for way in group:
        try:
            engine = engine or _opened(checkpoint, way)
            answer.send(_cost(engine, checkpoint, way, seconds))
        except VitError as error:
            answer.send(Cost(way, (), error=str(error)))
        except Exception as error:  # an engine that cannot do it: too little memory, no such instruction
            said = str(error).splitlines()
            answer.send(Cost(way, (), error=f"{type(error).__name__}: {said[0] if said else ''}"))


def _opened(checkpoint: Checkpoint, way: Way) -> Engine:
    output: Output = "features" if checkpoint.why_no_classes and not checkpoint.exported else "logits"
    return open_engine(
        checkpoint,
        way.engine,
        precision="auto" if checkpoint.exported else way.precision,
        device=None if way.engine == "onnxruntime" else way.device,
        at_once=way.batch if way.engine == "onnxruntime" else 1,
        output=output,
    )


def _cost(engine: Engine, checkpoint: Checkpoint, way: Way, seconds: float) -> Cost:
    preprocess = checkpoint.preprocess
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(way.batch, preprocess.in_chans, *preprocess.size)).astype(np.float32)
    times = _timed(engine, pixels, seconds)
    middle = statistics.median(times)
    return Cost(way, (), way.batch / middle, 1000 * middle, _memory(way.device))


def _timed(engine: Engine, pixels: Array, seconds: float) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    engine.logits(pixels)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        engine.logits(pixels)
        times.append(time.perf_counter() - start)
    return times


def _memory(device: str) -> int | None:
    """Bytes at most so far: of this process; on NVIDIA's and AMD's GPUs what torch had there."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if not on_cpu(device):
        return None
    try:  # not getrusage, which counts what the process was before it became this program
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
