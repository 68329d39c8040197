"""What a checkpoint is, as a page of facts. Imports no torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from vitcli.cli.console import note, resolved, row, shown, stdout, table, waiting
from vitcli.inspection.overview import Overview, overview
from vitcli.inspection.weights import Weights
from vitcli.inspection.weights import weights as read_all
from vitcli.text import as_json, safe

CLASSES_SHOWN = 10


def show(model: str | None, *, weights: bool, json: bool) -> None:
    """Print what `model` is; with `weights`, what is in them, too."""
    checkpoint = resolved(model, verify=weights)
    if model is None:
        note(f"{safe(checkpoint.name)} ({checkpoint.why})")
    found = overview(checkpoint)
    with waiting("reading the weights"):
        read = read_all(checkpoint) if weights else None
    if json:
        print(as_json(_document(found, read)))
        return
    from rich.text import Text

    console = stdout()
    facts = table("", "")
    facts.show_header = False
    for name, value in [*_facts(found), *([("sha256", read.sha256)] if read else [])]:
        row(facts, Text(name, style="dim"), value)
    console.print(facts)
    if found.stages:
        console.print(_stages(found))
    if read:
        console.print()
        console.print(_statistics(read))
    for line in [*found.odd, *(_damage(read) if read else ())]:
        console.print(Text(f"odd: {safe(line, None)}", style="yellow"))


def _facts(found: Overview) -> Iterator[tuple[str, str]]:
    checkpoint, vit = found.checkpoint, found.checkpoint.vit
    yield (
        "model",
        f"{checkpoint.name} ({checkpoint.source}{f', {checkpoint.revision[:12]}' if checkpoint.revision else ''})",
    )
    yield "architecture", checkpoint.architecture
    if vit:
        yield "image", f"{by(vit.img_size)} pixels, {vit.in_chans} channel{'s' * (vit.in_chans > 1)}"
        yield "patches", f"{by(vit.grid)} of {by(vit.stride)} pixels{', cut from the map of a CNN' if vit.stem else ''}"
        prefix = ["class token"] * vit.class_token + ["distillation token"] * vit.distilled
        prefix += [f"{vit.reg_tokens} registers"] * bool(vit.reg_tokens)
        yield "tokens", f"{vit.num_tokens}: {' + '.join([*prefix, f'{vit.num_patches} patches'])}"
        yield (
            "encoder",
            f"{vit.depth} blocks, width {vit.embed_dim}, {vit.num_heads} heads of {vit.head_dim}, "
            f"{'gated ' * vit.gated}MLP {vit.mlp_hidden}",
        )
        if vit.rope:
            yield "", f"queries and keys are turned by their places ({vit.rope.kind})"
        if vit.rel_pos_bias:
            yield "", "addends to the attention's scores by distance"
        yield "cost", f"{found.macs / 1e9:.3g} G multiply-adds an image ({2 * found.macs / 1e9:.3g} GFLOPs)"
    yield "parameters", f"{found.params:,} ({found.bytes / 1e6:.1f} MB as {', '.join(found.stored).lower()})"
    p = checkpoint.preprocess
    yield "preprocessing", f"{by(p.size)}, crop {p.crop_pct:g} {p.crop_mode}, {p.interpolation}"
    yield "", f"mean {' '.join(f'{m:g}' for m in p.mean)}, std {' '.join(f'{s:g}' for s in p.std)}"
    yield "outputs" if checkpoint.why_no_classes else "classes", _classes(checkpoint.labels, checkpoint.num_classes)
    if checkpoint.num_classes and checkpoint.outputs != "classes":
        yield "", checkpoint.why_no_classes or "each judged by itself (sigmoid)"
    if checkpoint.temperature is not None:
        yield "calibrated", f"temperature {checkpoint.temperature:.4g}"
    yield from _provenance(checkpoint.provenance)
    yield "licence", found.licence or "not said"


def _classes(labels: tuple[str, ...], number: int) -> str:
    if not number:
        return "the representation"
    names = ", ".join(shown(label, 40) for label in labels[:CLASSES_SHOWN])
    return f"{number}: {names}{', …' if len(labels) > CLASSES_SHOWN else ''}" if names else str(number)


def _provenance(origin: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if made := origin.get("trained_by"):
        data = origin.get("data") if isinstance(origin.get("data"), dict) else {}
        on = f" on {data.get('images')} images of {data.get('name')}" if data else ""
        epochs = f", {origin['epoch']} epochs" if "epoch" in origin else ""
        yield "made by", f"{made}{on}{epochs}"
    if isinstance(accuracy := origin.get("validation_accuracy"), float):
        yield "", f"validation accuracy {accuracy:.4f} on {origin.get('validation_images', '?')} images"
    if base := origin.get("base_model"):
        yield "from", str(base)
    if teacher := origin.get("teacher"):
        yield "teacher", str(teacher)


def _stages(found: Overview) -> Any:
    grid = table("stage", "shape", "parameters", "multiply-adds", right=("shape", "parameters", "multiply-adds"))
    depth = found.checkpoint.vit.depth if found.checkpoint.vit else 0
    for stage in found.stages:
        name = f"{stage.name} ×{depth}" if stage.name in ("attention", "mlp") else stage.name
        row(
            grid,
            name,
            by(stage.shape),
            f"{stage.params:,}" if stage.params else "",
            f"{stage.macs:,}" if stage.macs else "",
        )
    return grid


def _statistics(read: Weights) -> Any:
    grid = table("weight", "shape", "mean", "std", "largest", right=("shape", "mean", "std", "largest"))
    for one in read.tensors:
        row(grid, one.name, by(one.shape) or "1", f"{one.mean:.4f}", f"{one.std:.4f}", f"{one.largest:.3f}")
    return grid


def _damage(read: Weights) -> Iterator[str]:
    for one in read.tensors:
        if one.not_finite:
            yield f"{one.name} holds {one.not_finite} NaN or infinite numbers"
    for layer, head in read.dead:
        yield f"layer {layer + 1} head {head + 1} is dead: next to nothing of it reaches the next layer"


def _document(found: Overview, read: Weights | None) -> dict[str, Any]:
    checkpoint, vit = found.checkpoint, found.checkpoint.vit
    document: dict[str, Any] = {
        "schema": "vit.inspect.overview/1",
        "model": checkpoint.name,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "architecture": checkpoint.architecture,
        "image_size": list(checkpoint.preprocess.size),
        "grid": list(vit.grid) if vit else None,
        "patch_size": list(vit.stride) if vit else None,
        "prefix_tokens": vit.num_prefix_tokens if vit else None,
        "parameters": found.params,
        "macs": found.macs if vit else None,
        "bytes": found.bytes,
        "stored": list(found.stored),
        "stages": [
            {"name": s.name, "shape": list(s.shape), "parameters": s.params, "macs": s.macs} for s in found.stages
        ],
        "preprocess": checkpoint.preprocess.to_config(),
        "classes": list(checkpoint.labels) or checkpoint.num_classes,
        "provenance": checkpoint.provenance,
        "licence": found.licence,
        "odd": list(found.odd),
    }
    if read:
        document["weights"] = {
            "sha256": read.sha256,
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "mean": t.mean, "std": t.std, "largest": t.largest,
                 "not_finite": t.not_finite} for t in read.tensors
            ],
            "head_sizes": [list(heads) for heads in read.head_sizes],
            "dead_heads": [list(pair) for pair in read.dead],
        }  # fmt: skip
    return document


def by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
