"""The ONNX graph against the torch model: the same weights, the same images, the same logits.

Weights are random but none is trivial: with zero biases and unit scales half of the folding would go unseen.
"""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vitcli.images.preprocess import Preprocess
from vitcli.model.config import RopeConfig, StemConfig, ViTConfig
from vitcli.model.vit import VisionTransformer
from vitcli.onnx.graph import Precision, build
from vitcli.onnx.protobuf import GraphWriter, OnnxModel
from vitcli.onnx.quantise import quantise

TINY = ViTConfig(img_size=(32, 32), patch_size=(8, 8), num_classes=10, embed_dim=48, depth=3, num_heads=3)
HYBRID = replace(TINY, img_size=(64, 64), patch_size=(1, 1))

TURNED = replace(TINY, layout="eva", pos_embed="none", rope=RopeConfig(), img_size=(32, 48))
EVA = {
    "turned": TURNED,
    "turned and normed (EVA-02)": replace(TURNED, qkv="split", mlp="swiglu_split", mlp_norm=True, global_pool="avg"),
    "turned, all normed (EVA-02 CLIP)": replace(TURNED, attn_norm=True, qkv="split", pos_embed="learn"),
    "turned, halves (DINOv3)": replace(
        TURNED, rope=RopeConfig("dinov3", 100.0, half=True), reg_tokens=4, qkv_bias=False, init_values=0.1
    ),
    "turned, one block": replace(TURNED, depth=1, reg_tokens=2),
    "turned, pooled by attention (PE)": replace(
        TURNED,
        rope=RopeConfig(reference=(3, 5), offset=1.0, columns_first=True),
        global_pool="map",
        attn_pool_num_heads=4,
        attn_pool_mlp_ratio=2.0,
        pre_norm=True,
    ),
    "turned by learnt angles": replace(TURNED, rope=RopeConfig("mixed", 10.0), class_token=False, global_pool="avg"),
    "gated, biases apart": replace(TURNED, qkv="bias_apart", mlp="swiglu", reg_tokens=1),
    "not turned": replace(TURNED, rope=None, qkv="bias_apart", pos_embed="learn", mlp_norm=True),
    "addends (BEiT)": replace(TURNED, layout="beit", rope=None, rel_pos_bias=True, qkv="bias_apart", init_values=0.1),
    "addends, average": replace(
        TURNED, layout="beit", rope=None, rel_pos_bias=True, qkv="bias_apart", global_pool="avg"
    ),
    "two heads (distilled DeiT)": replace(TINY, layout="distilled"),
    "two heads' tokens": replace(TINY, layout="distilled", num_classes=0),
}

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
    "hybrid of basic blocks": replace(HYBRID, stem=StemConfig((1, 2), 32, "basic")),
    **{f"EVA: {name}": config for name, config in EVA.items()},
    "hybrid, odd sizes": replace(HYBRID, stem=StemConfig((2, 1, 1), 32), img_size=(74, 101)),
}


SCALES = ("norm.weight", "norm1.weight", "norm2.weight", "norm3.weight", "gamma", "gamma_1", "gamma_2")


def random_model(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(
                ("norm.weight", "norm1.weight", "norm2.weight", "norm3.weight", "gamma", "gamma_1", "gamma_2")
            ):
                parameter.normal_(1.0, 0.2)
            elif parameter.ndim == 1 or any(part in name for part in ("token", "pos_embed", "latent", "table")):
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
    images = np.random.default_rng(1).standard_normal((batch, config.in_chans, *config.img_size), np.float32)
    # A CNN begins with a norm, whose epsilon shows on faint images only.
    return images * np.float32(0.01) if config.stem else images


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


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_an_image_does_not_see_its_neighbours(batch: int) -> None:
    opened = session(build(TINY, weights_of(random_model(TINY))))
    images = random_images(TINY, 7)
    one_by_one = np.concatenate([opened.run(None, {"images": images[i : i + 1]})[0] for i in range(7)])
    # bit for bit: rows of a matrix product are computed alike, however many there are
    np.testing.assert_array_equal(opened.run(None, {"images": images[:batch]})[0], one_by_one[:batch])


@pytest.mark.parametrize("name", ["class token", "pre norm, quick GELU (CLIP)", "hybrid", "one channel"])
def test_normalisation_can_be_part_of_the_graph(name: str) -> None:
    config = CONFIGS[name]
    preprocess = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    if config.in_chans == 1:
        preprocess = Preprocess(mean=(0.3,), std=(0.4,))
    tensors = weights_of(random_model(config))
    pixels = np.random.default_rng(2).integers(0, 256, (2, config.in_chans, *config.img_size)).astype(np.float32)
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (preprocess.mean, preprocess.std))
    expected = run(build(config, tensors), (pixels / 255 - mean) / std)
    # weights a hundred times smaller times pixels a hundred times larger: rounding of the sum, as above
    np.testing.assert_allclose(
        run(build(config, tensors, pixels_of=preprocess), pixels), expected, atol=5e-5, rtol=5e-5
    )


