"""What spoke for an answer, as the picture that `vit predict --why` draws.

For that torch reads the model once more, when it is first asked; one picture is explained at a time.
"""

import base64
import io
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.images.preprocess import load

if TYPE_CHECKING:
    from vitcli.inspection.explain import Explainer


class Reasons:
    """A model that can be asked why."""

    def __init__(self, checkpoint: Checkpoint, device: str | None = None) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="why")
        self._explainer: Explainer | None = None

    @property
    def there(self) -> bool:
        """Whether the model has any: an exported file has no gradients."""
        return not self._checkpoint.exported

    def put(self, name: str, data: bytes, index: int) -> "Future[dict[str, Any]]":
        """What in the image file `data` spoke for the class `index`; cancelled, it is not drawn unless that has begun.

        The future raises UsageError for a model that cannot be explained.
        """
        return self._thread.submit(self._draw, name, data, index)

    def close(self) -> None:
        self._thread.shutdown()

    def _draw(self, name: str, data: bytes, index: int) -> dict[str, Any]:
        from vitcli.inspection.explain import Explainer
        from vitcli.inspection.images import Picture

        explainer = self._explainer = self._explainer or Explainer(self._checkpoint, device=self._device)
        found = explainer.explain(Picture(name, partial(load, data, name=name)), index)
        said = {"label": found.label, "index": index, "method": explainer.method}
        if found.error is not None:
            return {**said, "error": found.error}
        png = io.BytesIO()
        found.picture().save(png, "PNG")
        return {**said, "picture": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode('ascii')}"}
