"""The authors' .npz files: ViT and AugReg (google-research/vision_transformer), hybrids, big_vision and SigLIP.

Layouts: Flax modules by name, arrays as (in, …, out), attention as (D, heads, d). Old files have the position embedding
in the encoder with a row for the class token, big_vision beside it for patches only; layers are numbered, or stacked
along a first axis. The arithmetic is the authors': their GELU is the tanh approximation.
"""

import re

from vitcli.checkpoint.convert.names import Reasons, Rules, Weights, join, leave_out, rename
from vitcli.checkpoint.convert.processor import VIT
from vitcli.checkpoint.convert.result import Converted, Settings, Source, facts_of, fitted, without_head
from vitcli.checkpoint.convert.shape import pooling, vit_of
from vitcli.errors import CheckpointError
from vitcli.model.shapes import Array

_ANCHOR = "embedding/kernel"
_STACKED = "Transformer/encoderblock/"

_LEFT_OUT: Reasons = (
    (r"^opt/state/", "the optimiser's state"),
    (r"^params/(txt/|t$|b$)", "the text tower"),
)

_NAMES: Rules = (
    (r"^cls$", "cls_token"),
    (r"^(Transformer/)?(posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^embedding/", "patch_embed/proj/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks/\1/"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"^pre_logits/", "pre_logits/fc/"),
    (r"^MAPHead_0/probe$", "attn_pool/latent"),
    (r"^MAPHead_0/LayerNorm_0/", "attn_pool/norm/"),
    (r"^MAPHead_0/", "attn_pool/"),
    (r"^blocks/(\d+)/LayerNorm_0/", r"blocks/\1/norm1/"),
    (r"^blocks/(\d+)/LayerNorm_[12]/", r"blocks/\1/norm2/"),
    (r"^blocks/(\d+)/MultiHeadDotProductAttention_[01]/", r"blocks/\1/attn/"),
    (r"^attn_pool/MultiHeadDotProductAttention_0/", "attn_pool/"),
    (r"/MlpBlock_[03]/Dense_0/", "/mlp/fc1/"),
    (r"/MlpBlock_[03]/Dense_1/", "/mlp/fc2/"),
    (r"/out/", "/proj/"),
    (r"^conv_root/", "patch_embed/backbone/stem/conv/"),
    (r"^gn_root/", "patch_embed/backbone/stem/norm/"),
    (
        r"^block(\d+)/unit(\d+)/",
        lambda found: f"patch_embed/backbone/stages/{int(found[1]) - 1}/blocks/{int(found[2]) - 1}/",
    ),
    (r"/conv_proj/", "/downsample/conv/"),
    (r"/gn_proj/", "/downsample/norm/"),
    (r"/gn(\d)/", r"/norm\1/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)


def is_google(tensors: Weights) -> bool:
    return any(name == _ANCHOR or name.endswith(f"/{_ANCHOR}") for name in tensors)


def convert(source: Source, settings: Settings) -> Converted:
    """Raises CheckpointError for a layout that is none of those above, listing the names that do not fit."""
    tensors, dropped = leave_out(source.tensors, _LEFT_OUT)
    anchor = min((name for name in tensors if name.endswith(_ANCHOR)), key=len)
    prefix = anchor.removesuffix(_ANCHOR)
    tensors = _unstacked({name.removeprefix(prefix): array for name, array in tensors.items()}, source.where)
    queries = [a for name, a in tensors.items() if name.endswith("/query/kernel") and a.ndim == 3]
    if not queries:
        raise CheckpointError(f"{source.where}: no attention in the authors' layout, so this is not a ViT of theirs")
    facts = facts_of({"act": "gelu_tanh", "norm_eps": 1e-6}, settings)
    facts["num_heads"] = queries[0].shape[1]
    if len({array.shape[1] for array in queries}) > 1:
        raise CheckpointError(f"{source.where}: layers with different numbers of heads")
    tensors = {name: _as_timm(name, array) for name, array in tensors.items()}
    tensors = rename(tensors, _NAMES, source.where)
    if not any(name.startswith("patch_embed.backbone.stages.") for name in tensors):
        tensors = rename(tensors, [(r"^patch_embed\.backbone\.stem\.", "patch_embed.backbone.")], source.where)
    join(tensors, ("attn.query", "attn.key", "attn.value"), "attn.qkv")
    join(tensors, ("key", "value"), "kv")  # of the pooling: all others are joined
    tensors = rename(tensors, [(r"^attn_pool\.query\.", "attn_pool.q.")], source.where)
    tensors, more = without_head(tensors, settings, None)
    vit = vit_of(tensors, source.where, facts, **pooling(tensors))
    return Converted(
        "SigLIP of the authors" if prefix == "params/img/" else "ViT of the authors",
        vit,
        tensors,
        fitted(VIT, vit, settings),
        dropped=(*dropped, *more),
        notes=(
            "the file has no preprocessing; the authors' is taken: resized to a square, pixels from -1 to 1",
            *([_STEM_NOTE] if vit.stem else []),
        ),
    )


_STEM_NOTE = (
    "a hybrid: timm's port, followed here, standardises filters and groups with slightly other epsilons than the "
    "authors; logits agree to about a thousandth of their scale"
)


def _unstacked(tensors: Weights, where: str) -> Weights:
    """Layers stacked along a first axis, one by one."""
    depths = {len(array) if array.ndim else 0 for name, array in tensors.items() if name.startswith(_STACKED)}
    if len(depths) > 1:
        raise CheckpointError(f"{where}: {_STACKED} holds arrays for different numbers of layers")
    result: Weights = {}
    for name, array in tensors.items():
        if name.startswith(_STACKED):
            for i, layer in enumerate(array):
                result[f"Transformer/encoderblock_{i}/{name.removeprefix(_STACKED)}"] = layer
        else:
            result[name] = array
    return result


def _as_timm(name: str, array: Array) -> Array:
    """One array in the axis order of PyTorch."""
    if name.endswith("/kernel"):
        if array.ndim == 4:  # (h, w, in, out)
            return array.transpose(3, 2, 0, 1)
        if array.ndim == 3 and re.search(r"/(query|key|value)/kernel$", name):  # (D, heads, d)
            return array.reshape(len(array), -1).T
        if array.ndim == 3:  # (heads, d, D)
            return array.reshape(-1, array.shape[2]).T
        return array.T
    if re.search(r"/(query|key|value)/bias$", name) or re.match(r".*gn[^/]*/(scale|bias)$", name):
        return array.reshape(-1)
    return array
