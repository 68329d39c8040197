"""A checkpoint becomes a torch model. Imports torch, and timm for what is not a plain ViT.

The model is built on the meta device and the file's arrays become its parameters: no random initialisation, no second
copy. Knows nothing of devices: what comes out is on the CPU, in evaluation mode.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.selftest import check_selftest, selftest_input, selftest_seed
from vitcli.checkpoint.weights import architectures, read_weights, require_same_shapes, stored_grid
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import NOT_COVERED
from vitcli.model.config import Size, ViTConfig
from vitcli.model.resample import Kernel, resample_pos_embed
from vitcli.model.shapes import Array, weight_shapes
from vitcli.model.vit import VisionTransformer
from vitcli.text import did_you_mean, safe


def _say_nothing(note: str) -> None:
    pass


def load_model(
    checkpoint: Checkpoint,
    *,
    img_size: Size | None = None,
    kernel: Kernel = "timm",
    say: Callable[[str], None] = _say_nothing,
) -> VisionTransformer:
    """The ViT of `checkpoint`, in evaluation mode, with `config.img_size` = `img_size` when that is given.

    `img_size` (height, width) in pixels resamples the position embedding by `kernel` when the grid changes; `say` is
    told so in one line. Raises CheckpointError when the checkpoint is not a plain ViT, when weights and config do not
    fit, when a weight is not finite, and when the stored self-test gives other logits.
    """
    vit = checkpoint.vit
    if vit is None:
        has = NOT_COVERED.get(checkpoint.architecture)
        reason = f", which has {has}" if has else ""
        raise CheckpointError(
            f"{safe(checkpoint.name)}: a plain Vision Transformer is needed, not {checkpoint.architecture}{reason}"
        )
    tensors = {name: torch.from_numpy(a) for name, a in read_weights(checkpoint, img_size=img_size).items()}
    pos = tensors.get("pos_embed")
    grid = vit.grid if pos is None else stored_grid(checkpoint, pos.shape[1])
    if grid == vit.grid:
        model = build(vit, tensors)
        _run_selftest(checkpoint, model)
        if img_size in (None, vit.img_size):
            return model
    assert img_size is not None  # read_weights takes another grid only then
    target = replace(vit, img_size=img_size)
    if min(target.grid) < 1:
        raise CheckpointError(f"{img_size[0]}×{img_size[1]} pixels are less than one patch of {vit.stride} pixels")
    if vit.rel_pos_bias and vit.grid != target.grid:
        say(resize_addends(tensors, vit, target))
    if pos is not None and grid != target.grid:
        prefix = target.num_pos_tokens - target.num_patches
        tensors["pos_embed"] = resample_pos_embed(pos, grid, target.grid, num_prefix=prefix, kernel=kernel)
        change = f"from {grid[0]}×{grid[1]} to {target.grid[0]}×{target.grid[1]} patches"
        say(f"position embedding resampled {change} (kernel {kernel})")
    return build(target, tensors)


def resize_addends(tensors: dict[str, Tensor], vit: ViTConfig, target: ViTConfig) -> str:
    """Give every table of addends by distance the grid of `target`, as timm does, in place; says so in one line."""
    from timm.layers import resize_rel_pos_bias_table  # takes seconds

    shapes = weight_shapes(target)
    with catch_warnings():
        simplefilter("ignore")  # about the speed of a step in there
        for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
            tensors[name] = resize_rel_pos_bias_table(tensors[name], target.grid, shapes[name], vit.grid)
    (h, w), (new_h, new_w) = vit.grid, target.grid
    return f"addends by distance resampled from {h}×{w} to {new_h}×{new_w} patches"


def build(vit: ViTConfig, tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """A ViT in evaluation mode whose parameters are `tensors` themselves. Their shapes must be those of `vit`."""
    with torch.device("meta"):
        model = VisionTransformer(vit)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def load_any(checkpoint: Checkpoint) -> nn.Module:
    """The model of `checkpoint` in evaluation mode: our ViT where we cover it, else timm's (a ResNet, say)."""
    return load_model(checkpoint) if checkpoint.vit else _timm_model(checkpoint)


def _timm_model(checkpoint: Checkpoint) -> nn.Module:
    name = checkpoint.architecture
    known = architectures()
    if known and name not in known and "timm" not in sys.modules:  # a program that registers models has imported it
        raise CheckpointError(f"{safe(checkpoint.name)}: timm knows no '{name}'.{did_you_mean(name, known)}")
    tensors = read_weights(checkpoint)
    import timm  # takes seconds: after what can be found wrong without it

    if not timm.is_model(name):
        raise CheckpointError(
            f"{safe(checkpoint.name)}: timm knows no '{name}'.{did_you_mean(name, timm.list_models())}"
        )
    arguments = {"num_classes": checkpoint.num_classes, **checkpoint.timm_args}
    try:
        with torch.device("meta"):
            sketch = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # a config's arguments reach code of timm that raises what it likes
        raise CheckpointError(f"{safe(checkpoint.config_path)}: timm cannot build {name}: {safe(error)}") from None
    require_same_shapes(
        {n: a.shape for n, a in tensors.items()},
        {n: tuple(t.shape) for n, t in sketch.state_dict().items()},
        safe(checkpoint.weights_path),
    )
    # Built again for real: timm models have buffers that are in no file and that the meta device leaves empty.
    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    model.load_state_dict({n: torch.from_numpy(a) for n, a in tensors.items()}, strict=True)
    _run_selftest(checkpoint, model.eval())
    return model


def _run_selftest(checkpoint: Checkpoint, model: nn.Module) -> None:
    seed = selftest_seed(checkpoint)
    if seed is not None:
        check_selftest(checkpoint, selftest_logits(model, checkpoint.preprocess, seed))


def selftest_logits(model: nn.Module, preprocess: Preprocess, seed: int = 0) -> Array:
    """Logits (1, K) of the CPU `model`, in evaluation mode, for the synthetic image of `seed`."""
    image = torch.from_numpy(selftest_input(preprocess, seed))
    with torch.inference_mode():
        return model(image).float().numpy()  # type: ignore[no-any-return]
