"""Whole processes that start light: one image beside `import torch` and a minimal timm script; `vit --help`; and
`vit evaluate` beside `vit predict` of the same 500 small pictures.

python benchmarks/predict_one.py [--rounds 9]
"""

import argparse
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from processes import in_turn, report

from vitcli.checkpoint.config import Description
from vitcli.checkpoint.write import write_checkpoint
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import architecture
from vitcli.model.shapes import weight_shapes

TIMM = """
import sys, timm, torch
from PIL import Image
model = timm.create_model("local-dir:" + sys.argv[1]).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
with torch.inference_mode():
    shares = model(transform(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(-1)
print(shares.topk(5))
"""


def write_ti16(folder: Path) -> None:
    """ViT-Ti/16 at 224 with random weights and a thousand classes."""
    rng = np.random.default_rng(0)
    vit = architecture("vit_tiny_patch16_224")
    tensors = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in weight_shapes(vit).items()}
    tensors |= {name: array + 1 for name, array in tensors.items() if "norm" in name and name.endswith("weight")}
    preprocess = Preprocess(crop_pct=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    labels = [f"class {i}" for i in range(1000)]
    write_checkpoint(
        folder,
        tensors,
        Description(
            architecture="vit_tiny_patch16_224",
            vit=vit,
            labels=labels,
            preprocess=preprocess,
            provenance={"made_by": "a benchmark: random weights"},
        ),
    )


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Shapes of all sizes and a little noise: compresses and resizes like a camera's picture."""
    image = Image.new("RGB", (width, height), (128, 128, 128))
    for cells in (256, 64, 16, 4):
        coarse = Image.fromarray(rng.integers(0, 256, (cells * height // width + 1, cells, 3), np.uint8))
        image = Image.blend(image, coarse.resize((width, height), Image.Resampling.BICUBIC), 0.4)
    noise = rng.integers(-6, 7, (256, 256, 1), np.int8)
    tiled = np.tile(noise, (height // 256 + 1, width // 256 + 1, 1))[:height, :width]
    return Image.fromarray((np.asarray(image).clip(6, 249) + tiled).astype(np.uint8))


def write_clothes(folder: Path, count: int = 500) -> Path:
    """A manifest of `count` pictures of 28 pixels, labelled with classes of the bundled model."""
    rng, lines = np.random.default_rng(0), ["path,label"]
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{i:03d}.png")
        lines.append(f"pictures/{i:03d}.png,{('Bag', 'Coat', 'Sneaker')[i % 3]}")
    manifest = folder.parent / "pictures.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "onnxruntime", "typer", "rich")))
    vit = [sys.executable, "-m", "vitcli"]
    with tempfile.TemporaryDirectory() as place:
        image, script, ti16 = Path(place, "photo.jpg"), Path(place, "timm_one.py"), Path(place, "ti16")
        photograph(np.random.default_rng(0), 1000, 750).save(image, quality=90)
        script.write_text(TIMM)
        write_ti16(ti16)
        commands = {
            "vit predict, bundled": [*vit, "predict", str(image)],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        print("bundled model, one 1000x750 JPEG")
        report(in_turn(commands, rounds), *commands)
        commands = {
            "vit predict, Ti/16 folder": [*vit, "predict", "-m", str(ti16), str(image)],
            "minimal timm script": [sys.executable, str(script), str(ti16), str(image)],
        }
        print("ViT-Ti/16 at 224")
        report(in_turn(commands, rounds), *commands)
        pictures = Path(place, "pictures")
        pictures.mkdir()
        manifest, model = write_clothes(pictures), "fashion-vit"
        commands = {
            "vit evaluate, 500 pictures": [*vit, "evaluate", model, "--data", str(manifest)],
            "vit predict, 500 pictures": [*vit, "predict", "-m", model, str(pictures)],
        }
        print("500 pictures of 28 pixels, bundled model; evaluate less 1.2 × predict must stay below 1.5 s")
        measured = in_turn(commands, rounds)
        report(measured, *commands)
        ours, peer = measured.values()
        left = [a.seconds - 1.2 * b.seconds for a, b in zip(ours, peer, strict=True)]
        print(f"  evaluate − 1.2 × predict: {statistics.median(left):.2f} s ({min(left):.2f} to {max(left):.2f})")
    commands = {"vit --help": [*vit, "--help"], "python -c pass": [sys.executable, "-c", "pass"]}
    print("start")
    report(in_turn(commands, rounds), *commands)


if __name__ == "__main__":
    main()
