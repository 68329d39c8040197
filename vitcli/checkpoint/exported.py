"""What `vit export` writes into an .onnx file beside the graph, and the checkpoint that this describes.

The file's metadata hold a checkpoint's config.json, so that the file alone is a model with labels and preprocessing.
Whether the graph is the one of that config is for `vitcli.inference.exported`. Knows no engine.
"""

from dataclasses import replace
from pathlib import Path

from vitcli.checkpoint.config import Checkpoint, parse_config
from vitcli.errors import CheckpointError
from vitcli.files import parse_object
from vitcli.onnx.protobuf import read_metadata
from vitcli.text import safe

CONFIG_KEY = "vit.config"  # config.json of the checkpoint that was exported, at the exported size
PIXELS_KEY = "vit.pixels"  # "1": the input is pixels from 0 to 255, the normalisation is in the graph
SHARES_KEY = "vit.probabilities"  # "1": the output is probabilities, temperature included
PRECISION_KEY = "vit.precision"  # fp32, fp16 or int8
SIZES_KEY = "vit.sizes"  # of the images it takes, 224x224 or 224x224,384x384; the first is the config's
CHECKSUM_KEY = "vit.crc32"  # of all bytes before this entry, which is the last; eight hexadecimal digits


def exported_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that was exported to the ONNX file `path`. Raises CheckpointError for other ONNX files."""
    text = read_metadata(path).get(CONFIG_KEY)
    if text is None:
        raise CheckpointError(f"{safe(path)}: an ONNX file without labels and preprocessing; `vit export` writes them")
    config = parse_object(text.encode("utf-8"), safe(path))
    checkpoint = parse_config(config, name=str(path), source="file", config_path=path, weights_path=path)
    return replace(checkpoint, notes=())  # they doubt the arithmetic, which is the file's own
