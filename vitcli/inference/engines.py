"""Pixels → logits, by one of two engines that give the same answer (docs/design.md, 2), and logits → probabilities.

`onnxruntime` for CPUs: a process that never imports torch starts in a tenth of the time and memory. `torch` for GPUs
and for models that are not plain ViTs. Knows no files of images and no labels.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np

from vitcli.checkpoint.config import Checkpoint, Outputs
from vitcli.checkpoint.selftest import TOLERANCE, check_selftest, selftest_input, selftest_seed
from vitcli.checkpoint.weights import read_weights
from vitcli.errors import CheckpointError, UsageError
from vitcli.inference.exported import ExportPrecision, Options, check_file
from vitcli.machine import available_cpus, default_device, gpu_visible, on_cpu
from vitcli.model.config import ViTConfig
from vitcli.model.shapes import Array
from vitcli.onnx.graph import Precision, build
from vitcli.onnx.layers import INPUT
from vitcli.onnx.protobuf import OnnxModel
from vitcli.onnx.tokens import build_tokens
from vitcli.text import safe

EngineName = Literal["onnxruntime", "torch"]
# What an engine computes in. "auto": float32 on a CPU, half precision on a GPU that does not change labels by it.
Numbers = Literal["auto", "fp32", "bf16", "fp16", "int8"]
# Features are what the head sees, (B, D); with "both" logits stand behind them, (B, D + K), with "signature" behind an
# image's signature, (B, 2 D + F + K); of models that are no plain ViTs the features are that. Of a plain ViT also the
# tokens of `ViTConfig.token_shape`: "class", "mean", "patches", "blocks.0", …
Output = str

# How far an exported file may be from its own self-test, on a processor with other instructions.
_TOLERANCES: Mapping[ExportPrecision, float] = {"fp32": TOLERANCE, "fp16": 0.05, "int8": 0.25}

Check = Callable[[Array], None]  # told the signature (1, W) of the self-test's image; raises CheckpointError

# From here on a GPU is done before the CPU, the seconds included that torch and CUDA take to start.
GPU_WORTHWHILE = 0.5e12  # floating-point operations


class Engine(Protocol):
    """A model that is ready to run, from several threads at once if they like."""

    def logits(self, pixels: Array) -> Array:
        """Preprocessed images (B, C, H, W) → logits (B, K)."""
        ...


class OnnxEngine:
    """ONNX Runtime on the CPU.

    Each image is run by itself, `at_once` of them on their share of the cores: that is faster than any batch, an
    image's result cannot depend on its neighbours, and the scales of int8 are an image's own.
    """

    def __init__(
        self,
        vit: ViTConfig,
        tensors: Mapping[str, Array],
        *,
        precision: Precision = "fp32",
        at_once: int = 1,
        tokens: str | None = None,
        signature: bool = False,
        spin: bool = True,
    ) -> None:
        """`tokens`, as in `ViTConfig.token_shape`, instead of logits; or an image's `signature` before them.

        `spin` as in `session_of`.
        """
        if tokens is None:
            graph = build(vit, tensors, precision=precision, signature=signature)
        else:
            graph = build_tokens(vit, tensors, tokens, precision=precision)
        self._session = session_of(graph, threads=_share(at_once), spin=spin)
        self._threads = ThreadPoolExecutor(at_once)

    def logits(self, pixels: Array) -> Array:
        if len(pixels) == 1:
            return self._run(pixels)
        return np.concatenate([*self._threads.map(self._run, np.split(pixels, len(pixels)))])

    def _run(self, image: Array) -> Array:
        return _joined(self._session.run(None, {INPUT: image}))


def _joined(outputs: Sequence[Array]) -> Array:
    """Logits (B, K), behind the signature where a graph gives one."""
    logits, *signature = outputs
    return np.concatenate([*signature, logits], axis=1) if signature else logits


class ExportedEngine:
    """The graph of an export, on the CPU; whatever `options` put into it is undone around it."""

    def __init__(self, session: Any, options: Options, checkpoint: Checkpoint, *, at_once: int = 1) -> None:
        self._session, self._options, self._outputs = session, options, checkpoint.outputs
        preprocess = checkpoint.preprocess
        self._std, self._mean = (
            np.array(values, np.float32).reshape(-1, 1, 1) for values in (preprocess.std, preprocess.mean)
        )
        self._threads = ThreadPoolExecutor(at_once)

    def logits(self, pixels: Array) -> Array:
        return np.concatenate([*self._threads.map(self._run, np.split(pixels, len(pixels)))])

    def _run(self, image: Array) -> Array:
        if self._options.pixels:
            image = (image * self._std + self._mean) * np.float32(255)
        found, *signature = self._session.run(None, {INPUT: image})
        return _joined([self._logits(found), *signature])

    def _logits(self, found: Array) -> Array:
        if not self._options.softmax:
            return found
        logs: Array = np.log(np.maximum(found, np.float32(1e-37)))
        return logs - np.log1p(-np.minimum(found, np.float32(1 - 2**-24))) if self._outputs == "labels" else logs


def session_of(model: OnnxModel | Path, *, threads: int = 0, spin: bool = True) -> Any:
    """An InferenceSession of a graph of ours or a file that was checked; 0 threads: as many as there are cores.

    Threads that `spin` wait for their next piece of work without letting go of the core: right for one image after the
    other, wrong where several threads ask or others need the cores. No bit depends on it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    if isinstance(model, Path):
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    weights = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in model.weights.values()]
    options.add_external_initializers(list(model.weights), weights)
    return onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])


