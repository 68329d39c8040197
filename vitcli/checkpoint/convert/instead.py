"""What lies where weights were looked for, told by its name: what it is, and what to do. Opens no file."""

import re
from collections.abc import Sequence

_FILES = (  # (expression, what it is, what to do), the most telling first
    (r"^adapter_config\.json$", "a PEFT adapter's settings", "merge it into its model with peft and save that"),
    (r"\.gguf$", "GGUF, quantised weights for other programs", "take the model that they were made from"),
    (r"\.(onnx|onnx_data|ort)$", "an ONNX graph, in which weights have no names to go by", "take the model behind it"),
    (r"\.(tflite|mlmodel|mlpackage|engine|plan|xml|pt2)$", "a model compiled for one runtime", "take its original"),
    (r"\.(h5|keras)$|^saved_model\.pb$", "Keras's or TensorFlow's weights", "save them from PyTorch, or take an .npz"),
    (r"\.ckpt.*\.(index|data-\d+-of-\d+|meta)$", "TensorFlow's weights", "save them from PyTorch, or take an .npz"),
    (r"\.msgpack$|^_METADATA$|^_CHECKPOINT_METADATA$|\.orbax", "Flax's or Orbax's weights (JAX)",
     "save them from PyTorch, or as .npz with numpy.savez"),
    (r"^(distcp|.*\.distcp|\.metadata)$", "a sharded training state", "save the model's state_dict() by itself"),
    (r"\.(gz|zip|tgz|xz|7z|zst)$", "an archive", "unpack it"),
    (r"^(optimizer|scheduler|scaler|rng_state|training_args|trainer_state)", "a trainer's state without its model",
     "save the model"),
    (r"^config\.json$", "a model's settings without its weights", "fetch the weights, too"),
    (r"^(preprocessor_config|processor_config|image_processor\w*)\.json$", "an image processor without its model",
     "name the model's own repository or folder"),
    (r"^(tokenizer|vocab|merges|special_tokens|sentencepiece|spiece)", "a tokenizer",
     "name the repository or folder of an image model"),
)  # fmt: skip


def told_by(names: Sequence[str]) -> str | None:
    """What the files `names` are, and what to do; None where no name is known. All of them are of other kinds than
    weights that can be read."""
    for pattern, what, advice in _FILES:
        if found := next((name for name in names if re.search(pattern, name)), None):
            return f"{found} is {what}; {advice}"
    return None
