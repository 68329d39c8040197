"""Training steps in float32 on a CPU: linear layers through torch's `F.linear` (MKL), and through oneDNN.

    python benchmarks/linear.py [--rounds 5] [--threads 1] [--processor-time]

The bundled ViT, batch 64, and Ti/16 at 224, batch 32: forward and backward pass of random images, and the forward pass
alone. A B A B; medians, and the ratio of each round. Beside them what this process would choose, and what that is of
the better one. Then the largest error of one product of each.
"""

import argparse
import statistics
import time
from unittest.mock import patch

import torch
import torch.nn.functional as F

from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.model import linear
from vitcli.model.architectures import architecture
from vitcli.model.vit import VisionTransformer

clock = time.perf_counter


def through(kernel: str, model: VisionTransformer, images: torch.Tensor, labels: torch.Tensor, training: bool) -> float:
    """Images a second, after one pass that does not count."""
    with patch.object(linear, "_chosen", kernel):
        for step in range(3):
            if step == 1:
                start = clock()
            if training:
                F.cross_entropy(model(images), labels).backward()
            else:
                with torch.inference_mode():
                    model(images)
    return 2 * len(images) / (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true", help="of one thread, for a machine that is not idle")
    args = parser.parse_args()
    if args.processor_time:
        global clock
        clock = time.process_time
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    chosen = linear.kernel()
    print(f"torch {torch.__version__}; {args.threads} threads; chosen here: {chosen}, expected: {linear.expected()}")
    models = {
        "fashion-vit, batch 64": (load_model(resolve("fashion-vit")), 64),
        "Ti/16 at 224, batch 32": (VisionTransformer(architecture("vit_tiny_patch16_224")), 32),
    }
    for name, (model, batch) in models.items():
        model.train().requires_grad_(True)
        images, labels = torch.randn(batch, model.config.in_chans, *model.config.img_size), torch.zeros(batch).long()
        for training in (True, False):
            rates: dict[str, list[float]] = {"torch": [], "onednn": []}
            for _ in range(args.rounds):
                for kernel, found in rates.items():
                    found.append(through(kernel, model, images, labels, training))
            ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
            torchs, onednn = (statistics.median(found) for found in rates.values())
            what = "training" if training else "forward"
            share = (ratio if chosen == "onednn" else 1.0) / max(ratio, 1.0)
            print(
                f"{name}, {what}: torch {torchs:.0f}, oneDNN {onednn:.0f} images/s, ratio {ratio:.2f}; "
                f"the chosen one is {share:.2f} of the better",
                flush=True,
            )
    x, weight = torch.randn(6304, 192), torch.randn(768, 192)
    exact = x.double() @ weight.double().t()
    for kernel, y in (("torch", F.linear(x, weight)), ("oneDNN", linear._product(x, weight, None))):
        print(f"largest error of (6304, 192) · (192, 768), {kernel}: {(y - exact).abs().max():.1e}")


if __name__ == "__main__":
    main()
