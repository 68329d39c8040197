"""Each option once, as an `Annotated` alias with its help. Defaults live in the dataclasses of the tasks."""

import re
from typing import Annotated, Literal

import typer

from vitcli.errors import UsageError
from vitcli.text import safe


def _complete_model(incomplete: str) -> list[str]:
    from vitcli.checkpoint.catalog import model_names

    return [name for name in model_names() if name.startswith(incomplete)]


def _checked_device(name: str | None) -> str | None:
    if name is None or name == "cpu":
        return name
    from vitcli.machine import KINDS, devices

    if not re.fullmatch(rf"({'|'.join(KINDS)})(:\d{{1,3}})?", name):
        raise UsageError(f"--device {safe(name)}: write cpu, {', '.join(KINDS)}, or cuda:1 for the second GPU")
    there = devices()
    if name not in there:
        raise UsageError(f"--device {name}: torch sees no such device here, only {', '.join(there)}")
    return name


ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Checkpoint: a bundled name, `imagenet`, a timm or Hub name, a folder, a file.",
        autocompletion=_complete_model,
    ),
]
ImagesArg = Annotated[
    list[str] | None,
    typer.Argument(help="Files, folders, globs, archives, addresses; - reads one image from standard input."),
]
FromFileOpt = Annotated[
    str | None, typer.Option("--from-file", help="Read paths from this file, one a line; - is standard input.")
]
CheckpointArg = Annotated[str, typer.Argument(help="A bundled name, a timm or Hub name, a folder, a file.")]
OptionalCheckpointArg = Annotated[
    str | None,
    typer.Argument(help="A bundled name, a timm or Hub name, a folder, a file; the default model if left out."),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
DeviceOpt = Annotated[
    str | None,
    typer.Option("--device", callback=_checked_device, help="cpu, cuda, mps or xpu; what the machine has by default."),
]
DataOpt = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Class folders, a CSV/TSV/JSONL manifest, IDX files, tar or Parquet shards; also at s3:// and the like.",
    ),
]
FoldersOpt = Annotated[
    str | None,
    typer.Option(
        "--folders",
        help="What folders of --data are, where their names leave it open: train=A,val=B,test=C, or `classes`.",
    ),
]
CountOpt = Annotated[int | None, typer.Option("--count", "-n", min=1, help="How many images at most; 128 by default.")]
EngineOpt = Annotated[
    Literal["auto", "onnxruntime", "torch"], typer.Option("--engine", help="What computes; never changes a label.")
]
EnginePrecisionOpt = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"],
    typer.Option(
        "--precision",
        help="What is computed in; auto: fp32 on a CPU, fp16 on an NVIDIA GPU. int8, for CPUs, may change a label.",
    ),
]
TogetherOpt = Annotated[
    int | None, typer.Option("--batch-size", "-b", min=1, help="Images computed together, with --engine torch.")
]
ForceOpt = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
ClassNamesOpt = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        help="Names for a model whose classes have none: a file with one a line, in the logits' order, or JSON.",
    ),
]
ExactOpt = Annotated[bool, typer.Option("--exact", help="timm's pixels of the upright picture, bit for bit; slower.")]
RecipeOpt = Annotated[str | None, typer.Option("--recipe", help="A shipped recipe by name, or a TOML file.")]
OutOpt = Annotated[str | None, typer.Option("--out", "-o", help="Folder to write; runs/<data>-<n> by default.")]
ResumeOpt = Annotated[
    str | None,
    typer.Option(
        "--resume",
        help="Run folder to go on with, exactly where it stopped; auto: the run in --out, begun where there is none.",
    ),
]
ArchitectureOpt = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Architecture by timm's name; a small ViT fit for the images by default."),
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting of the recipe or the model, as name=value; may be repeated."),
]
EpochsOpt = Annotated[float | None, typer.Option("--epochs", help="Passes over the training split; may be a fraction.")]
BatchOpt = Annotated[int | None, typer.Option("--batch-size", "-b", help="Images per optimiser step.")]
LrOpt = Annotated[float | None, typer.Option("--lr", help="Learning rate at the end of the warm-up.")]
CompileOpt = Annotated[
    bool, typer.Option("--compile", help="Compile the model first: a minute or more, then faster steps.")
]
SeedOpt = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
ImgSizeOpt = Annotated[
    str | None, typer.Option("--img-size", help="Image size in pixels: 224, or HxW such as 224x320.")
]
PatchSizeOpt = Annotated[str | None, typer.Option("--patch-size", help="Patch size in pixels: 16, or HxW.")]
WorkersOpt = Annotated[
    int | None, typer.Option("--workers", "-j", help="Processes that decode images; 0: none beside the trainer.")
]
DataArg = Annotated[
    str, typer.Argument(help="What --data takes: class folders, a manifest, IDX files, shards, an address.")
]
VAL_FRACTION = 0.1
ValFractionOpt = Annotated[
    float, typer.Option("--val-fraction", help="Share of train that validates when the data has no validation split.")
]
FoldsOpt = Annotated[
    int | None,
    typer.Option(
        "--folds",
        min=2,
        help="Train on all images, and score each by one of so many other models, which was trained without it.",
    ),
]
CacheOpt = Annotated[
    Literal["auto", "ram", "disk", "none"],
    typer.Option(
        "--cache",
        help="Where copies of large images are kept, so that each is decoded once; auto: where that pays and fits.",
    ),
]
DryRunOpt = Annotated[bool, typer.Option("--dry-run", help="Show the plan, write nothing.")]
JsonlOpt = Annotated[bool, typer.Option("--jsonl", help="One JSON object a line, as soon as it is known.")]
CsvOpt = Annotated[bool, typer.Option("--csv", help="Comma-separated values with a header.")]
ClassesOpt = Annotated[int | None, typer.Option("--classes", help="How many classes the data must hold; checked.")]
TuneOpt = Annotated[
    Literal["auto", "head", "all", "lora"],
    typer.Option("--tune", help="What is trained; auto: the head first, then all if it pays."),
]
LoraRankOpt = Annotated[int | None, typer.Option("--lora-rank", help="Rank of --tune lora's updates; 8 by default.")]
PosembKernelOpt = Annotated[
    Literal["timm", "paper", "hf", "torchvision", "dinov2"] | None,
    typer.Option(
        "--posemb-kernel",
        help="How position embeddings are resampled for --img-size; timm by default.",
    ),
]
MultiLabelOpt = Annotated[
    bool,
    typer.Option("--multi-label", help="Several labels may hold for an image; so it is where a manifest has `labels`."),
]
KeepClassesOpt = Annotated[
    bool,
    typer.Option(
        "--keep-classes", help="Keep the model's classes and their rows of its head; the data's new ones are added."
    ),
]
TeacherOpt = Annotated[
    str | None, typer.Option("--teacher", help="A trained model whose opinion is learnt beside the labels.")
]
TeacherAnswersOpt = Annotated[
    str | None,
    typer.Option(
        "--teacher-answers",
        help="File to keep the teacher's answers in: it is asked once about each whole image, at its own size.",
    ),
]
TimeBudgetOpt = Annotated[
    str | None, typer.Option("--time-budget", help="Wall-clock time the run may take: 90s, 20m, 1.5h.")
]
TrackOpt = Annotated[
    list[str] | None,
    typer.Option("--track", help="Follow the run in tensorboard, mlflow, wandb or trackio; may be repeated."),
]
ScoreOpt = Annotated[
    Literal["auto", "val", "test", "none"],
    typer.Option("--score", help="Split that the result is scored on; auto: test if there is one."),
]
ShardOpt = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Do one share of the images, in parts, into the folder --out: i/n, the first is 0/n; alone: what "
        "torchrun, SLURM or VIT_SHARD=i/n says.",
    ),
]
MergeOpt = Annotated[
    str | None, typer.Option("--merge", help="Join the parts that --shard left in this folder, once all are there.")
]
PartSizeOpt = Annotated[
    int | None,
    typer.Option("--part-size", min=1, max=1 << 16, help="Images a part, the most that a kill can cost; 1024."),
]
OnOpt = Annotated[
    str | None,
    typer.Option(
        "--on", help="Compute on a Ray cluster: ray for this machine's, or ray://HOST:10001; with --out FILE."
    ),
]
