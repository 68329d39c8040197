"""Neighbours and duplicates: a table with small pictures, JSON, and a page of the pictures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vitcli.cli.console import document, half_blocks, note, pictures_shown, shown, stdout
from vitcli.errors import ImageError
from vitcli.images.decode import open_image
from vitcli.images.find import where
from vitcli.inference.evaluate import Unreadable
from vitcli.inference.similar import Group, Neighbour
from vitcli.report.page import MOST_PICTURES, Page, small_png
from vitcli.text import plural, safe

THUMBNAIL = 160  # pixels of the longer side, on a page
COLUMNS = 12  # of a picture in the terminal


def show_neighbours(
    names: Sequence[str],
    found: Sequence[Sequence[Neighbour]],
    failed: Sequence[Unreadable],
    *,
    json: bool,
    sheet: Path | None,
) -> None:
    """What is nearest to each query of `names`."""
    if sheet:
        page = Page("Neighbours")
        for name, nearest in zip(names, found, strict=True):
            page.section(name)
            captions = ((one.path, _said(one.similarity, one.path)) for one in nearest)
            _add_pictures(page, [(name, "the query"), *captions])
        _write(page, sheet)
    if json:
        queries = [
            {"path": name, "neighbours": [{**asdict(one), "distance": one.distance} for one in nearest]}
            for name, nearest in zip(names, found, strict=True)
        ]
        document({"schema": "vit.similar/1", "queries": queries, "failed": [asdict(one) for one in failed]})
        return
    console, pictures = stdout(), pictures_shown()
    for name, nearest in zip(names, found, strict=True):
        console.print(Text(shown(name), style="bold", overflow="fold"))
        grid = Table.grid(padding=(0, 2))
        for one in nearest:
            cells: list[Any] = [Text(f"{one.similarity:8.4f}"), Text(shown(one.path), overflow="fold")]
            grid.add_row(*([_small(one.path)] if pictures else []), *cells)
        console.print(grid)


def show_groups(groups: Sequence[Group], threshold: float, *, json: bool, sheet: Path | None) -> None:
    """Images that are there more than once."""
    if sheet:
        page = Page("Near duplicates")
        page.paragraph(f"Groups of pictures whose cosine is {threshold:g} or more; it is given to the first of each.")
        for number, group in enumerate(groups, start=1):
            page.section(f"Group {number}: {len(group.paths)}")
            texts = [_said(*pair) for pair in zip(group.similarities, group.paths, strict=True)]
            _add_pictures(page, list(zip(group.paths, texts, strict=True)))
        _write(page, sheet)
    if json:
        document({"schema": "vit.duplicates/1", "threshold": threshold, "groups": [asdict(group) for group in groups]})
        return
    console, pictures = stdout(), pictures_shown()
    for number, group in enumerate(groups, start=1):
        console.print(Text(f"group {number}, {plural(len(group.paths), 'image')}", style="bold"))
        grid = Table.grid(padding=(0, 2))
        for path, similarity in zip(group.paths, group.similarities, strict=True):
            small = [_small(path)] if pictures else []
            grid.add_row(*small, Text(f"{similarity:8.4f}"), Text(shown(path), overflow="fold"))
        console.print(grid)
    note(f"{plural(len(groups), 'group')} with a cosine of {threshold:g} or more")


def _said(similarity: float, path: str) -> str:
    return f"{similarity:.4f} {path}"


def _small(path: str) -> Text:
    try:
        return half_blocks(open_image(where(path)), COLUMNS)
    except (ImageError, OSError):
        return Text("")


def _add_pictures(page: Page, pictures: Sequence[tuple[str, str]]) -> None:
    """Small copies in the page, as far as it stays usable; of files that are gone their names."""
    room = MOST_PICTURES - sum(part.count("<img") for part in page.parts)
    drawn: list[tuple[bytes, str]] = []
    missing = []
    for path, caption in pictures:
        png = _png(path) if len(drawn) < room else None
        if png:
            drawn.append((png, caption))
        else:
            missing.append(caption)
    page.pictures(drawn)
    for caption in missing:
        page.paragraph(caption)


def _png(path: str) -> bytes | None:
    try:
        return small_png(open_image(where(path)), THUMBNAIL)
    except (ImageError, OSError):
        return None


def _write(page: Page, sheet: Path) -> None:
    page.write(sheet)
    note(f"pictures: {safe(sheet)}")
