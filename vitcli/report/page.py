"""One self-contained HTML page: sections of text, tables and pictures. No script, no address outside the file.

Everything that comes in is text and is escaped here; only `svg` and `pictures` put markup and data into the page, made
by `figures` and `small_png`. Knows nothing of what the page is about.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vitcli.files import write_file
from vitcli.text import safe

if TYPE_CHECKING:
    from PIL import Image

# What the page may load: its own style and pictures inside it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

MOST_PICTURES = 2000  # of a page that is still usable

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5c6670; --line: #d8dee4; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --dim: #9aa4ae; --line: #3a424a; --paper: #14181c; }
}
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p { max-width: 45rem; overflow-wrap: anywhere; }
code, .facts td { overflow-wrap: anywhere; }
code { font: .9em ui-monospace, monospace; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; vertical-align: top; }
thead th, .facts th { color: var(--dim); font-weight: 500; }
tbody tr + tr td { border-top: 1px solid var(--line); }
.facts tr + tr td { border: 0; }
.number { text-align: right; }
figure { margin: 1rem 0; width: fit-content; max-width: 100%; box-sizing: border-box; background: #fff;
  border-radius: 6px; padding: .5rem; }
figure svg, figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: #5c6670; font-size: .85rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.pictures figure { margin: 0; width: auto; }
.pictures img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: auto; }
.pictures.wide-ones { grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
.pictures.wide-ones img { aspect-ratio: auto; }
.pictures figcaption { overflow-wrap: anywhere; line-height: 1.3; padding-top: .3rem; }
.map { overflow: visible; padding: 1rem; }
.dots { position: relative; width: min(36rem, 80vw); aspect-ratio: 1; }
.dots i { position: absolute; width: 9px; height: 9px; margin: -4px; border-radius: 50%; opacity: .8; }
.dots span { display: none; position: absolute; left: 10px; top: 10px; width: 9rem; background: #fff; color: #1b1f24;
  border: 1px solid #d8dee4; padding: .3rem; font: .75rem/1.3 system-ui, sans-serif; overflow-wrap: anywhere; }
.dots img { width: 100%; }
.dots i:hover, .dots i:focus { z-index: 9; opacity: 1; outline: 2px solid #1b1f24; }
.dots i:hover span, .dots i:focus span { display: block; }
@media print { body { max-width: none; padding: 0; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Dot:
    """A picture at a place in a square: x to the right, y downwards, both from 0 to 1."""

    x: float
    y: float
    colour: str  # CSS
    png: bytes
    caption: str


@dataclass
class Page:
    """Add parts in reading order, then take `html`."""

    title: str
    parts: list[str] = field(default_factory=list)

    def section(self, title: str) -> None:
        self.parts.append(f"<h2>{text(title)}</h2>")

    def paragraph(self, words: str) -> None:
        self.parts.append(f"<p>{text(words)}</p>")

    def command(self, line: str) -> None:
        self.parts.append(f"<p><code>{text(line)}</code></p>")

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Names and values, side by side."""
        body = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
        self.parts.append(f'<table class="facts"><tbody>{body}</tbody></table>')

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
        """The columns named in `numbers` are set flush right."""
        kinds = [' class="number"' if column in numbers else "" for column in columns]
        head = "".join(f'<th scope="col"{kind}>{text(c)}</th>' for c, kind in zip(columns, kinds, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
            for row in rows
        )
        self.parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')

    def svg(self, markup: str, caption: str) -> None:
        """A figure drawn by `figures.svg`."""
        self.parts.append(f"<figure>{inline(markup, len(self.parts))}{_caption(caption)}</figure>")

    def dots(self, dots: Iterable["Dot"], caption: str) -> None:
        """Pictures where they belong in a square, each a dot until it is pointed at or reached by the keyboard."""
        marks = "".join(
            f'<i tabindex="0" style="left:{100 * dot.x:.2f}%;top:{100 * dot.y:.2f}%;background:{text(dot.colour)}">'
            f"<span>{_image(dot.png, dot.caption)}{text(dot.caption)}</span></i>"
            for dot in dots
        )
        self.parts.append(f'<figure class="map"><div class="dots">{marks}</div>{_caption(caption)}</figure>')

    def pictures(self, pictures: Iterable[tuple[bytes, str]], *, wide: bool = False) -> None:
        """PNG files with captions, in a grid of squares; `wide` is for pictures twice as wide as high."""
        cells = "".join(f"<figure>{_image(png, caption)}{_caption(caption)}</figure>" for png, caption in pictures)
        self.parts.append(f'<div class="pictures{" wide-ones" if wide else ""}">{cells}</div>')

    def files(self, names: Iterable[str]) -> None:
        """Links to files that lie beside the page."""
        links = ", ".join(f'<a href="{text(name)}">{text(name)}</a>' for name in names)
        self.parts.append(f"<p>{links}</p>")

    def html(self) -> str:
        head = (
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{text(self.title)}</title><style>{STYLE}</style>"
        )
        body = "\n".join([f"<h1>{text(self.title)}</h1>", *self.parts])
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'

    def write(self, path: Path) -> Path:
        """Write the page to `path`, whole or not at all."""
        write_file(path, [self.html().encode("utf-8")])
        return path


def small_png(image: "Image.Image", side: int) -> bytes:
    """`image` as a PNG whose longer side has `side` pixels; a much smaller one is enlarged pixel by pixel."""
    from PIL import Image

    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()


def text(value: object) -> str:
    """Any text as HTML text or attribute value: without control and direction characters, escaped."""
    return html.escape(safe(value, None))


def inline(markup: str, number: int) -> str:
    """An SVG file as part of a page: no prologue, no metadata, and names that no other figure of the page has."""
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    markup = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", markup)  # HTML knows them
    markup = markup.replace("xlink:href", "href")
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{number}-", markup)


def _caption(caption: str) -> str:
    return f"<figcaption>{text(caption)}</figcaption>" if caption else ""


def _image(png: bytes, alternative: str) -> str:
    return f'<img alt="{text(alternative)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
