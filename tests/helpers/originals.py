"""Small models of other projects with random weights, as those projects write them, for the tests of convert."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import Tensor, nn

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 64}
PATCH: dict[str, Any] = {"patch_size": 16, "intermediate_size": 100}  # 100 / 48 is no round ratio
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 100,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def shake(model: Any, seed: int = 0) -> Any:
    """Random values for every weight: nothing is zero, norms are near one, so that any mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.1, generator=generator)
            if "norm" in name.rpartition(".")[0].rpartition(".")[2] and name.endswith("weight"):
                weight += 1
    return model.eval()


def images(channels: int = 3, size: int = 64, width: int | None = None) -> Tensor:
    return torch.randn(2, channels, size, width or size, generator=torch.Generator().manual_seed(7))


def _class_token(model: Any, x: Tensor) -> Tensor:
    return model(x).last_hidden_state[:, 0]


def _logits(model: Any, x: Tensor) -> Tensor:
    return model(x).logits


def _pooled(model: Any, x: Tensor) -> Tensor:
    return model(x).pooler_output


def _mae_class_token(model: Any, x: Tensor) -> Tensor:
    """With nothing masked, and the patches in their order."""
    return model.vit(x, noise=torch.arange(16.0).expand(len(x), -1)).last_hidden_state[:, 0]


def _clip(kind: type, **more: Any) -> Any:
    config = hf.CLIPConfig(vision_config=SIZES | PATCH, text_config=TEXT, projection_dim=24, **more)
    return kind(config)


def _siglip(kind: type, **more: Any) -> Any:
    return kind(hf.SiglipConfig(vision_config=SIZES | PATCH, text_config=TEXT, **more))


# name → (make the model, what ours must give for images)
TRANSFORMERS: Mapping[str, Any] = {
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZES, **PATCH, num_labels=3)), _logits),
    "vit-model": (lambda: hf.ViTModel(hf.ViTConfig(**SIZES, **PATCH, qkv_bias=False)), _class_token),
    "vit-masked": (
        lambda: hf.ViTForMaskedImageModeling(hf.ViTConfig(**SIZES, **PATCH)),
        lambda model, x: _class_token(model.vit, x),
    ),
    "deit": (lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**SIZES, **PATCH, num_labels=3)), _logits),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, patch_size=16)), _class_token),
    "dinov2-giant": (
        lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, patch_size=16, use_swiglu_ffn=True)),
        _class_token,
    ),
    "dinov2-registers": (
        lambda: hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**SIZES, patch_size=16, num_register_tokens=2)
        ),
        _class_token,
    ),
    "dinov3": (lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SIZES, patch_size=16, num_register_tokens=2)), _pooled),
    "dinov3-gated": (
        lambda: hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(
                **SIZES | {"image_size": [48, 80]},
                patch_size=16,
                intermediate_size=104,
                use_gated_mlp=True,
                hidden_act="silu",
                query_bias=False,
                value_bias=False,
            )
        ),
        _pooled,
    ),
    "beit": (
        lambda: hf.BeitForImageClassification(
            hf.BeitConfig(**SIZES, **PATCH, use_relative_position_bias=True, num_labels=3)
        ),
        _logits,
    ),
    "beit-shared": (
        lambda: hf.BeitModel(
            hf.BeitConfig(
                **SIZES,
                **PATCH,
                use_shared_relative_position_bias=True,
                use_absolute_position_embeddings=True,
                use_mean_pooling=False,
            )
        ),
        _pooled,
    ),
    "data2vec": (
        lambda: hf.Data2VecVisionForImageClassification(
            hf.Data2VecVisionConfig(**SIZES, **PATCH, use_relative_position_bias=True, num_labels=3)
        ),
        _logits,
    ),
    "ijepa": (lambda: hf.IJepaForImageClassification(hf.IJepaConfig(**SIZES, **PATCH, num_labels=3)), _logits),
    "ijepa-model": (
        lambda: hf.IJepaModel(hf.IJepaConfig(**SIZES, **PATCH)),
        lambda model, x: model(x).last_hidden_state.mean(1),
    ),
    "msn": (lambda: hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**SIZES, **PATCH, num_labels=3)), _logits),
    "mae": (
        lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **SIZES,
                **PATCH,
                mask_ratio=0.0,
                decoder_hidden_size=32,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=2,
                decoder_intermediate_size=32,
            )
        ),
        _mae_class_token,
    ),
    "clip-vision": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES, **PATCH)), _pooled),
    "clip-projection": (
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**SIZES, **PATCH, projection_dim=24)),
        lambda model, x: model(x).image_embeds,
    ),
    "clip": (
        lambda: _clip(hf.CLIPModel),
        lambda model, x: model.visual_projection(model.vision_model(x).pooler_output),
    ),
    "clip-classifier": (lambda: _clip(hf.CLIPForImageClassification, num_labels=3), _logits),
    "siglip-vision": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES, **PATCH)), _pooled),
    "siglip-headless": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES, **PATCH, vision_use_head=False)),
        lambda model, x: model(x).last_hidden_state.mean(1),
    ),
    "siglip": (lambda: _siglip(hf.SiglipModel), lambda model, x: model.vision_model(x).pooler_output),
    "siglip-classifier": (lambda: _siglip(hf.SiglipForImageClassification, num_labels=3), _logits),
}


