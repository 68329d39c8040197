"""Decoding and preprocessing beside timm's: how far the fast way is from the exact one, how long each takes, and
whether a model notices.

    python benchmarks/preprocess.py [--images FOLDER [--side 1540 | --crops 2]] [--model CHECKPOINT] [--count 300]

With --images: the JPEGs below FOLDER, in an order drawn at random; with --side each is scaled first so that its shorter
side has that many pixels, with --crops so many crops of 1536 pixels or more are cut from each that is large enough;
either way they are saved as JPEG at quality 90 again. benchmarks/lite0.py writes a trained model for --model.

"reduced JPEG scale" is what the default was until it was seen to change first classes: JPEGs decoded at 1/2, 1/4 or 1/8
as long as they stay --gap times larger than what they are resized to.

Without --images: JPEGs of camera sizes (1000 to 4000 pixels wide, quality 90) made from crops of the photos that
matplotlib and scikit-learn bring along, scaled up, with sensor noise. Without --model: timm's vit_tiny_patch16_224 with
random weights, whose logits are centred over the images, since one and the same class would win for all of them
otherwise. One thread; processor time, the mean over the images, the ways taking turns on each. Ctrl-C ends early, with
what was measured.
"""

import argparse
import io
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import timm
import torch
from PIL import Image, ImageOps
from timm.data import create_transform

from vitcli.errors import ImageError
from vitcli.images.decode import open_image
from vitcli.images.find import walk
from vitcli.images.preprocess import Preprocess

Pixels = np.ndarray  # (H, W, C) uint8
Item = TypeVar("Item")


def photos() -> list[Image.Image]:
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    with get_sample_data("grace_hopper.jpg") as file:
        people = Image.open(file).convert("RGB")
    return [people, *(Image.fromarray(image) for image in load_sample_images().images)]


def camera_files(count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    sources = photos()
    for number in range(count):
        source = sources[number % len(sources)]
        share = rng.uniform(0.4, 1)
        width, height = int(source.width * share), int(source.height * share)
        left, top = rng.integers(0, source.width - width + 1), rng.integers(0, source.height - height + 1)
        wide = (1000, 1600, 2400, 4000)[number % 4] + int(rng.integers(0, 16))
        crop = source.crop((left, top, left + width, top + height))
        crop = crop.resize((wide, round(wide * height / width)), Image.Resampling.LANCZOS)
        noisy = np.asarray(crop) + rng.normal(0, 4, (crop.height, wide, 1))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90, subsampling=number % 3)
        yield file.getvalue()


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def folder_files(folder: Path, side: int | None, crops: int | None) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    paths = [path for path in walk(folder) if path.suffix.lower() in (".jpg", ".jpeg")]
    for path in (paths[i] for i in rng.permutation(len(paths))):
        try:
            image = open_image(path)
        except ImageError:
            continue
        if side:
            scale = side / min(image.size)
            wide, high = (8 * round(edge * scale / 8) if edge > min(image.size) else side for edge in image.size)
            yield jpeg(image.resize((wide, high), Image.Resampling.LANCZOS))
        elif crops and min(image.size) >= 1536:
            for _ in range(crops):
                edge = 8 * int(rng.integers(1536 // 8, min(min(image.size), 3072) // 8 + 1))
                left, top = (int(rng.integers(0, whole - edge + 1)) for whole in image.size)
                yield jpeg(image.crop((left, top, left + edge, top + edge)))
        elif not crops:
            yield path.read_bytes()


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """`items` up to Ctrl-C, which is heeded between two of them."""
    stop: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stop.append(number))
    for item in items:
        if stop:
            return
        yield item


def model_and_preprocess(name: str | None) -> tuple[Callable[[torch.Tensor], torch.Tensor], Preprocess, bool]:
    if name is None:
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224").eval(), Preprocess(crop_pct=0.9), True
    from vitcli.checkpoint.load import load_any
    from vitcli.checkpoint.resolve import resolve

    checkpoint = resolve(name)
    return load_any(checkpoint), checkpoint.preprocess, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--side", type=int)
    parser.add_argument("--crops", type=int)
    parser.add_argument("--gap", type=float, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, preprocess, random_weights = model_and_preprocess(arguments.model)
    config = {**preprocess.to_config(), "input_size": (preprocess.in_chans, *preprocess.size)}
    transform = create_transform(**config, is_training=False, normalize=False)

    def by_timm(data: bytes) -> Pixels:
        # timm leaves a photograph lying as the sensor lay; it is turned here, so that what follows can be compared.
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        return transform(upright.convert("RGB")).permute(1, 2, 0).numpy()

    def exact(data: bytes) -> Pixels:
        return preprocess.pixels(open_image(data), exact=True)

    def default(data: bytes) -> Pixels:
        return preprocess.pixels(open_image(data))

    def reduced(data: bytes) -> Pixels:
        image = Image.open(io.BytesIO(data))
        image.draft(None, tuple(int(arguments.gap * side) for side in preprocess.resized(*image.size)))
        return preprocess.pixels(ImageOps.exif_transpose(image).convert("RGB"))

    def logits(pixels: Pixels) -> np.ndarray:
        values = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preprocess.mean, preprocess.std))
        with torch.inference_mode():
            return model(((values - mean) / std)[None])[0].numpy()

    ways = {"timm's transform": by_timm, "exact": exact, "default": default, "reduced JPEG scale": reduced}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    differences: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    answers: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    if arguments.images:
        files = folder_files(arguments.images, arguments.side, arguments.crops)
    else:
        files = camera_files(arguments.count)
    measured = zip(range(arguments.count), files, strict=False)
    for _, data in interruptible(measured):
        reference = by_timm(data)
        for name, way in ways.items():
            start = time.process_time()
            pixels = way(data)
            seconds[name].append(time.process_time() - start)
            difference = np.abs(pixels.astype(int) - reference)
            differences[name].append((float(difference.mean()), int(difference.max())))
            same = name != "timm's transform" and np.array_equal(pixels, reference)
            answers[name].append(answers["timm's transform"][-1] if same else logits(pixels))

    centre = np.mean(answers["timm's transform"], axis=0) if random_weights else 0.0
    winners = {name: np.argmax(np.array(rows) - centre, axis=1) for name, rows in answers.items()}
    theirs = winners["timm's transform"]
    print(
        f"python {platform.python_version()}, Pillow {PIL.__version__}, timm {timm.__version__}, {platform.machine()}"
    )
    print(f"{len(theirs)} images, {preprocess}, reduced JPEGs at least {arguments.gap:g} times as large")
    weights = arguments.model or "vit_tiny_patch16_224, random weights, centred logits"
    print(f"model: {weights}; {len(set(theirs.tolist()))} different classes win\n")
    print(
        f"{'':24} {'ms/image':>9} {'ratio':>6} {'mean |d|':>9} {'worst image':>12} {'max |d|':>8} {'other class':>12}"
    )
    base = statistics.fmean(seconds["timm's transform"])
    for name in ways:
        means, maxima = zip(*differences[name], strict=True)
        milliseconds = statistics.fmean(seconds[name])
        print(
            f"{name:24} {1000 * milliseconds:9.1f} {base / milliseconds:6.2f} {np.mean(means):9.4f} {max(means):12.4f} "
            f"{max(maxima):8d} {np.sum(winners[name] != theirs):12d}"
        )


if __name__ == "__main__":
    main()
