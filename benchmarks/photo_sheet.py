"""Makes vitcli/inspection/photographs.jpg: 128 photographs of Caltech-101, which `vit inspect` looks with by itself.

python benchmarks/photo_sheet.py 101_ObjectCategories

The data: Fei-Fei Li, Marco Andreeto, Marc'Aurelio Ranzato and Pietro Perona, Caltech 101, CaltechDATA 2022, CC BY 4.0
(doi 10.22002/D1.20086). Taken are photographs 1 and 2 of each class in turn until there are 128, without the classes
of faces, background and drawings; each is cut to its middle square and made 96 pixels large.
"""

import sys
from pathlib import Path

from PIL import Image, ImageOps

from vitcli.inspection.images import COUNT, PHOTOGRAPHS

COLUMNS = 16
WITHOUT = {"BACKGROUND_Google", "Faces", "Faces_easy", "garfield", "snoopy", "yin_yang"}


def main(folder: Path) -> None:
    classes = sorted(place for place in folder.iterdir() if place.is_dir() and place.name not in WITHOUT)
    files = [place / f"image_{number:04}.jpg" for number in (1, 2) for place in classes][:COUNT]
    side = PHOTOGRAPHS.tile
    sheet = Image.new("RGB", (COLUMNS * side, len(files) // COLUMNS * side))
    for i, file in enumerate(files):
        with Image.open(file) as image:
            tile = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        sheet.paste(tile, (i % COLUMNS * side, i // COLUMNS * side))
    sheet.save(PHOTOGRAPHS.file, quality=85, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