def open_exported(
    checkpoint: Checkpoint, *, at_once: int = 1, check: Check | None = None, spin: bool = True
) -> ExportedEngine:
    """An .onnx file of `vit export`, once it is known to be one and to compute what it did when it was written.

    `check` and `spin` as in `open_engine`. Raises CheckpointError.
    """
    path = checkpoint.weights_path
    options = check_file(checkpoint)
    seed = selftest_seed(checkpoint)
    assert seed is not None  # check_file asks for it
    try:
        session = session_of(path, threads=_share(at_once), spin=spin)
        engine = ExportedEngine(session, options, checkpoint, at_once=at_once)
        answer = engine.logits(selftest_input(checkpoint.preprocess, seed))
    except Exception as error:  # the classes of ONNX Runtime's have no common base but this
        raise CheckpointError(f"{safe(path)}: ONNX Runtime cannot run it: {safe(error)}") from error
    check_selftest(checkpoint, answer[:, -checkpoint.num_classes :], _TOLERANCES[options.precision])
    if check:
        check(answer[:, : -checkpoint.num_classes])
    return engine


class TorchEngine:
    """torch, on a GPU or the CPU; any model that timm knows."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        output: Output = "logits",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    ) -> None:
        import torch

        from vitcli.checkpoint.load import load_any
        from vitcli.model.vit import VisionTransformer

        self._device = torch.device(device or default_device())
        if precision == "auto":
            precision = "fp16" if self._device.type == "cuda" else "fp32"
        self._half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.exact = self._half is None  # float32, as the checkpoint's own tests were made
        model = load_any(checkpoint).to(self._device)
        self._exact, self._halved = _output_of(model, output), None
        # Casting at every layer costs a GPU a fifth of its rate; models of timm may not bear another type of weights.
        if self._half is not None and isinstance(model, VisionTransformer) and not on_cpu(self._device.type):
            self._halved = _output_of(deepcopy(model).to(self._half), output)
        self._alone = Lock()  # one call uses all cores, or the GPU

    def logits(self, pixels: Array) -> Array:
        import torch

        images = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            images = images.pin_memory()
        with self._alone:
            found = self._run(images, self._half)
            if self._half is not None and not np.isfinite(found).all():  # float16 ends at 65504
                found = self._run(images, None)
            return found

    def _run(self, images: Any, half: Any) -> Array:
        """In float32; or in `half`, by weights of that type where there is a copy of them, by autocast elsewhere."""
        import torch

        # TF32, the default of cuDNN's convolutions, would move probabilities by 1e-4.
        exact = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
        numbers = torch.autocast(self._device.type, half, enabled=half is not None and self._halved is None)
        with torch.inference_mode(), exact, numbers:
            images = images.to(self._device, non_blocking=True)
            if half is not None and self._halved is not None:
                found = self._halved(images.to(half))
            else:
                found = self._exact(images)
            return found.float().cpu().numpy()  # type: ignore[no-any-return]


def _output_of(model: Any, output: Output) -> Callable[[Any], Any]:
    """Images (B, C, H, W) → the `output` of a torch model."""
    if output in ("features", "both", "signature"):
        return _seen_by(model, output)
    return model if output == "logits" else partial(_tokens_of, model, output)


def _seen_by(model: Any, output: Output) -> Callable[[Any], Any]:
    """Images (B, C, H, W) → the `output` of a torch model that is more than its logits."""
    import torch

    def compute(images: Any) -> Any:
        if hasattr(model, "representation"):  # ours; else timm's
            if output == "signature":
                return torch.cat(model.signature(images), dim=1)
            features = model.representation(images)
            return features if output == "features" else torch.cat([features, model.classify(features)], dim=1)
        tokens = model.forward_features(images)
        features = model.forward_head(tokens, pre_logits=True)
        return features if output == "features" else torch.cat([features, model.forward_head(tokens)], dim=1)

    return compute


def _tokens_of(model: Any, what: str, images: Any) -> Any:
    """Images (B, C, H, W) → tokens of our torch model, (B, *config.token_shape(what))."""
    if what.startswith("blocks."):
        return model.intermediates(images, [what])[what]
    tokens = model.intermediates(images, ["encoded"])["encoded"]  # (B, N, D)
    if what == "class":
        return tokens[:, 0]
    patches = tokens[:, model.config.num_prefix_tokens :]
    return patches.mean(dim=1) if what == "mean" else patches


@dataclass(frozen=True)
class Choice:
    engine: EngineName
    why: str


def choose(
    checkpoint: Checkpoint,
    *,
    engine: EngineName | Literal["auto"] = "auto",
    precision: Numbers = "auto",
    device: str | None = None,
    images: int = 1,
) -> Choice:
    """The engine for `images` images or more on `device` ("cpu", "cuda", …; None: whatever is there).

    Raises UsageError for wishes that exclude each other.
    """
    if checkpoint.exported and (engine == "torch" or precision not in ("auto", "fp32") or device not in (None, "cpu")):
        raise UsageError(f"{safe(checkpoint.name)} runs as it is, with ONNX Runtime on the CPU")
    if checkpoint.exported:
        return Choice("onnxruntime", "an ONNX file")
    plain = checkpoint.vit is not None
    if precision == "int8" and (engine == "torch" or not plain or device not in (None, "cpu")):
        raise UsageError("int8 is for plain ViTs on the CPU with ONNX Runtime")
    if precision in ("bf16", "fp16") and engine == "onnxruntime":
        raise UsageError(f"{precision} is computed by torch: leave --engine out, or choose --engine torch")
    if engine == "onnxruntime":
        if checkpoint.vit is None:
            raise UsageError(f"{safe(checkpoint.name)} is not a plain ViT: it runs with --engine torch")
        if device not in (None, "cpu"):
            raise UsageError(f"--engine onnxruntime runs on the CPU, not on {safe(device)}")
    if engine != "auto":
        return Choice(engine, "asked for")
    if checkpoint.vit is None:
        return Choice("torch", f"{checkpoint.architecture} is not a plain ViT")
    if device not in (None, "cpu"):
        return Choice("torch", f"on {device}")
    if precision in ("bf16", "fp16"):
        return Choice("torch", f"which computes in {precision}")
    if (
        device is None
        and precision != "int8"
        and images * operations(checkpoint.vit) > GPU_WORTHWHILE
        and gpu_visible()
        and default_device() != "cpu"  # a driver alone is none: torch has to know it
    ):
        return Choice("torch", "on the GPU, which is worth its start for so many images")
    return Choice("onnxruntime", "the fastest on a CPU")


def open_engine(
    checkpoint: Checkpoint,
    engine: EngineName,
    *,
    precision: Numbers = "auto",
    device: str | None = None,
    at_once: int = 1,
    output: Output = "logits",
    check: Check | None = None,
    spin: bool = True,
) -> Engine:
    """Read, verify and set up the model of `checkpoint`; `at_once` and `spin` (see `session_of`) are for ONNX Runtime.

    What its `logits` gives is `output`; "both" is for torch. `check` is for signatures of exact engines. Raises
    CheckpointError.
    """
    if checkpoint.exported and output in ("logits", "signature"):
        return open_exported(checkpoint, at_once=at_once, check=check, spin=spin)
    seed = selftest_seed(checkpoint)
    image = selftest_input(checkpoint.preprocess, seed or 0)
    if engine == "torch":
        assert precision != "int8"  # `choose` has refused it
        found = TorchEngine(checkpoint, device=device, output=output, precision=precision)
        if check and found.exact:
            check(found.logits(image)[:, : -checkpoint.num_classes])
        return found
    assert checkpoint.vit is not None
    assert output != "both"
    vit, tensors = checkpoint.vit, read_weights(checkpoint)
    tokens = None if output in ("logits", "features", "signature") else output
    if output == "features":
        vit = replace(vit, num_classes=0)
        tensors = {name: array for name, array in tensors.items() if not name.startswith(("head.", "head_dist."))}
    rounded: Precision = "int8" if precision == "int8" else "fp32"
    opened = OnnxEngine(
        vit, tensors, precision=rounded, at_once=at_once, tokens=tokens, signature=output == "signature", spin=spin
    )
    # int8 is further off than the tests allow.
    if precision != "int8" and output in ("logits", "signature") and (check or seed is not None):
        answer = opened.logits(image)
        if seed is not None:
            check_selftest(checkpoint, answer[:, -checkpoint.num_classes :])
        if check:
            check(answer[:, : -checkpoint.num_classes])
    return opened


def probabilities(
    logits: Array, temperature: float = 1.0, outputs: Outputs = "classes"
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Softmax of `logits` (…, K) divided by `temperature`, in float64; of "labels" the sigmoid of each by itself."""
    assert outputs in ("classes", "labels")
    scaled = logits.astype(np.float64) / temperature
    if outputs == "labels":
        return np.exp(-np.logaddexp(0, -scaled))
    shares = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def temperature_of(checkpoint: Checkpoint) -> float:
    """What calibration found for this checkpoint; 1 when it is not calibrated."""
    return 1.0 if checkpoint.temperature is None else float(checkpoint.temperature)


def operations(vit: ViTConfig) -> float:
    """Floating-point operations for one image, two per multiply-add; the encoder's, which is nearly all."""
    linear = (4 * vit.embed_dim + vit.mlp_dim + vit.mlp_hidden) * vit.embed_dim
    attention = 2 * vit.num_tokens * vit.embed_dim
    return 2.0 * vit.depth * vit.num_tokens * (linear + attention)


def _share(at_once: int) -> int:
    """Threads for each of so many images at once."""
    return max(available_cpus() // at_once, 1)
