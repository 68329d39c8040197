"""The reader of an ONNX file's metadata; what the writer writes is read by `onnx` itself in test_graph."""

from pathlib import Path

import pytest

from vitcli.errors import CheckpointError
from vitcli.onnx.protobuf import metadata_entry, read_metadata

HUGE = b"\xff" * 9 + b"\x01"  # the varint of 2^64 - 1


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(metadata_entry("b", "Größe") + metadata_entry("a", ""))
    assert list(read_metadata(path).items()) == [("b", "Größe"), ("a", "")]


@pytest.mark.parametrize(
    "entry",
    [b"\x0a" + HUGE, b"\x0a\x7fa", b"\x0a\x01\xff", b"\x08\x01", b"\x1a\x01a", b"\x0a", HUGE + b"\x01"],
    ids=["huge text", "text beyond its entry", "no UTF-8", "a number", "another field", "cut off", "huge tag"],
)
def test_a_damaged_entry_is_one_line(entry: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(bytes([14 << 3 | 2, len(entry)]) + entry)
    with pytest.raises(CheckpointError, match="not an ONNX file, or a damaged one"):
        read_metadata(path)


def test_a_field_longer_than_the_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(bytes([14 << 3 | 2]) + HUGE)
    with pytest.raises(CheckpointError, match="not an ONNX file, or a damaged one"):
        read_metadata(path)
