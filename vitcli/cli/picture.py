"""A picture in the terminal: one character is two pixels, its foreground over its background (half blocks)."""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from rich.text import Text


def half_blocks(image: Image.Image, columns: int = 20) -> Text:
    """`image` (RGB) at most `columns` characters wide and half as many lines high."""
    scale = columns / max(image.size)
    width, height = max(1, round(image.width * scale)), max(2, round(image.height * scale / 2) * 2)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX).convert("RGB"))
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"{_hex(above)} on {_hex(below)}")
        text.append("\n")
    text.rstrip()
    return text


def _hex(pixel: Iterable[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in pixel)
