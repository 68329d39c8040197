"""Decoding and preprocessing beside timm's: how far the fast way is from the exact one, how long each takes, and
whether a model notices.

    python benchmarks/preprocess.py [--images FOLDER [--side 1540 | --crops 2]] [--model CHECKPOINT] [--count 300]
    python benchmarks/preprocess.py --agreement --images FOLDER … --model CHECKPOINT [--processes 2]

With --images: the JPEGs below FOLDER, in an order drawn at random; with --side each is scaled first so that its shorter
side has that many pixels, with --crops so many crops of 1536 pixels or more are cut from each that is large enough;
either way they are saved as JPEG at quality 90 again. benchmarks/lite0.py writes a trained model for --model.

--agreement measures no time: on how many images the default gives the first class of the exact path, and which others.

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
import multiprocessing
import platform
import signal
import statistics
import time
import zlib
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


def photographs(folder: Path) -> list[Path]:
    """The JPEGs below `folder`, in an order drawn at random."""
    paths = [path for path in walk(folder) if path.suffix.lower() in (".jpg", ".jpeg")]
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def copies(path: Path, side: int | None, crops: int | None) -> Iterator[bytes]:
    """The JPEGs that are made of the photograph `path`, the same ones every time."""
    try:
        image = open_image(path)
    except ImageError:
        return
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
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


class Agreement:
    """What the default changes in each image. Workers are forks, so that weights are read once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.side, self.crops = arguments.side, arguments.crops
        self.model, self.preprocess, _ = model_and_preprocess(arguments.model)

    def __call__(self, path: Path) -> list[tuple[int, bool]]:
        """Of each copy of `path`: the largest difference of the pixels, and whether the first class is another."""
        found = []
        for data in copies(path, self.side, self.crops):
            image = open_image(data)
            both = self.preprocess.pixels(image, exact=True), self.preprocess.pixels(image)
            largest = int(np.abs(both[0].astype(int) - both[1]).max())
            classes = {int(np.argmax(logits(self.model, self.preprocess, one))) for one in both if largest}
            found.append((largest, len(classes) > 1))
        return found

    def show(self, paths: list[Path], processes: int) -> None:
        """Go through `paths`; Ctrl-C ends early, with what was compared."""
        images = differing = other = most = 0
        forks = multiprocessing.get_context("fork")
        with forks.Pool(processes, _begin_worker, (self,)) as pool:
            for path, found in zip(paths, interruptible(pool.imap(_compare, paths)), strict=False):
                for largest, changed in found:
                    images, differing, other = images + 1, differing + (largest > 0), other + changed
                    most = max(most, largest)
                    if changed:
                        print(f"another first class: {path}")
        print(f"{images} images: the pixels of {differing} differ, by {most} at most; {other} have another first class")


_agreement: Agreement


def _begin_worker(agreement: Agreement) -> None:
    global _agreement
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _agreement = agreement


def _compare(path: Path) -> list[tuple[int, bool]]:
    return _agreement(path)


def logits(model: Callable[[torch.Tensor], torch.Tensor], preprocess: Preprocess, pixels: Pixels) -> np.ndarray:
    """Of one image, (K,)."""
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preprocess.mean, preprocess.std))
    with torch.inference_mode():
        return model(((values - mean) / std)[None])[0].numpy()


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
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--gap", type=float, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.agreement:
        Agreement(arguments).show(photographs(arguments.images)[: arguments.count], arguments.processes)
        return
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

    ways = {"timm's transform": by_timm, "exact": exact, "default": default, "reduced JPEG scale": reduced}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    differences: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    answers: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    if arguments.images:
        paths = photographs(arguments.images)
        files = (data for path in paths for data in copies(path, arguments.side, arguments.crops))
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
            answers[name].append(answers["timm's transform"][-1] if same else logits(model, preprocess, pixels))

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
