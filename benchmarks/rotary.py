"""What it costs to turn queries and keys: a block that does beside the same block that does not, float32 on the CPU.

    python benchmarks/rotary.py [--threads 1] [--rounds 15] [--batch 8]

Random weights, ViT-Ti, S and B, 14×14 patches and a class token. Both are the block of `relatives.py`, in one process
and in turns (A B A B …), in processor time; a ratio is the median over the rounds of "with turning by without, in the same round".
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from vitcli.model.architectures import architecture
from vitcli.model.config import RopeConfig
from vitcli.model.relatives import RelatedBlock, Rotary

KINDS = {
    "pairs beside each other (EVA-02, PE)": RopeConfig(),
    "half a head apart (DINOv3)": RopeConfig("dinov3", 100.0, half=True),
    "learnt angles (RoPE-ViT)": RopeConfig("mixed", 10.0),
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for name in ("tiny", "small", "base"):
        plain = replace(architecture(f"vit_{name}_patch16_224"), layout="eva")
        x = torch.randn(arguments.batch, plain.num_tokens, plain.embed_dim)
        still = RelatedBlock(plain, 0, 0.0, 0.0, None).eval()
        for kind, rope in KINDS.items():
            turning = RelatedBlock(plain, 0, 0.0, 0.0, Rotary(replace(plain, rope=rope))).eval()
            blocks = (still, turning)
            for block in blocks:
                block(x)
            ratios = []
            for _ in range(arguments.rounds):
                seconds = []
                for block in blocks:
                    start = time.process_time()
                    block(x)
                    seconds.append(time.process_time() - start)
                ratios.append(seconds[1] / seconds[0])
            print(
                f"{name:6} {kind:38} ×{statistics.median(ratios):.3f}  ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
