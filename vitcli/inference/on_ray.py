"""The stream of images on a Ray cluster: decoding and computing are stages of their own, each on what suits it.

    with cluster("auto"):
        send(stream)
        stream.answers(…)  # as ever

Ray Data moves images from stage to stage and starts lost workers again; what comes back is in the order given,
so whoever reads the stream (see `parts`) need not know where it was computed. Images are named by paths that every
machine can read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from vitcli.errors import ImageError, UsageError, VitError
from vitcli.images.preprocess import Preprocess
from vitcli.inference.stream import Answer, Source, Stream
from vitcli.machine import on_cpu
from vitcli.text import safe

AT_ONCE = 4096  # images that are on their way
TOGETHER = 32  # images that a stage takes at a time
EXTRA = "pip install 'vitcli[ray]'"


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """The Ray cluster at `address`: `auto`, the one of this machine or a new one here; else `ray://host:port`.

    Raises VitError where Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise VitError(f"--on ray needs the extra `ray`: {EXTRA} ({safe(error)})") from None
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise VitError(f"no Ray cluster at {safe(address)}: {safe(error)}") from error
    try:
        yield
    finally:
        if begun:
            ray.shutdown()


def address_of(text: str) -> str:
    """What `--on` says, as `ray.init` takes it. Raises UsageError."""
    if text == "ray":
        return "auto"
    if not text.startswith("ray://"):
        raise UsageError(f"--on {safe(text)}: write ray, or ray://HOST:10001")
    return text


def send(stream: Stream) -> None:
    """Have `stream` compute on the cluster from now on, with the engine that suits this machine."""
    choice = stream.settle()
    gpus = int(choice.engine == "torch" and not on_cpu(stream.device))
    stream.elsewhere = OnRay(stream.maker(choice.engine), stream.checkpoint.preprocess, gpus)


class OnRay:
    """Sources → answers, on the cluster that this process is connected to."""

    def __init__(self, make: Callable[[], Stream], preprocess: Preprocess, gpus: int) -> None:
        """`make` opens the stream on a worker; `gpus`: 1 where it computes on one, else 0."""
        self._make, self._preprocess, self._gpus = make, preprocess, gpus

    def __call__(self, sources: Iterator[Source], *, batch_size: int | None, exact: bool) -> Iterator[Answer]:
        import ray
        from ray import cloudpickle

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        options: dict[str, Any] = {"num_gpus": 1} if self._gpus else {"num_cpus": 1}
        while waiting := list(islice(sources, AT_ONCE)):
            rows = [{"place": i, "source": cloudpickle.dumps(source)} for i, source in enumerate(waiting)]
            found = (
                ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // TOGETHER))
                .map_batches(_decoded, batch_size=TOGETHER, fn_args=(self._preprocess, exact))
                .map_batches(
                    _Computing, batch_size=TOGETHER, concurrency=(1, _workers(self._gpus)),
                    fn_constructor_args=(cloudpickle.dumps(self._make), batch_size), **options,
                )
            )  # fmt: skip
            seen = 0
            for row in found.iter_rows():
                if row["place"] != seen:
                    raise VitError("Ray gave images back in another order; nothing of this part was kept")
                seen += 1
                error = cloudpickle.loads(row["error"])
                values = None if error else cloudpickle.loads(row["values"])
                yield Answer(waiting[row["place"]].name, values, error)
            if seen != len(waiting):
                raise VitError(f"Ray gave back {seen} of {len(waiting)} images; nothing of this part was kept")


def _workers(gpus: int) -> int:
    """How many may compute at once: what the cluster has, a core of each machine left to decode."""
    import ray

    found = ray.cluster_resources().get("GPU" if gpus else "CPU", 1)
    return max(1, int(found) - (0 if gpus else len(ray.nodes())))


def _decoded(batch: Any, preprocess: Preprocess, exact: bool) -> dict[str, Any]:
    """Sources → pixels, as this process's bytes; or why there are none."""
    from ray import cloudpickle

    pixels, errors, names = [], [], []
    for packed in batch["source"]:
        source = cloudpickle.loads(packed)
        names.append(cloudpickle.dumps(source.name))
        try:
            found, error = source.load(preprocess, exact), None
        except ImageError as failed:
            found, error = None, str(failed)
        pixels.append(cloudpickle.dumps(found))
        errors.append(cloudpickle.dumps(error))
    return {"place": batch["place"], "name": names, "pixels": pixels, "error": errors}


def _unpacked(packed: bytes, preprocess: Preprocess, exact: bool) -> Any:
    """Pixels that were decoded before."""
    from ray import cloudpickle

    return cloudpickle.loads(packed)


class _Computing:
    """A worker with the model in its memory."""

    def __init__(self, make: bytes, batch_size: int | None) -> None:
        from ray import cloudpickle

        self._stream, self._batch_size = cloudpickle.loads(make)(), batch_size
        self._stream.settle()

    def __call__(self, batch: Any) -> dict[str, Any]:
        from ray import cloudpickle

        errors = [cloudpickle.loads(error) for error in batch["error"]]
        ready = [
            Source(cloudpickle.loads(name), partial(_unpacked, packed))
            for name, packed, error in zip(batch["name"], batch["pixels"], errors, strict=True)
            if error is None
        ]
        answers = self._stream.answers(iter(ready), batch_size=self._batch_size) if ready else iter(())
        found: dict[str, list[bytes]] = {"values": [], "error": []}
        for error in errors:
            answer = next(answers) if error is None else Answer("", None, error)
            found["values"].append(cloudpickle.dumps(answer.values))
            found["error"].append(cloudpickle.dumps(answer.error))
        return {"place": np.asarray(batch["place"]), **found}
