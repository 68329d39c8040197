"""Fine-tuning beside its peers.

    python benchmarks/finetune.py head --data FOLDER [--model CHECKPOINT] [--rounds 3]
    python benchmarks/finetune.py speed [--rounds 5] [--processor-time]
    python benchmarks/finetune.py time-to --data FOLDER [--model CHECKPOINT] [--accuracy 0.9] [--rounds 3]

head     whole processes: `vit finetune --tune head` on N images, and one inference pass over them, `vit predict`.
speed    images per second of training Ti/16 at 224, batch 32, and a 28-pixel ViT, batch 256: vit, a timm loop
         (benchmarks/training.py), the transformers Trainer; same augmentation, AdamW, random images in memory, each as
         it comes: vit in bfloat16 where the processor has instructions for it, the others in float32.
time-to  seconds from the loaded program to the first epoch whose validation accuracy reaches a mark, all from the same
         start weights on the same split: `vit finetune` with its defaults; a timm loop with the defaults of timm's
         train.py where they apply (SGD 0.9, lr 0.1 · batch 128 / 256, cosine); the transformers Trainer with its own.

The Trainer needs `pip install accelerate`. A B A B; medians, and the ratio of each round's pair.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import processes
import timm
import torch
import torch.nn.functional as F
import training
import transformers
from torchvision import transforms

from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.samples import ArraySamples, DataSet, Samples
from vitcli.data.sources import open_data
from vitcli.training.build import build_task
from vitcli.training.estimate import choose_tune, estimate
from vitcli.training.events import Evaluated
from vitcli.training.recipe import load_recipe, small_images
from vitcli.training.settings import FineTuning, Settings
from vitcli.training.train import begin, train

GIVE_UP = 300.0  # seconds


class Images(torch.utils.data.Dataset):
    """Samples as the transformers Trainer wants them."""

    def __init__(self, samples: Samples, transform: Callable[[Any], torch.Tensor]) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixel_values": self.transform(self.samples.image(i)), "labels": int(self.samples.labels[i])}


class Clock(transformers.TrainerCallback):
    """The moment at which each step ended, and each evaluation's accuracy; stops at a mark."""

    def __init__(self, mark: float = 2.0) -> None:
        self.mark, self.ends, self.reached = mark, [training.clock()], None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(training.clock())
        control.should_training_stop |= self.ends[-1] - self.ends[0] > GIVE_UP

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        if metrics["eval_accuracy"] >= self.mark and self.reached is None:
            self.reached = training.clock() - self.ends[0]
            control.should_training_stop = True


def crops(side: int) -> Callable[[Any], torch.Tensor]:
    crop = transforms.RandomResizedCrop(side, (0.35, 1.0), interpolation=transforms.InterpolationMode.BICUBIC)
    normalise = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise])


def trainer(
    model: Any, images: Images, clock: Clock, held_out: Images | None = None, **settings: Any
) -> transformers.Trainer:
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    arguments = transformers.TrainingArguments(tempfile.mkdtemp(), **quiet, **settings)
    return transformers.Trainer(model, arguments, train_dataset=images, eval_dataset=held_out, callbacks=[clock])


def speed(rounds: int) -> None:
    for name in training.CASES:
        print(name, flush=True)
        speed_of(name, rounds)


def speed_of(name: str, rounds: int) -> None:
    side, args, recipe, steps = training.CASES[name]
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (512, side, side), np.uint8), rng.integers(0, 10, 512)
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=side, num_labels=10,
        num_hidden_layers=args.get("depth", 12), patch_size=args.get("patch_size", [16])[0],
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config)
    samples = ArraySamples(images, labels, "random", np.arange(len(labels)))

    def trainer_steps(times: int) -> list[float]:
        clock = Clock()
        shown = Images(samples, crops(side))
        trainer(theirs, shown, clock, per_device_train_batch_size=recipe.batch_size, max_steps=times + 1).train()
        return np.diff(clock.ends)[1:].tolist()  # the first one includes the set-up

    ours, loop = (
        training.ours(side, args, recipe, images, labels)[0],
        training.timm_loop(side, args, recipe, images, labels),
    )
    work = {
        "vit": lambda times: training.seconds(ours, times),
        "timm loop": lambda times: training.seconds(loop, times),
        "transformers Trainer": trainer_steps,
    }
    took: dict[str, list[float]] = {who: [] for who in work}
    for steps_of in work.values():
        steps_of(1)
    for _ in range(rounds):
        for who, steps_of in work.items():
            took[who].append(statistics.median(steps_of(steps)))
    show(took, lambda seconds: f"{recipe.batch_size / seconds:.1f} img/s")


