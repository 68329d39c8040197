"""The model alone: our two engines beside timm eager and plain ONNX Runtime on a torch export. No files, no decoding.

    python benchmarks/inference_model.py [--threads 2] [--rounds 7] [--sizes Ti S B] [--batches 1 8] [--family dinov3]
    python benchmarks/inference_model.py --agreement DATA [--model CHECKPOINT] [--count 1000]

Random weights, 224 pixels (DINOv3: 256). Of families other than the paper's ViT, timm's eager model is the only other.
 All engines live in this process and take turns (A B A B …), with a pause before each, since
the threads of ONNX Runtime spin for a while after their work. Ratios are medians over the rounds of "timm's time by
theirs, in the same round"; the last lines are geometric means over sizes and batches.

With --agreement: how often each of the other precisions gives the same first class as fp32, on the validation split of
labelled images, and the accuracy of each. On a CPU torch rounds to bfloat16 and float16 as a GPU's autocast does.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
SIZES = {"Ti": "tiny", "S": "small", "B": "base"}
FAMILIES = {
    "vit": {size: f"vit_{name}_patch16_224" for size, name in SIZES.items()},
    "dinov3": {size: f"vit_{name}_patch16_dinov3_qkvb" for size, name in SIZES.items()},
    "eva02": {size: f"eva02_{name}_patch14_224" for size, name in SIZES.items()},
    "distilled": {size: f"deit_{name}_distilled_patch16_224" for size, name in SIZES.items()},
    "beit": {"B": "beit_base_patch16_224"},
}
CLASSES = 1000
PAUSE = 0.05  # seconds
SHORTEST = 0.15  # seconds of one measurement; fast models run several times


def open_all(name: str, threads: int) -> dict[str, Callable[[int], Run]]:
    """Engine name → a function from the batch size to the engine."""
    import onnxruntime
    import timm
    import torch

    from vitcli.inference.engines import OnnxEngine
    from vitcli.machine import emulated
    from vitcli.model.architectures import architecture
    from vitcli.model.vit import VisionTransformer

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    vit = replace(architecture(name), num_classes=CLASSES)

    def eager(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    def ours(precision: str) -> Callable[[int], Run]:
        engines = {n: OnnxEngine(vit, tensors, precision=precision, at_once=n) for n in (1, threads)}
        return lambda size: engines[1 if size == 1 else threads].logits

    own = VisionTransformer(vit).eval()
    own.load_state_dict(model.state_dict())

    def bf16(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return own(torch.from_numpy(images)).float().numpy()

    engines = {"timm eager": lambda size: eager, "vit, fp32": ours("fp32"), "vit, int8": ours("int8")}
    if not emulated("bf16", "cpu"):
        engines["vit, bf16"] = lambda size: bf16
    if name not in FAMILIES["vit"].values():
        return engines
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        sample = (torch.zeros(2, 3, 224, 224),)
        torch.onnx.export(model, sample, dynamo=True, dynamic_shapes=(batch,), verbose=False).save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        plain = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    input_name = plain.get_inputs()[0].name

    engines["ONNX Runtime, torch export"] = lambda size: lambda images: plain.run(None, {input_name: images})[0]
    return engines


def measure(engines: dict[str, Run], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call, by engine and round."""
    repeats, seconds = {}, {name: [] for name in engines}
    for name, run in engines.items():
        run(images)
        start = time.perf_counter()
        run(images)
        repeats[name] = max(1, round(SHORTEST / (time.perf_counter() - start)))
    for turn in range(rounds):
        names = list(engines)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(PAUSE)
            start = time.perf_counter()
            for _ in range(repeats[name]):
                engines[name](images)
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def benchmark(family: str, sizes: list[str], batches: list[int], threads: int, rounds: int) -> None:
    from vitcli.model.architectures import architecture

    ratios: dict[str, list[float]] = {}
    over_export: list[float] = []
    for size in sizes:
        name = FAMILIES[family][size]
        opened = open_all(name, threads)
        for batch in batches:
            shape = (batch, 3, *architecture(name).img_size)
            images = np.random.default_rng(0).standard_normal(shape, np.float32)
            engines = {name: by_size(batch) for name, by_size in opened.items()}
            answers = {name: run(images) for name, run in engines.items()}
            seconds = measure(engines, images, rounds)
            print(f"{name}, batch {batch}")
            for engine, times in seconds.items():
                paired = [a / b for a, b in zip(seconds["timm eager"], times, strict=True)]
                ratios.setdefault(engine, []).append(statistics.median(paired))
                difference = np.abs(answers[engine] - answers["timm eager"]).max()
                print(
                    f"  {engine:28} {batch / statistics.median(times):7.2f} images/s  ×{statistics.median(paired):5.2f}"
                    f"   rounds {min(paired):.2f} to {max(paired):.2f}   logits off by {difference:.1e}",
                    flush=True,
                )
            if export := seconds.get("ONNX Runtime, torch export"):
                pairs = zip(export, seconds["vit, fp32"], strict=True)
                over_export.append(statistics.median(a / b for a, b in pairs))
    print("\ngeometric means over sizes and batches")
    for name, values in ratios.items():
        print(f"  {name:28} ×{mean(values):.3f} of timm eager, least ×{min(values):.3f}")
    if over_export:
        print(f"  vit, fp32 is ×{mean(over_export):.3f} of ONNX Runtime on the torch export")


def mean(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


def agreement(data: str, model: str | None, count: int) -> None:
    from vitcli import load
    from vitcli.data.sources import open_data

    samples = open_data(Path(data)).val
    indices = np.random.default_rng(0).permutation(len(samples))[:count]
    answers = {}
    for precision in ("fp32", "int8", "bf16", "fp16"):
        loaded = load(model, precision=precision)
        pictures = (samples.image(int(i)) for i in indices)
        answers[precision] = [p.labels[0] for p in islice(loaded.predict(pictures, top_k=1), count)]
    print(f"{loaded.checkpoint.name}, {len(answers['fp32'])} validation images of {data}")
    for precision, scores in answers.items():
        same = np.mean([a.index == b.index for a, b in zip(answers["fp32"], scores, strict=True)])
        right = np.mean([score.index == samples.labels[i] for score, i in zip(scores, indices, strict=True)])
        print(f"  {precision}: the first class of fp32 on {same:.2%}, accuracy {right:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--family", choices=FAMILIES, default="vit")
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--agreement", metavar="DATA")
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # what OnnxEngine goes by
    if arguments.agreement:
        agreement(arguments.agreement, arguments.model, arguments.count)
    else:
        sizes = arguments.sizes or list(FAMILIES[arguments.family])
        benchmark(arguments.family, sizes, arguments.batches, arguments.threads, arguments.rounds)


if __name__ == "__main__":
    main()
