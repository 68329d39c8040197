"""Looking inside, beside a plain forward pass and beside timm with hooks.

    python benchmarks/inspect_model.py distance [--rounds 5]
    python benchmarks/inspect_model.py overview [--rounds 9]

distance  ViT-B/16 at 384, 8 random images, random weights: a plain forward pass, attention distance of all layers, and
          the usual way with timm: fused attention off, a forward hook on each `attn_drop`, distances from what it saw.
          Each measurement is a process of its own, because peak memory is a process's.
overview  `vit inspect MODEL` on a checkpoint of 1 GB, whole process.

A B A B; medians, and the ratio of each round's pair.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitcli.inspection.distance import AttentionDistance, patch_distances
from vitcli.inspection.observe import observe
from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer

CONFIG = ViTConfig(img_size=(384, 384))
BATCH = 8


@torch.inference_mode()
def plain(model: VisionTransformer, images: torch.Tensor) -> None:
    x = model.embed(images)
    for block in model.blocks:
        x = block(x)


def distance(model: VisionTransformer, images: torch.Tensor) -> None:
    instrument = AttentionDistance(model.config)
    observe(model, [images], [instrument])
    instrument.result()


def timm_hooks(_: VisionTransformer, images: torch.Tensor) -> Callable[[], None]:
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(False)
    model = timm.create_model("vit_base_patch16_384").eval()
    between, found = patch_distances(CONFIG), []

    def hook(_module: torch.nn.Module, _inputs: object, weights: torch.Tensor) -> None:
        found.append((weights[:, :, 1:, 1:] * between).sum(dim=-1).mean(dim=(0, 2)))

    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(hook)

    @torch.inference_mode()
    def run() -> None:
        model.forward_features(images)

    return run


def one(name: str) -> None:
    """Print seconds of the second of two calls, and the process's peak memory in MiB."""
    torch.manual_seed(0)
    model, images = VisionTransformer(CONFIG).eval(), torch.randn(BATCH, 3, *CONFIG.img_size)
    if name == "timm":
        run = timm_hooks(model, images)
        del model
    else:
        work = plain if name == "plain" else distance
        run = lambda: work(model, images)  # noqa: E731
    run()
    begin = time.perf_counter()
    run()
    print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def compare(rounds: int) -> None:
    names = ("plain", "vit", "timm")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            out = subprocess.run([sys.executable, __file__, "one", name], check=True, capture_output=True, text=True)
            spent, peak = map(float, out.stdout.split())
            seconds[name].append(spent)
            memory[name].append(peak)
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        of_memory = statistics.median(memory[name]) / statistics.median(memory["plain"])
        print(
            f"{name:6} {statistics.median(seconds[name]):6.2f} s  {statistics.median(memory[name]):6.0f} MiB   "
            f"to plain: time {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
            f"memory {of_memory:.3f}"
        )


def overview(rounds: int) -> None:
    from vitcli.checkpoint.config import Description
    from vitcli.checkpoint.write import save_model
    from vitcli.images.preprocess import Preprocess

    config = ViTConfig(embed_dim=1024, depth=20, num_heads=16)  # 254 million parameters
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "large"
        save_model(
            folder,
            VisionTransformer(config),
            Description(architecture="vit_large_patch16_224", preprocess=Preprocess()),
        )
        print(f"{(folder / 'model.safetensors').stat().st_size / 1e9:.2f} GB")
        program = Path(sys.executable).with_name("vit")
        spent = []
        for _ in range(rounds):
            begin = time.perf_counter()
            subprocess.run([program, "inspect", folder], check=True, capture_output=True)
            spent.append(time.perf_counter() - begin)
    print(f"vit inspect: median {statistics.median(spent):.3f} s, {min(spent):.3f} to {max(spent):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("distance", "overview", "one"))
    parser.add_argument("name", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "one":
        one(arguments.name)
    elif arguments.what == "distance":
        compare(arguments.rounds)
    else:
        overview(arguments.rounds)
