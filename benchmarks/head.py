"""The head's fit on many features: how long it takes, and the memory that it takes beside them.

    python benchmarks/head.py [--images 100000] [--width 768] [--classes 1000] [--device cpu]

Features are random with a mean for each class; the peak is that of the whole process (of the GPU on one).
"""

import argparse
import resource
import time

import torch

from vitcli.training.logistic import fit_head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    means = torch.randn(args.classes, args.width, device=args.device)
    labels = torch.randint(args.classes, (args.images,))
    x = torch.empty(args.images, args.width, device=args.device)
    for rows, wanted in zip(x.split(1 << 14), labels.split(1 << 14), strict=True):
        rows.copy_(0.3 * means[wanted.to(args.device)]).add_(torch.randn_like(rows))
    begin = time.perf_counter()
    fitted = fit_head(x, labels, args.classes, seed=0)
    seconds = time.perf_counter() - begin
    held = [one.accuracy for one in fitted.tried if one.penalty == fitted.penalty]
    if args.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{args.images} × {args.width}, {args.classes} classes: {seconds:.0f} s, penalty {fitted.penalty:g}")
    print(f"{held[0]:.3f} held out, features {x.nbytes / 2**20:.0f} MiB, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