def inline(model: OnnxModel) -> onnx.ModelProto:
    """With its weights inside, as the `onnx` package wants to see it."""
    proto = onnx.load_from_string(model.graph)
    for tensor in proto.graph.initializer:
        if tensor.name in model.weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(model.weights[tensor.name], tensor.name))
    return proto


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["class token", "attention pooling (SigLIP)", "hybrid", "swiglu (DINOv2 giant)"])
def test_onnx_accepts_the_bytes(name: str, precision: Precision) -> None:
    config = CONFIGS[name]
    proto = inline(build(config, weights_of(random_model(config)), precision=precision))
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, *(dim.dim_value for dim in dims[1:])) == ("batch", config.in_chans, *config.img_size)
    assert {node.domain for node in proto.graph.node} == {""}


def test_large_weights_are_not_copied() -> None:
    tensors = weights_of(random_model(TINY))
    weights = build(TINY, tensors).weights
    for ours, theirs in [("mlp.fc1", "mlp.fc1"), ("attn.k", "attn.qkv"), ("attn.v", "attn.qkv")]:
        assert np.shares_memory(weights[f"blocks.0.{ours}.weight"], tensors[f"blocks.0.{theirs}.weight"])


@pytest.mark.parametrize(("name", "rows"), [("class token", 1), ("average", 16)])
def test_the_last_block_computes_what_is_pooled(name: str, rows: int) -> None:
    config = CONFIGS[name]
    proto = inline(build(config, weights_of(random_model(config))))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    found = {node.input[1]: shapes[node.input[0]][0] for node in proto.graph.node if node.op_type == "Gemm"}
    assert found["blocks.1.mlp.fc2.weight"] == config.num_tokens
    assert found["blocks.2.mlp.fc1.weight"] == rows
    assert found["blocks.2.mlp.fc2.weight"] == 1
    assert ("blocks.2.attn.k.weight" in found) == (name != "class token")


def test_the_writer_knows_every_kind_of_attribute() -> None:
    graph = GraphWriter()
    graph.node("Kinds", "a", "", "b", output="c", whole=-3, real=0.25, word="tanh", several=(1, -1, 1 << 40))
    graph.scalar(2), graph.scalar(0.5), graph.ints(0, -1)
    proto = onnx.load_from_string(graph.model(name="g", inputs={"a": (2, "n")}, outputs={"c": ()}).graph)
    (node,) = proto.graph.node
    assert (list(node.input), list(node.output), node.op_type) == (["a", "", "b"], ["c"], "Kinds")
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert values == {"whole": -3, "real": 0.25, "word": b"tanh", "several": [1, -1, 1 << 40]}
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    assert [(c.dtype.name, c.tolist()) for c in constants] == [("int64", 2), ("float32", 0.5), ("int64", [0, -1])]


# ---- int8


def hard_weights() -> np.ndarray:
    """Neighbours of one sign near the largest, which 16-bit sums of products cannot hold; and a row of zeros."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((24, 66)).astype(np.float32)
    weight[:8] = np.abs(weight[:8]) + 3
    weight[8:12] = -np.abs(weight[8:12]) - 3
    weight[12] = 0
    return weight


def test_rounded_weights_are_near_and_no_pair_is_too_large() -> None:
    weight = hard_weights()
    rounded, scale = quantise(weight)
    assert rounded.dtype == np.int8
    assert (np.abs(rounded.T * scale[:, None] - weight) <= scale[:, None] * 0.5001).all()
    pairs = rounded[0::2].astype(int) + rounded[1::2]
    assert np.abs(pairs).max() * 255 <= np.iinfo(np.int16).max
    # no coarser than that needs: some row uses all 8 bits
    assert np.abs(rounded).max() == 127
    assert not rounded[:, 12].any()


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_onnx_runtime_multiplies_rounded_weights_exactly(rows: int) -> None:
    rounded, _ = quantise(hard_weights())
    left = np.random.default_rng(4).integers(200, 256, (rows, len(rounded)), np.uint8)
    graph = GraphWriter()
    scaled = graph.node("Mul", "x", graph.scalar(1.0))
    graph.nodes("DynamicQuantizeLinear", scaled, outputs=("q", "s", "z"))
    weight = graph.constant(rounded, "weight")
    graph.node("Cast", graph.node("MatMulInteger", "q", weight), output="y", to=1)
    model = graph.model(name="g", inputs={"x": left.shape}, outputs={"y": (rows, rounded.shape[1])})
    left[0, 0] = 255  # so that the scale is 1 and the zero point 0
    got = session(model).run(None, {"x": left.astype(np.float32)})[0]
    np.testing.assert_array_equal(got, left.astype(np.int64) @ rounded.astype(np.int64))


# One block has one query only, and that is in float32.
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "one block"])
def test_int8_is_near_fp32(name: str) -> None:
    config = CONFIGS[name]
    tensors, images = weights_of(random_model(config)), random_images(config)
    exact, rounded = run(build(config, tensors), images), run(build(config, tensors, precision="int8"), images)
    distance = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    # three blocks of random weights with one scale per tensor; float32 would be at 1e-6
    assert 1e-5 < distance < 0.1
