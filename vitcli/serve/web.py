"""A model as a folder that any static web server can offer: a browser runs it by itself, on the page of `vit serve`."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.familiarity import Familiarity, read_familiarity
from vitcli.checkpoint.resolve import exported_checkpoint
from vitcli.errors import UsageError, VitError
from vitcli.files import sync_folder, write_file
from vitcli.images.preprocess import Preprocess
from vitcli.inference.export import Exported, Load, export
from vitcli.inference.exported import Options
from vitcli.inference.predict import STRANGE
from vitcli.serve import page
from vitcli.text import safe

SCHEMA = "vit.web/1"
EXAMPLES = 3  # classes that are named on the page
STATISTICS = "familiarity.bin"


def export_web(
    checkpoint: Checkpoint,
    folder: Path,
    runtime: Mapping[str, bytes],
    options: Options | None = None,
    pictures: Sequence[Load] = (),
) -> Exported:
    """Write `checkpoint` and the files of the `runtime` into `folder`, in place of an earlier export to it.

    The graph is measured as `export` does. Raises UsageError for what a page has no use for, and what `export` raises;
    `folder` is then as it was.
    """
    options = options or Options()
    if why := checkpoint.why_no_classes:
        raise UsageError(f"--to web is for models with classes: {why}")
    if options.pixels or options.softmax:
        raise UsageError("--to web writes a page that does what --pixels and --softmax are for")
    if len(options.sizes) > 1:
        raise UsageError("--to web writes one image size")
    if folder.exists() and not is_web(folder):
        raise VitError(f"{safe(folder)} is something else than an export to the web, and is left as it is")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".vit-export-") as staging:
        new = Path(staging) / "new"
        (new / "runtime").mkdir(parents=True)
        made = export(checkpoint, new / "model.onnx", "onnx", options, pictures)
        exported = exported_checkpoint(made.path)
        known = read_familiarity(exported)
        html = page.html()
        policy = page.policy(html, scripts="'self' 'wasm-unsafe-eval'", framed=False)
        head = f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
        html = html.replace("<head>", head, 1)
        html = html.replace("</head>", '<script type="module" src="browser.js"></script>\n</head>', 1)
        described = json.dumps(_described(checkpoint, exported, known), ensure_ascii=False, allow_nan=False)
        for name, data in {
            **{f"runtime/{name}": data for name, data in runtime.items()},
            **({STATISTICS: _statistics(known)} if known else {}),
            "browser.js": Path(__file__).with_name("browser.js").read_bytes(),
            "model.json": described.encode(),
            "index.html": html.encode(),
        }.items():
            write_file(new / name, [data])
        total = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        if folder.exists():
            os.replace(folder, Path(staging) / "old")
        os.replace(new, folder)
        sync_folder(folder.parent)
    return replace(made, path=folder, bytes=total)


def is_web(folder: Path) -> bool:
    """Whether `folder` is such an export, or empty."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return bool(json.loads((folder / "model.json").read_bytes())["schema"] == SCHEMA)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _described(source: Checkpoint, exported: Checkpoint, known: Familiarity | None) -> dict[str, Any]:
    """model.json: what GET /models says of a model, and what the page needs to run it."""
    return {
        "schema": SCHEMA,
        "name": Path(source.name).name,
        "outputs": exported.outputs,
        "classes": exported.num_classes,
        "examples": list(exported.labels[:EXAMPLES]),
        "labels": list(exported.labels),
        "thresholds": list(exported.thresholds),
        "temperature": exported.temperature or 1.0,
        "preprocess": told(exported.preprocess),
        "familiarity": known and {"data": known.facts.data, "images": known.facts.images, "strange_below": STRANGE},
        "statistics": known
        and {
            "file": STATISTICS,
            "parts": [
                {
                    "numbers": len(part.origin),
                    "directions": part.axes.shape[1],
                    "centers": len(part.centers),
                    "usual": [float(value) for value in usual],
                }
                for part, usual in zip(known.parts, known.usual, strict=True)
            ],
            "reference": len(known.reference),
        },
    }


def told(preprocess: Preprocess) -> dict[str, Any]:
    """As browser.js reads it."""
    return {**preprocess.to_config(), "size": list(preprocess.size), "crop_margin": preprocess.crop_margin}


def _statistics(known: Familiarity) -> bytes:
    """Origins, axes and centers of the parts, then the reference: float32, little-endian, as model.json counts them."""
    arrays = [array for part in known.parts for array in (part.origin, part.axes, part.centers)]
    return b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in [*arrays, known.reference])
