"""A picture in the terminal: one character is two pixels, its foreground over its background (half blocks)."""

from PIL import Image
from rich.text import Text


def half_blocks(image: Image.Image, columns: int = 20) -> Text:
    """`image` (RGB) at most `columns` characters wide and half as many lines high."""
    scale = columns / max(image.size)
    width, height = max(1, round(image.width * scale)), max(2, round(image.height * scale / 2) * 2)
    pixels = image.resize((width, height), Image.Resampling.BOX).load()
    text = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = ("#{:02x}{:02x}{:02x}".format(*pixels[x, y + dy]) for dy in (0, 1))
            text.append("▀", style=f"{upper} on {lower}")
        text.append("\n" if y + 2 < height else "")
    return text
