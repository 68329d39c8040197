"""The ONNX graph against the torch model: the same weights, the same images, the same logits.

Weights are random but none is trivial: with zero biases and unit scales half of the folding would go unseen.
"""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from vitcli.inference.onnx_file import OnnxModel
from vitcli.inference.onnx_graph import build
from vitcli.model.config import StemConfig, ViTConfig
from vitcli.model.vit import VisionTransformer

TINY = ViTConfig(img_size=(32, 32), patch_size=(8, 8), num_classes=10, embed_dim=48, depth=3, num_heads=3)
HYBRID = replace(TINY, img_size=(64, 64), patch_size=(1, 1))

CONFIGS = {
    "class token": TINY,
    "one block": replace(TINY, depth=1),
    "not square, with a rest": replace(TINY, img_size=(40, 27), patch_size=(8, 4)),
    "one channel": replace(TINY, in_chans=1),
    "registers": replace(TINY, reg_tokens=4),
    "no position for the prefix": replace(TINY, reg_tokens=4, no_embed_class=True),
    "no position at all": replace(TINY, pos_embed="none"),
    "no biases": replace(TINY, qkv_bias=False, proj_bias=False),
    "qk norm": replace(TINY, qk_norm=True),
    "qk norm without biases": replace(TINY, qk_norm=True, qkv_bias=False, global_pool="avg"),
    "layer scale": replace(TINY, init_values=0.1),
    "layer scale without biases": replace(TINY, init_values=0.1, proj_bias=False, qkv_bias=False),
    "pre norm, quick GELU (CLIP)": replace(TINY, pre_norm=True, act="quick_gelu", norm_eps=1e-5),
    "tanh GELU": replace(TINY, act="gelu_tanh"),
    "swiglu (DINOv2 giant)": replace(TINY, mlp="swiglu", init_values=0.1, global_pool="avg", class_token=True),
    "average": replace(TINY, global_pool="avg", class_token=False),
    "average without the prefix": replace(TINY, global_pool="avg", reg_tokens=2, init_values=0.1),
    "average with the prefix": replace(TINY, global_pool="avg", pool_include_prefix=True),
    "average of normalised tokens": replace(TINY, global_pool="avg", fc_norm=False),
    "attention pooling (SigLIP)": replace(TINY, global_pool="map", class_token=False),
    "attention pooling without the prefix": replace(TINY, global_pool="map", reg_tokens=2, act="gelu_tanh"),
    "attention pooling, norm after it": replace(TINY, global_pool="map", fc_norm=True, pool_include_prefix=True),
    "norm after the class token": replace(TINY, fc_norm=True),
    "no final norm": replace(TINY, final_norm=False),
    "pre-training head": replace(TINY, head_hidden=24),
    "pre-training head with GELU": replace(TINY, head_hidden=24, head_act="gelu"),
    "no head": replace(TINY, num_classes=0),
    "hybrid, root alone": replace(HYBRID, stem=StemConfig((), 32), patch_size=(2, 2)),
    "hybrid": replace(HYBRID, stem=StemConfig((1, 2), 32)),
    "hybrid, odd sizes": replace(HYBRID, stem=StemConfig((2, 1, 1), 32), img_size=(74, 101)),
}


def random_model(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm3.weight", "gamma")):
                parameter.normal_(1.0, 0.2)
            elif parameter.ndim == 1 or "token" in name or "pos_embed" in name or "latent" in name:
                parameter.normal_(0.0, 0.5)
            elif name.startswith("head"):
                parameter.normal_(0.0, config.num_features**-0.5)
    return model


def weights_of(model: VisionTransformer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def session(model: OnnxModel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in model.weights.values()]
    options.add_external_initializers(list(model.weights), values)
    return onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])


def run(model: OnnxModel, images: np.ndarray) -> np.ndarray:
    return session(model).run(None, {"images": images})[0]


def random_images(config: ViTConfig, batch: int = 3) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.standard_normal((batch, config.in_chans, *config.img_size), np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_torch_model(name: str) -> None:
    config = CONFIGS[name]
    model, images = random_model(config), random_images(config)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    assert expected.std() > 0.1, "the test would see nothing"
    got = run(build(config, weights_of(model)), images)
    # float32 rounding through a few layers, in another order of summation
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