def head(data: Path, model: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        vit = [sys.executable, "-m", "vitcli"]
        tune = [*vit, "finetune", "--data", str(data), "-m", model, "--tune", "head", "--score", "none"]
        # a new run folder for every round
        fresh = ["sh", "-c", 'rm -rf "$0"; exec "$@" --out "$0"', f"{place}/run", *tune]
        measured = processes.in_turn({"finetune": fresh, "predict": [*vit, "predict", str(data), "-m", model]}, rounds)
        processes.report(measured, "finetune", "predict")
        pairs = zip(measured["finetune"], measured["predict"], strict=True)
        print(f"(finetune − 10 s) / predict: {statistics.median((a.seconds - 10) / b.seconds for a, b in pairs):.2f}")


def time_to(path: Path, model: str, mark: float, rounds: int) -> None:
    data = open_data(str(path))
    work = {
        "vit finetune": lambda: vit_time(path, data, model, mark),
        "timm loop": lambda: timm_time(data, model, mark),
        "transformers Trainer": lambda: trainer_time(data, model, mark),
    }
    took: dict[str, list[float]] = {who: [] for who in work}
    for _ in range(rounds):
        for who, seconds in work.items():
            took[who].append(seconds())
    show(took, lambda seconds: f"{seconds:.1f} s" if seconds < GIVE_UP else "not reached")


def vit_time(path: Path, data: DataSet, model: str, mark: float) -> float:
    began = time.perf_counter()
    checkpoint = resolve(model)
    recipe = load_recipe(None, "finetune").recipe
    if min(checkpoint.preprocess.size) <= 64:
        recipe = small_images(recipe, min(checkpoint.preprocess.size))
    settings = Settings(
        checkpoint.architecture, {}, str(path), recipe, start=FineTuning(model, weights_digest(checkpoint), "all")
    )
    tune, _ = choose_tune(estimate(build_task(settings, data), "cpu"), len(data.classes), None)
    settings = Settings(
        checkpoint.architecture, {}, str(path), recipe, start=FineTuning(model, weights_digest(checkpoint), tune)
    )
    with tempfile.TemporaryDirectory() as place:
        begin(settings, data, Path(place))
        for event in train(settings, data, Path(place)):
            if isinstance(event, Evaluated) and event.validation.accuracy >= mark:
                return time.perf_counter() - began
    return GIVE_UP


def timm_time(data: DataSet, model: str, mark: float) -> float:
    began = time.perf_counter()
    checkpoint = resolve(model)
    net = timm.create_model(f"local-dir:{checkpoint.folder}", pretrained=True)
    net.reset_classifier(len(data.classes))
    side = checkpoint.preprocess.size[0]
    evaluation = timm.data.create_transform(**timm.data.resolve_data_config(model=net))
    batch, epochs = 128, 300
    optimizer = timm.optim.create_optimizer_v2(net, "sgd", lr=0.1 * batch / 256, weight_decay=2e-5, momentum=0.9)
    loader = torch.utils.data.DataLoader(Images(data.train, crops(side)), batch, shuffle=True)
    validation = list(torch.utils.data.DataLoader(Images(data.val, evaluation), batch))
    for epoch in range(epochs):
        net.train()
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + np.cos(np.pi * epoch / epochs)) / 2
        for both in loader:
            F.cross_entropy(net(both["pixel_values"]), both["labels"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
        with torch.inference_mode():
            right = sum((net(v["pixel_values"]).argmax(1) == v["labels"]).sum().item() for v in validation)
        if right / len(data.val) >= mark:
            return time.perf_counter() - began
        if time.perf_counter() - began > GIVE_UP:
            break
    return GIVE_UP


def trainer_time(data: DataSet, model: str, mark: float) -> float:
    clock = Clock(mark)
    checkpoint = resolve(model)
    # Its own choice would be the file's float16, in which training on a CPU gives NaN.
    net = transformers.AutoModelForImageClassification.from_pretrained(checkpoint.folder, dtype=torch.float32)
    net.timm_model.reset_classifier(len(data.classes))
    side = checkpoint.preprocess.size[0]
    normalise = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    plain = transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor(), normalise])
    images, held_out = Images(data.train, crops(side)), Images(data.val, plain)
    theirs = trainer(net, images, clock, held_out, eval_strategy="epoch", num_train_epochs=100)
    theirs.compute_metrics = lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())}
    theirs.train()
    return clock.reached or GIVE_UP


def show(took: dict[str, list[float]], write: Callable[[float], str]) -> None:
    ours, *peers = took
    for who, seconds in took.items():
        print(f"{who}: {write(statistics.median(seconds))}")
    for peer in peers:
        pairs = [b / a for a, b in zip(took[ours], took[peer], strict=True)]
        middle = statistics.median(pairs)
        print(f"  {peer} / {ours}, seconds: {middle:.2f} (rounds {min(pairs):.2f} to {max(pairs):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("head", "speed", "time-to"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="fashion-vit")
    parser.add_argument("--accuracy", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="of one thread, for a machine that is not idle")
    wanted = parser.parse_args()
    if wanted.processor_time:
        training.clock = time.process_time
        torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"{torch.get_num_threads()} threads")
    match wanted.what:
        case "head":
            head(wanted.data, wanted.model, wanted.rounds)
        case "speed":
            speed(wanted.rounds)
        case "time-to":
            time_to(wanted.data, wanted.model, wanted.accuracy, wanted.rounds)


if __name__ == "__main__":
    main()
