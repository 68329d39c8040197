"""Images that come from many requests at once, one line of them for each model: decoded side by side, then computed.

On a CPU each image is computed by itself, so its answer has the bits that `vit predict` gives. A GPU takes whatever
waits, up to its batch; nothing waits for company.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from queue import Empty, Queue
from threading import Lock, Thread

from vitcli.errors import ImageError
from vitcli.images.decode import image_size
from vitcli.images.preprocess import Preprocess, load
from vitcli.inference.predict import Model
from vitcli.inference.stream import Answer, Opened, Source
from vitcli.machine import available_cpus
from vitcli.model.shapes import Array
from vitcli.serve.reasons import Reasons

LARGE = 16_000_000  # pixels of an image that is decoded while no other large one is: it takes a quarter of a gigabyte
PREPARED = 64  # images that are decoded ahead of the model

_Waiting = tuple[Source, "Future[Answer]"]


class Line:
    """A model with its weights read, and the images that wait for it."""

    def __init__(self, model: Model) -> None:
        """Raises CheckpointError for weights that cannot be read."""
        self.model = model
        self.opened: Opened = model.opened()
        self.reasons = Reasons(model.checkpoint, "cpu" if self.opened.choice.engine == "onnxruntime" else None)
        self._decoders = ThreadPoolExecutor(max(available_cpus(), 2), thread_name_prefix="decode")
        self._large = Lock()
        self._ready: Queue[_Waiting | None] = Queue(PREPARED)
        threads = available_cpus() if self.opened.together == 1 else 1
        self._threads = [Thread(target=self._compute, name="compute", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, name: str, data: bytes) -> "Future[Answer]":
        """The answer to the image in the file `data`; cancelled, it is not computed unless that has begun."""
        answer: Future[Answer] = Future()
        self._decoders.submit(self._decode, name, data, answer)
        return answer

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        self.reasons.close()
        self._decoders.shutdown()
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join()

    def _decode(self, name: str, data: bytes, answer: "Future[Answer]") -> None:
        if answer.cancelled():
            return
        try:
            pixels = self._pixels(name, data, self.model.preprocess)
        except ImageError as error:
            if answer.set_running_or_notify_cancel():
                answer.set_result(Answer(name, None, str(error)))
        except Exception as error:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)
        else:
            self._ready.put((Source(name, lambda preprocess, exact: pixels), answer))

    def _pixels(self, name: str, data: bytes, preprocess: Preprocess) -> Array:
        width, height = image_size(data, name=name)
        with self._large if width * height > LARGE else nullcontext():
            return load(data, preprocess, name=name)

    def _compute(self) -> None:
        while batch := self._batch():
            running = [(source, answer) for source, answer in batch if answer.set_running_or_notify_cancel()]
            if not running:
                continue
            try:
                found: Sequence[Answer] = self.opened.compute([source for source, _ in running])
            except Exception as error:
                for _, answer in running:
                    answer.set_exception(error)
            else:
                for (_, answer), given in zip(running, found, strict=True):
                    answer.set_result(given)

    def _batch(self) -> list[_Waiting]:
        """What is ready, at least one and at most as many as are computed together; none once the line is closed."""
        batch: list[_Waiting] = []
        while len(batch) < self.opened.together:
            try:
                one = self._ready.get() if not batch else self._ready.get_nowait()
            except Empty:
                break
            if one is None:
                if batch:
                    self._ready.put(None)  # for the next time
                break
            batch.append(one)
        return batch
