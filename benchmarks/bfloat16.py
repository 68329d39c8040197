"""Training steps on a CPU: float32, bfloat16 with torch's kernels, bfloat16 with ours.

    python benchmarks/bfloat16.py [--rounds 5] [--batch 64]

The bundled models, one thread, forward and backward pass of random images; what differs is attention (`encoder.attend`)
and the hybrid's GroupNorm. A B C A B C; medians, and the ratios of each round. Worth nothing on a CPU that has no
bfloat16 instructions: `torch.cpu.get_capabilities()` names them.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.model import encoder, stem

WAYS = ("float32", "bfloat16, torch's kernels", "bfloat16, ours")


@contextmanager
def kernels(way: str) -> Iterator[None]:
    with ExitStack() as stack:
        if way != "float32":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if "torch" in way:
            stack.enter_context(patch.object(encoder, "attend", F.scaled_dot_product_attention))
            stack.enter_context(patch.object(stem.GroupNorm, "forward", nn.GroupNorm.forward))
        yield


def rate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, way: str, steps: int = 3) -> float:
    """Images a second, after one step that does not count."""
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()
        with kernels(way):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
    return steps * len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [name for name, has in torch.cpu.get_capabilities().items() if has is True and name.endswith("_bf16")]
    print(f"torch {torch.__version__}; bfloat16 instructions: {', '.join(found) or 'none'}")
    for name in ("fashion-vit", "fashion-hybrid"):
        model = load_model(resolve(name)).train().requires_grad_(True)
        layout = torch.channels_last if model.config.stem else torch.contiguous_format  # as the learner does
        model = model.to(memory_format=layout)
        images = torch.randn(args.batch, 3, *model.config.img_size).to(memory_format=layout)
        labels = torch.randint(0, 10, (args.batch,))
        rounds = [[rate(model, images, labels, way) for way in WAYS] for _ in range(args.rounds)]
        for index, way in enumerate(WAYS):
            ratios = [row[index] / row[0] for row in rounds]
            print(
                f"{name:16}{way:28}{statistics.median(row[index] for row in rounds):6.0f} images/s, "
                f"{statistics.median(ratios):.2f} of float32 ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
