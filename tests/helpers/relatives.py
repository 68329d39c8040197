"""Tiny models of every family whose encoder or head is not the paper's, under timm's names."""

from dataclasses import replace
from typing import Any

from vitcli.model.architectures import architecture
from vitcli.model.config import ViTConfig

ARCHITECTURES = {
    "DINOv3": "vit_small_patch16_dinov3",
    "EVA-02": "eva02_base_patch14_224",
    "Perception Encoder": "vit_pe_core_tiny_patch16_384",
    "RoPE-ViT": "vit_small_patch16_rope_mixed_224",
    "DeiT III": "deit3_small_patch16_224",
    "distilled DeiT": "deit_tiny_distilled_patch16_224",
    "BEiT": "beit_base_patch16_224",
}
SIZE: dict[str, Any] = {
    "img_size": (24, 32),
    "patch_size": (8, 8),
    "embed_dim": 48,
    "num_heads": 3,
    "depth": 2,
    "num_classes": 3,
}
FAMILIES: dict[str, ViTConfig] = {family: replace(architecture(name), **SIZE) for family, name in ARCHITECTURES.items()}
TURNED = ("DINOv3", "Perception Encoder", "RoPE-ViT", "EVA-02")