def save_transformers(model: Any, folder: Path, *, new_names: bool = False) -> Path:
    """As `save_pretrained` writes it; with `new_names` the weights under the names of transformers 5's modules."""
    model.save_pretrained(folder)
    if new_names:
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes away."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_text(json.dumps(content), "utf-8")


# --- the authors' .npz ---


def flax_vit(
    *,
    stem: tuple[int, ...] | None = None,
    stem_width: int = 32,
    pool: str = "token",
    big_vision: bool = False,
    hidden: int | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Random arrays in the published layout: D 32, 2 layers, 2 heads, 3 classes, 4×4 patches.

    `stem`: blocks a stage of the ResNet; `hidden`: width of the pre-training head; `big_vision`: positions
    of the patches alone, and modules counted anew in each block.
    """
    rng = np.random.default_rng(3)
    D, heads, mlp, patches = 32, 2, 48, 16
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        arrays[name] = (mean + rng.normal(0, 0.1, shape)).astype(np.float32)

    def norm(name: str, width: int, *, ones: int = 0) -> None:
        add(f"{name}/scale", *[1] * ones, width, mean=1.0)
        add(f"{name}/bias", *[1] * ones, width)

    def dense(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}/kernel", inputs, outputs)
        add(f"{name}/bias", outputs)

    def attention(name: str) -> None:
        for part in ("query", "key", "value"):
            add(f"{name}/{part}/kernel", D, heads, D // heads)
            add(f"{name}/{part}/bias", heads, D // heads)
        add(f"{name}/out/kernel", heads, D // heads, D)
        add(f"{name}/out/bias", D)

    channels, patch = 3, 16
    if stem is not None:
        channels, patch = stem_width, 2
        add("conv_root/kernel", 7, 7, 3, channels)
        norm("gn_root", channels, ones=3)
        for i, blocks in enumerate(stem, 1):
            inner = stem_width << (i - 1)
            for j in range(1, blocks + 1):
                unit = f"block{i}/unit{j}"
                for conv, shape in {
                    "1": (1, 1, channels, inner),
                    "2": (3, 3, inner, inner),
                    "3": (1, 1, inner, 4 * inner),
                    "_proj": (1, 1, channels, 4 * inner),
                }.items():
                    if conv != "_proj" or j == 1:
                        add(f"{unit}/conv{conv}/kernel", *shape)
                        norm(f"{unit}/gn{conv}", shape[3], ones=3)
                channels = 4 * inner
    add("embedding/kernel", patch, patch, channels, D)
    add("embedding/bias", D)
    if pool == "token":
        add("cls", 1, 1, D)
    place = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    add(place, 1, patches + (pool == "token" and not big_vision), D)
    first, second, third = (0, 0, 1) if big_vision else (1, 3, 2)
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        norm(f"{block}/LayerNorm_0", D)
        attention(f"{block}/MultiHeadDotProductAttention_{first}")
        norm(f"{block}/LayerNorm_{third}", D)
        dense(f"{block}/MlpBlock_{second}/Dense_0", D, mlp)
        dense(f"{block}/MlpBlock_{second}/Dense_1", mlp, D)
    norm("Transformer/encoder_norm", D)
    if pool == "map":
        add("MAPHead_0/probe", 1, 1, D)
        attention("MAPHead_0/MultiHeadDotProductAttention_0")
        norm("MAPHead_0/LayerNorm_0", D)
        dense("MAPHead_0/MlpBlock_0/Dense_0", D, mlp)
        dense("MAPHead_0/MlpBlock_0/Dense_1", mlp, D)
    if hidden:
        dense("pre_logits", D, hidden)
    dense("head", hidden or D, 3)
    return arrays


def flax_forward(p: Mapping[str, np.ndarray[Any, Any]], x: Tensor) -> np.ndarray[Any, Any]:
    """The published models' arithmetic in float64 (models_vit.py, models_resnet.py; big_vision's vit.py), from images
    (B, 3, H, W) to logits: written from the Flax code, on arrays in its layout."""
    p = {name: array.astype(np.float64) for name, array in p.items()}
    big_vision = "pos_embedding" in p
    first, second, third = (0, 0, 1) if big_vision else (1, 3, 2)

    def layer_norm(name: str, z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)
        return z * p[f"{name}/scale"] + p[f"{name}/bias"]

    def attend(name: str, q: np.ndarray[Any, Any], kv: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        def part(which: str, z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.einsum("bnd,dhe->bhne", z, p[f"{name}/{which}/kernel"]) + p[f"{name}/{which}/bias"][None, :, None]

        q, k, v = part("query", q), part("key", kv), part("value", kv)
        weights = np.exp(np.einsum("bhne,bhme->bhnm", q, k) / np.sqrt(q.shape[-1]))
        weights /= weights.sum(-1, keepdims=True)
        z = np.einsum("bhnm,bhme->bnhe", weights, v)
        return np.einsum("bnhe,hed->bnd", z, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]

    def mlp(name: str, z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        z = z @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"]
        z = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        return z @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]

    z = _flax_stem(p, x.double()) if "conv_root/kernel" in p else x.double()
    kernel = torch.from_numpy(p["embedding/kernel"]).permute(3, 2, 0, 1)
    z = nn.functional.conv2d(z, kernel, torch.from_numpy(p["embedding/bias"]), stride=kernel.shape[-1])
    tokens = z.flatten(2).transpose(1, 2).numpy()
    cls = [np.repeat(p["cls"], len(tokens), 0)] if "cls" in p else []
    if big_vision:
        tokens = np.concatenate([*cls, tokens + p["pos_embedding"]], 1)
    else:
        tokens = np.concatenate([*cls, tokens], 1) + p["Transformer/posembed_input/pos_embedding"]
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        y = layer_norm(f"{block}/LayerNorm_0", tokens)
        tokens = tokens + attend(f"{block}/MultiHeadDotProductAttention_{first}", y, y)
        tokens = tokens + mlp(f"{block}/MlpBlock_{second}", layer_norm(f"{block}/LayerNorm_{third}", tokens))
    tokens = layer_norm("Transformer/encoder_norm", tokens)
    if "MAPHead_0/probe" in p:
        probe = np.repeat(p["MAPHead_0/probe"], len(tokens), 0)
        y = attend("MAPHead_0/MultiHeadDotProductAttention_0", probe, tokens)
        y = (y + mlp("MAPHead_0/MlpBlock_0", layer_norm("MAPHead_0/LayerNorm_0", y)))[:, 0]
    else:
        y = tokens[:, 0] if cls else tokens.mean(1)
    if "pre_logits/kernel" in p:
        y = np.tanh(y @ p["pre_logits/kernel"] + p["pre_logits/bias"])
    return y @ p["head/kernel"] + p["head/bias"]


def _flax_stem(p: Mapping[str, np.ndarray[Any, Any]], x: Tensor) -> Tensor:
    def same(z: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
        total = max((-(-z.shape[-1] // stride) - 1) * stride + kernel - z.shape[-1], 0)
        return nn.functional.pad(z, (total // 2, total - total // 2) * 2, value=value)

    def conv(name: str, z: Tensor, stride: int = 1) -> Tensor:
        w = torch.from_numpy(p[f"{name}/kernel"])
        w = (w - w.mean((0, 1, 2))) / (w.std((0, 1, 2), correction=0) + 1e-5)
        return nn.functional.conv2d(same(z, len(w), stride), w.permute(3, 2, 0, 1), stride=stride)

    def group_norm(name: str, z: Tensor) -> Tensor:
        scale, bias = (torch.from_numpy(p[f"{name}/{kind}"].reshape(-1)) for kind in ("scale", "bias"))
        return nn.functional.group_norm(z, 32, scale, bias, 1e-6)

    z = group_norm("gn_root", conv("conv_root", x, 2)).relu()
    z = nn.functional.max_pool2d(same(z, 3, 2, -torch.inf), 3, 2)
    for stage in (1, 2):
        for unit in (1, 2):
            name = f"block{stage}/unit{unit}"
            if f"{name}/conv1/kernel" not in p:
                continue
            stride = 2 if (stage, unit) == (2, 1) else 1
            shortcut = group_norm(f"{name}/gn_proj", conv(f"{name}/conv_proj", z, stride)) if unit == 1 else z
            y = group_norm(f"{name}/gn1", conv(f"{name}/conv1", z)).relu()
            y = group_norm(f"{name}/gn2", conv(f"{name}/conv2", y, stride)).relu()
            z = (group_norm(f"{name}/gn3", conv(f"{name}/conv3", y)) + shortcut).relu()
    return z
