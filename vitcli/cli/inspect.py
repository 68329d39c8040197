"""`vit inspect`: what a model is, and what it has learnt."""

from pathlib import Path
from typing import Annotated

import typer

from vitcli.cli.options import CountOpt, DeviceOpt, FoldersOpt, ImgSizeOpt, JsonOpt
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import safe

ModelArg = Annotated[
    str | None, typer.Argument(help="A checkpoint, as for vit predict -m; the default model when left out.")
]
WeightsOpt = Annotated[bool, typer.Option("--weights", help="Read the weights: SHA-256, statistics, NaN, dead heads.")]
DistanceOpt = Annotated[
    bool, typer.Option("--attention-distance", help="How far each head looks, in pixels (figure 7 right).")
]
FiltersOpt = Annotated[
    bool, typer.Option("--filters", help="Principal components of the patch embedding (figure 7 left).")
]
PosembOpt = Annotated[bool, typer.Option("--posemb", help="Similarity of the position embeddings (figure 7 centre).")]
RolloutOpt = Annotated[bool, typer.Option("--rollout", help="Attention through all layers, over the image (figure 6).")]
AttentionOpt = Annotated[bool, typer.Option("--attention", help="The class token's attention, head by head.")]
TokensOpt = Annotated[bool, typer.Option("--tokens", help="Norms of the tokens, and where artefacts sit.")]
HeadsOpt = Annotated[
    bool, typer.Option("--heads", help="Entropy, attention on prefix tokens, near-duplicates of each head.")
]
LensOpt = Annotated[bool, typer.Option("--logit-lens", help="What the head would say after each block.")]
EquivarianceOpt = Annotated[
    bool, typer.Option("--equivariance", help="Do features move with a shifted image, layer by layer?")
]
LocalityOpt = Annotated[
    bool, typer.Option("--locality", help="How far information travels; answers to shuffled and holed pictures.")
]
RelevanceOpt = Annotated[
    bool, typer.Option("--relevance", help="Do answers lean on what vit predict --why shows? Deletion and insertion.")
]
MapOpt = Annotated[
    bool,
    typer.Option("--map", help="The features of --data in two dimensions, by class; with --out images to point at."),
]
BesideOpt = Annotated[
    str | None,
    typer.Option(
        "--beside", help="Another model for --equivariance, --locality, --relevance, --map: resnet18, or a run's."
    ),
]
AllOpt = Annotated[bool, typer.Option("--all", help="All of these, figure 7 in one picture, and one HTML page.")]
DrawnImagesOpt = Annotated[
    list[str] | None, typer.Option("--images", "-i", help="Files, folders, globs to look with; may be repeated.")
]
DrawnDataOpt = Annotated[
    str | None, typer.Option("--data", "-d", help="A data set to draw images from, as for vit train.")
]
LayersOpt = Annotated[str | None, typer.Option("--layers", help="For --attention: 1,6,12 or all; the last by default.")]
BeforeOpt = Annotated[str | None, typer.Option("--before", help="With --after: two checkpoints side by side.")]
AfterOpt = Annotated[str | None, typer.Option("--after", help="The second of the two.")]
FolderOpt = Annotated[
    str | None, typer.Option("--out", "-o", help="Folder for figures, numbers and report.html; --all always has one.")
]


def inspect(
    model: ModelArg = None,
    weights: WeightsOpt = False,
    attention_distance: DistanceOpt = False,
    filters: FiltersOpt = False,
    posemb: PosembOpt = False,
    rollout: RolloutOpt = False,
    attention: AttentionOpt = False,
    tokens: TokensOpt = False,
    heads: HeadsOpt = False,
    logit_lens: LensOpt = False,
    equivariance: EquivarianceOpt = False,
    locality: LocalityOpt = False,
    relevance: RelevanceOpt = False,
    map_: MapOpt = False,
    all_: AllOpt = False,
    images: DrawnImagesOpt = None,
    data: DrawnDataOpt = None,
    folders: FoldersOpt = None,
    count: CountOpt = None,
    layers: LayersOpt = None,
    img_size: ImgSizeOpt = None,
    before: BeforeOpt = None,
    after: AfterOpt = None,
    beside: BesideOpt = None,
    out: FolderOpt = None,
    json: JsonOpt = False,
    device: DeviceOpt = None,
) -> None:
    """Show what a model is, and with the options below what it has learnt: the figures of the paper, and the numbers.

    Without options only config and header are read. Images for the others: --images, --data, or a built-in set.
    """
    asked = {
        "attention-distance": attention_distance,
        "filters": filters,
        "posemb": posemb,
        "rollout": rollout,
        "attention": attention,
        "tokens": tokens,
        "heads": heads,
        "logit-lens": logit_lens,
        "equivariance": equivariance,
        "locality": locality,
        "relevance": relevance,
        "map": map_,
    }
    aspects = [name for name, wanted in asked.items() if wanted]
    if (before is None) != (after is None):
        raise UsageError("--before and --after go together")
    if before and model:
        raise UsageError("give one model, or two with --before and --after")
    if images and data:
        raise UsageError("--images and --data are two ways to say the same; give one")
    if folders and not data:
        raise UsageError("--folders says what the folders of --data are, which is missing")
    if layers and not (attention or all_):
        raise UsageError("--layers is for --attention; without it, it would change nothing")
    if beside and (before or not (equivariance or locality or relevance or map_ or all_)):
        raise UsageError(
            "--beside goes with one model and --equivariance, --locality, --relevance or --map, which a CNN has, too"
        )
    if not aspects and not all_:
        said = {"--images": images, "--data": data, "--count": count, "--out": out, "--device": device,
                "--img-size": img_size, "--before": before}  # fmt: skip
        for option, value in said.items():
            if value:
                raise UsageError(
                    f"say what to look at, such as --attention-distance or --all; {option} changes nothing"
                )
        from vitcli.cli.views.checkpoint import show

        show(model, weights=weights, json=json)
        return
    if weights:
        raise UsageError("--weights goes with the overview; run it by itself")
    from vitcli.cli.console import note, progress, resolved
    from vitcli.cli.settings import size
    from vitcli.cli.views import exhibits as view
    from vitcli.inspection import look
    from vitcli.inspection.folder import write_folder

    inspection = look.inspect(
        {"before": before, "after": after} if before and after else model,
        None if all_ else aspects, beside=beside, images=images, data=data, folders=folders, count=count,
        layers=layers, img_size=size(img_size, "--img-size"), device=device, find=resolved, say=note, progress=progress,
    )  # fmt: skip
    folder = Path(out or f"inspect-{next(iter(inspection.checkpoints))}")
    if out or all_:
        write_folder(folder, inspection)
    if json:
        view.document(inspection)
    else:
        view.show(inspection.exhibits)
    if out or all_:
        note(f"figures, numbers and report.html are in {safe(folder)}")
    for line in inspection.failed[:5]:
        note(line)
    if inspection.failed:
        raise typer.Exit(EXIT_SOME_FAILED)
