"""What `vit predict --why` adds to predictions: a picture of what spoke for the class, and a page of several."""

import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vitcli.cli.console import note
from vitcli.cli.views.predictions import Explained
from vitcli.errors import UsageError, VitError
from vitcli.files import write_file
from vitcli.images.find import ImageSource
from vitcli.inference.predict import Prediction
from vitcli.report.page import Page, small_png
from vitcli.text import safe

if TYPE_CHECKING:
    from vitcli.checkpoint.config import Checkpoint
    from vitcli.inspection.explain import Explanation

MOST = 200  # images: a page of more is not usable
FOLDER = "why"
PAGE = "why.html"
SIDE = 384  # pixels of a picture and its map on the page


def few(found: Iterator[ImageSource]) -> list[ImageSource]:
    """All of `found`. Raises UsageError where they are more than a page can show."""
    images = list(islice(found, MOST + 1))
    if len(images) > MOST:
        raise UsageError(f"--why draws a picture for each of at most {MOST} images, and there are more: name fewer")
    return images


class Why:
    """Explains predictions and writes the pictures into a folder."""

    def __init__(
        self,
        checkpoint: "Checkpoint",
        found: Iterator[ImageSource],
        *,
        label: str | None,
        out: str | None,
        device: str | None,
        exact: bool,
    ) -> None:
        """Read the model and make the folder.

        Raises UsageError for a model that cannot be explained and for too many images, VitError for such a folder.
        """
        from vitcli.inspection.explain import Explainer, picture_of

        self.images = few(found)
        self.explainer = Explainer(checkpoint, device=device)
        self.index = None if label is None else self.explainer.index(label)
        self.pictures = [picture_of(image, exact=exact) for image in self.images]
        self.folder = Path(out or FOLDER)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VitError(f"cannot write to {safe(self.folder)}: {error.strerror}") from error
        self._files = file_names(self.images, self.folder)
        self._shown: list[tuple[bytes, str]] = []
        self._drawn = False

    @property
    def page(self) -> Path | None:
        """The page of all pictures, where there are several."""
        return self.folder / PAGE if len(self.pictures) > 1 else None

    def explained(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The predictions, of all images in their order, each with its explanation and picture; then the page."""
        for prediction, picture, file in zip(predictions, self.pictures, self._files, strict=True):
            first = prediction.labels[0].index if prediction.labels else None
            index = first if self.index is None else self.index
            if prediction.error is not None or index is None:
                yield prediction
                continue
            why = self.explainer.explain(picture, index)
            if why.error is not None:
                note(f"no map: {why.error}")
            else:
                self._write(file, why, prediction)
            yield Explained(**vars(prediction), why=why, method=self.explainer.method, file=file)
        if self.page:
            self._write_page(self.page)
        if self._drawn:
            note(f"what spoke is drawn in {safe(self.page or self.folder)}")

    def _write(self, file: Path, why: "Explanation", prediction: Prediction) -> None:
        image = why.picture()
        png = io.BytesIO()
        image.save(png, "PNG")
        write_file(file, [png.getvalue()])
        self._drawn = True
        if self.page:
            said = ", ".join(f"{score.label} {score.probability:.1%}" for score in prediction.labels[:3])
            self._shown.append((small_png(image, SIDE), f"{prediction.path}: what spoke for {why.label}. {said}"))

    def _write_page(self, path: Path) -> None:
        page = Page(f"Why: {self.explainer.checkpoint.name}")
        page.paragraph(
            "Each picture as the model sees it, and beside it, over its gray, what spoke for the class: the brighter, "
            f"the more, by each map's brightest patch ({self.explainer.method}). What spoke against it is not shown."
        )
        page.pictures(self._shown, wide=True)
        page.write(path)


def file_names(images: Sequence[ImageSource], folder: Path) -> list[Path]:
    """A file in `folder` for each image: cat-why.png of cat.jpg, with a number where that is another's or an image."""
    taken = {_place(image.source) for image in images if isinstance(image.source, Path)}
    files = []
    for image in images:
        stem = re.sub(r"[^\w.-]+", "-", Path(image.name).stem)[:60].strip("-.") or "image"
        number, file = 1, folder / f"{stem}-why.png"
        while _place(file) in taken:
            number += 1
            file = folder / f"{stem}-{number}-why.png"
        taken.add(_place(file))
        files.append(file)
    return files


def _place(file: Path) -> str:
    """Where a file is, the same for names that some file systems take for the same."""
    return unicodedata.normalize("NFC", str(file.resolve())).casefold()
