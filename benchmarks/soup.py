"""Averages the weights of two checkpoints of one shape, a model soup (arXiv 2203.05482): how the bundled hybrid ended.

    python benchmarks/soup.py A B --data fashion-mnist/ --out RUN/best [--val-fraction 0.05]

(1 − share) · A + share · B for shares from 0 to 1; the one with the best accuracy on the validation images is written
to --out. Prints Markdown.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bundle import provenance_of

from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.write import save_model
from vitcli.data.sources import open_data
from vitcli.inference.engines import OnnxEngine

SHARES = np.linspace(0, 1, 11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs=2)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--val-fraction", type=float, default=0.05)
    options = parser.parse_args()
    a, b = (resolve(name) for name in options.checkpoints)
    assert a.vit is not None
    assert (a.vit, a.labels, a.preprocess) == (b.vit, b.labels, b.preprocess)
    model, others = load_model(a), load_model(b).state_dict()
    weights = model.state_dict()
    val = open_data(options.data, val_fraction=options.val_fraction).val
    pixels = np.stack([val.load(i, a.preprocess) for i in range(len(val))])
    print("| share of B | accuracy | NLL |\n| --- | --- | --- |")
    found = {}
    for share in SHARES:
        mixed = {name: torch.lerp(weights[name], others[name], share) for name in weights}
        engine = OnnxEngine(a.vit, {name: tensor.numpy() for name, tensor in mixed.items()}, at_once=2)
        logits = engine.logits(pixels)
        accuracy = float((logits.argmax(axis=1) == val.labels).mean())
        nll = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(val.labels)))
        print(f"| {share:.1f} | {accuracy:.4f} | {nll:.4f} |", flush=True)
        found[accuracy, -nll] = share, mixed
    (accuracy, _), (share, mixed) = max(found.items(), key=lambda entry: entry[0])
    shares = ((a, 1 - share), (b, share))
    parts = [{**provenance_of(checkpoint), "share": round(part, 2)} for checkpoint, part in shares]
    provenance = {
        "trained_by": " and ".join(part["trained_by"] for part in parts) + ", averaged",
        "data": parts[0]["data"],
        "validation_accuracy": accuracy,
        "validation_images": len(val),
        "soup": parts,
    }
    model.load_state_dict(mixed)
    save_model(
        options.out,
        model,
        replace(a, provenance=provenance),
    )


if __name__ == "__main__":
    main()
