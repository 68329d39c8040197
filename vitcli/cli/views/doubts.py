"""Labels that are probably wrong: a table with small pictures, JSON, and a page of the pictures."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vitcli.cli.console import document, half_blocks, note, pictures_shown, shown, stdout
from vitcli.data.samples import Splits
from vitcli.errors import ImageError
from vitcli.report.page import MOST_PICTURES, Page, small_png
from vitcli.text import plural
from vitcli.training.doubts import Doubts, Judged

SHOWN = 20  # in the terminal
COLUMNS = 12  # of a picture there
SIDE = 160  # pixels of a picture's longer side, on the page


def show(result: Doubts, found: Splits, *, json: bool) -> None:
    """The labels in doubt, the least probable first; with `json` all that there are."""
    if json:
        rows = [{**asdict(one), "rank": rank} for rank, one in enumerate(result.labels, start=1) if one.doubted]
        known = {"root": str(result.root), "kind": result.kind, "model": result.model, "images": len(result.labels)}
        failed = [asdict(one) for one in result.failed]
        document({"schema": "vit.labels/1", **known, "doubted": rows, "not_judged": result.alone, "failed": failed})
        return
    console, pictures = stdout(), pictures_shown()
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for title in [*([""] if pictures else []), "labelled", "probability", "looks like", "probability", "image"]:
        grid.add_column(title, justify="right" if title == "probability" else "left", overflow="fold")
    doubted = result.doubted
    for one in doubted if not console.is_terminal else doubted[:SHOWN]:
        words = (one.label, f"{one.own:.4f}", one.suggested, f"{one.probability:.4f}", one.name)
        cells: list[Any] = [Text(shown(word), overflow="fold") for word in words]
        grid.add_row(*([_small(found, one)] if pictures else []), *cells)
    if doubted:
        console.print(grid)
    more = f"; the first {SHOWN} are shown" if console.is_terminal and len(doubted) > SHOWN else ""
    note(f"{len(doubted)} of {plural(len(result.labels), 'label')} are probably wrong, by {result.model}{more}")
    if result.alone:
        names = ", ".join(shown(name, 60) for name in result.alone[:5])
        note(f"not judged, for there is nothing else to learn them from: {names}{', …' * (len(result.alone) > 5)}")


def write_sheet(result: Doubts, found: Splits, path: Path) -> None:
    """A page of the pictures whose labels are in doubt, in the order of the list."""
    page = Page("Labels in doubt")
    page.paragraph(
        f"{len(result.doubted)} of {len(result.labels)} labels are probably wrong, by the features of {result.model}; "
        "the least probable label comes first. Look at them: rare views and mixed pictures are among them."
    )
    pictures: list[tuple[bytes, str]] = []
    gone = []
    for one in result.doubted:
        caption = f"{one.label} {one.own:.3f}, looks like {one.suggested} {one.probability:.3f}: {Path(one.name).name}"
        try:
            if len(pictures) == MOST_PICTURES:
                raise ImageError("the page is full")
            pictures.append((small_png(found.named[one.split].image(one.index), SIDE), caption))
        except ImageError:
            gone.append(caption)
    page.pictures(pictures)
    for caption in gone:
        page.paragraph(caption)
    page.write(path)


def _small(found: Splits, one: Judged) -> Text:
    try:
        return half_blocks(found.named[one.split].image(one.index), COLUMNS)
    except ImageError:
        return Text("")
