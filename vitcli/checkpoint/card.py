"""A model card for the Hub: what the checkpoint says of itself, and how to use it. Text only.

Numbers come from the checkpoint's provenance; what is not there is not said.
"""

import json
from collections.abc import Mapping
from typing import Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.model_args import other_fields_of
from vitcli.text import command, safe


def model_card(checkpoint: Checkpoint, repo: str, license: str | None) -> str:
    """README.md: metadata, facts, where it comes from, how to load it.

    `repo` is a name on the Hub (org/name), or that of a folder, whose card names no licence. timm and transformers are
    named for models that they can build.
    """
    from huggingface_hub import EvalResult, ModelCardData

    provenance = checkpoint.provenance
    data, (accuracy, split) = provenance.get("data", {}), _accuracy(provenance)
    name = data.get("name") if isinstance(data, dict) else None
    results = []
    if isinstance(accuracy, float) and name and not provenance.get("resized"):  # else it is that of another size
        results = [
            EvalResult("image-classification", safe(name), safe(name), "accuracy", accuracy,
                       dataset_split=split, task_name="Image classification")
        ]  # fmt: skip
    base = checkpoint.base_model or provenance.get("base_model")
    task = "image-feature-extraction" if checkpoint.why_no_classes else "image-classification"
    metadata = ModelCardData(
        license=license,
        library_name="timm" if _timm_builds(checkpoint) else None,
        pipeline_tag=task,
        tags=[task, *(["timm", "transformers"] if _timm_builds(checkpoint) else []), "vit"],
        base_model=base if isinstance(base, str) and "/" in base else None,
        model_name=repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repo}",
        _facts(checkpoint),
        _origin(provenance),
        _use(checkpoint, repo),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _accuracy(provenance: Mapping[str, Any]) -> tuple[Any, str]:
    """How good the model is said to be, None where nobody measured it, and on which images."""
    folds = provenance.get("cross_validation")
    if isinstance(folds, dict):
        return folds.get("accuracy"), f"{folds.get('folds')} folds of train, by {folds.get('folds')} other models"
    measured = provenance.get("validation_images") != 0
    return provenance.get("validation_accuracy") if measured else None, "validation"


def use_command(name: str, *, classifies: bool) -> str:
    """The command that the checkpoint `name` is good for: a prediction, or for one without classes a fine-tuning."""
    task, rest = ("predict", "IMAGE…") if classifies else ("finetune", "--data PHOTOS/")
    return f"{command('vit', task, '-m', name)} {rest}"


def _facts(checkpoint: Checkpoint) -> str:
    height, width = checkpoint.preprocess.size
    lines = [f"- Architecture: `{checkpoint.architecture}`", f"- Input: {height}×{width} pixels"]
    if vit := checkpoint.vit:
        lines.append(f"- Patches: {vit.grid[0]}×{vit.grid[1]} of {vit.stride[0]}×{vit.stride[1]} pixels")
        lines.append(f"- Width {vit.embed_dim}, {vit.depth} blocks, {vit.num_heads} heads")
    shown = ", ".join(safe(label).replace("|", "\\|") for label in checkpoint.labels[:20])
    more = ", …" if len(checkpoint.labels) > 20 else ""
    if not checkpoint.num_classes:
        lines.append("- No classes: the representation itself, to be fine-tuned (`vit finetune -m`)")
    elif why := checkpoint.why_no_classes:
        lines.append(f"- {checkpoint.num_classes} outputs: {why}")
    else:
        lines.append(f"- {checkpoint.num_classes} classes: {shown}{more}")
    if checkpoint.outputs == "labels":
        lines.append("- Each class is judged by itself: probabilities are the sigmoid of its logit (multi-label)")
    if checkpoint.temperature is not None:
        lines.append(f"- Calibrated: logits are divided by {checkpoint.temperature:.4g} first")
    return "\n".join(lines)


def _origin(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return ""
    text = json.dumps(provenance, indent=1, ensure_ascii=False).replace("```", "'''")
    return f"## Where it comes from\n\n```json\n{text}\n```"


def _timm_builds(checkpoint: Checkpoint) -> bool:
    """Whether timm's config says all of the model but, perhaps, the epsilon of its norms."""
    return checkpoint.vit is None or other_fields_of(checkpoint.architecture, checkpoint.vit).keys() <= {"norm_eps"}


def _use(checkpoint: Checkpoint, repo: str) -> str:
    classes, source = checkpoint.why_no_classes is None, "hf-hub" if "/" in repo else "local-dir"
    words = ("predict", "-m", repo, "photo.jpg") if classes else ("finetune", "--data", "photos/", "-m", repo)
    parts = ["## Use it", f"```sh\n{command('vit', *words)}\n```"]
    if _timm_builds(checkpoint):
        parts.append(f"""```python
import timm

model = timm.create_model("{source}:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```""")
        if classes:
            parts.append(f"""```python
from transformers import pipeline

print(pipeline("image-classification", "{repo}")("photo.jpg"))
```""")
        if checkpoint.vit and "norm_eps" in other_fields_of(checkpoint.architecture, checkpoint.vit):
            converted = checkpoint.provenance.get("converted", {})
            off = converted.get("timm_difference") if isinstance(converted, dict) else None
            measured = f": outputs that differ by up to {off:.1e} of the largest" if isinstance(off, float) else ""
            parts.append(f"Both compute with another epsilon in the norms than this model's "
                         f"{checkpoint.vit.norm_eps:g}{measured}; `vit` computes with its own.")  # fmt: skip
    else:
        parts.append(
            "timm and transformers cannot build this model; `vit export` writes it as ONNX for other programs."
        )
    parts.append("Written with [vit](https://pypi.org/project/vitcli/).")
    return "\n\n".join(parts)
