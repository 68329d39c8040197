"""timm's models with weights that hide nothing, and ours beside them."""

import torch
from torch import Tensor, nn

from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer

TIMM = "1.0.31"  # the version whose names the table of architectures holds


def random_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights that hide nothing: no zero heads, no layer scale of 1e-6, no norm of exactly one; activations near 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            scales = name.endswith((".weight", ".gamma", ".gamma_1", ".gamma_2"))
            nn.init.normal_(parameter, mean=1.0 if scales else 0.0, std=0.2)
    return model.state_dict()


def assert_same_logits(config: ViTConfig, theirs: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        ours = VisionTransformer(config)
    ours.load_state_dict(random_weights(theirs), strict=True, assign=True)
    x = torch.randn(2, config.in_chans, *config.img_size)
    with torch.inference_mode():
        expected = theirs.eval()(x)
        logits = ours.eval()(x)
    assert expected.std() > 0.1, "logits that say nothing prove nothing"
    torch.testing.assert_close(logits, expected)
