"""Hostile and damaged files: every one gives a CheckpointError that says what is wrong, before anything is allocated.

Files are made from code (reliability torture list, checkpoints 1–7, 9, 10, 14, 16, 19–21); torch is not needed.
"""

import errno
import gzip
import io
import json
import os
import stat
import struct
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.checkpoints import DELETED, LABELS, TINY, edit_config, entry, random_tensors, write_tiny
from tests.helpers.checkpoints import safetensors as file_of
from vitcli import files as durable
from vitcli.checkpoint import tensor_file as tensors_module
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import MAX_HEADER_BYTES, as_stored, read_header, read_tensors, sniff, write_tensors
from vitcli.checkpoint.weights import read_weights
from vitcli.errors import CheckpointError
from vitcli.files import parse_object, read_config

ONE = {"a": entry([2], 0)}
EIGHT = struct.pack("<2f", 1, 2)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_the_honest_file_is_read(path: Path) -> None:
    path.write_bytes(file_of(ONE, EIGHT))
    assert read_tensors(path)["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (b"1234567", "truncated"),
        (struct.pack("<Q", 1 << 63) + b"{}", "truncated, or not a safetensors"),
        (struct.pack("<Q", 3) + b"{}", "truncated, or not a safetensors"),
        (file_of(b"not json"), "not valid JSON"),
        (file_of(b"[]"), "a list"),
        (file_of({**ONE, "__metadata__": {"format": 1}}, EIGHT), "__metadata__"),
        (file_of(b'{"a":{},"a":{}}'), "'a' appears twice"),
        (file_of({"a": entry([2], 0), "b": entry([2], 4)}, EIGHT + EIGHT[:4]), "b overlaps"),
        (file_of({"a": entry([1], 0), "b": entry([1], 8)}, EIGHT + EIGHT), "gap"),
        (file_of(ONE, EIGHT + b"x"), "1 bytes follow"),
        (file_of(ONE, EIGHT[:7]), "truncated: 7 of 8"),
        (file_of({"a": entry([3], 0, stop=8)}, EIGHT), "not those of its shape"),
        (file_of({"a": entry([2], 0) | {"shape": [-2]}}, EIGHT), "bad shape"),
        (file_of({"a": entry([2], 0) | {"shape": [1 << 60]}}, EIGHT), "bad shape"),
        (file_of({"a": entry([2], 0) | {"shape": [2.0]}}, EIGHT), "bad shape"),
        (file_of({"a": entry([2], 0) | {"shape": [True, 2]}}, EIGHT), "bad shape"),
        (file_of({"a": {"dtype": "F32"}}, EIGHT), "lacks"),
        (file_of({"a": 7}, EIGHT), "lacks"),
        (file_of({"a": entry([8], 0, "I8")}, EIGHT), "stored as I8"),
        (file_of({"a": entry([1], 0, "I64")}, EIGHT), "stored as I64"),
        (file_of({"a": entry([2], 0) | {"dtype": ["F32"]}}, EIGHT), "stored as"),
        (file_of({"../a": entry([2], 0)}, EIGHT), "not a tensor name"),
        (file_of({"a\x1b[31m": entry([2], 0)}, EIGHT), r"a\x1b[31m"),
        (file_of({f"t{i}": entry([0], 0) for i in range(10_001)}), "too many tensors"),
    ],
)
def test_a_file_that_lies_is_refused(path: Path, content: bytes, said: str) -> None:
    assert said in refused(path, content)


def test_a_header_of_200_000_tensors_is_refused_by_its_size(path: Path) -> None:
    assert "8 MiB is the limit" in refused(
        path, file_of(dict.fromkeys((f"t{i}" for i in range(200_000)), entry([0], 0)))
    )


def test_a_header_length_of_200_mb_is_refused_without_reading_it(path: Path) -> None:
    with open(path, "wb") as file:  # a sparse file: the length fits into it
        file.write(struct.pack("<Q", 200 << 20) + b"{")
        file.truncate(300 << 20)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="200 MiB"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_HEADER_BYTES


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"data")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html>Login</html>", "HTML page"),
        (b"\n  <HTML><body>404</body></html>", "HTML page"),
        (zipped("archive/data.pkl"), "zip archive"),
        (zipped("weight.npy"), ".npz"),
        (gzip.compress(b"x" * 100, mtime=0), "gzip"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "pickle"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94.", "pickle"),
    ],
)
def test_a_file_of_another_kind_is_named(path: Path, content: bytes, said: str) -> None:
    assert said in refused(path, content)


def test_a_header_length_that_looks_like_a_pickle_is_read(path: Path) -> None:
    header = json.dumps(ONE).encode()
    header += b" " * (0x10280 - len(header))  # begins with the bytes 80 02 01, as a pickle might
    path.write_bytes(file_of(header, EIGHT))
    assert sniff(path.read_bytes()[:512]) is None
    assert read_tensors(path)["a"].tolist() == [1, 2]


def test_truncation_anywhere_is_an_error(tmp_path: Path) -> None:
    """Every kilobyte of a real checkpoint, and every byte of its first hundred."""
    whole = (write_tiny(tmp_path) / "model.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in [*range(100), *range(100, len(whole), 1024)]:
        refused(path, whole[:size])


@given(st.binary(max_size=300))
def test_random_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_tensors(path)


@given(st.data())
def test_a_flipped_byte_in_the_header_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.float16)}))
    position = data.draw(st.integers(0, len(content) - 33))
    content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flipped") / "model.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_tensors(path)
    except CheckpointError:
        return
    assert sum(array.size for array in tensors.values()) in (10, 8, 5, 13, 16, 7)  # other names or types of equal size


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("F64", 0), ("F32", 0), ("F16", 0), ("BF16", 0)], ids=["f64", "f32", "f16", "bf16"]
)
def test_every_stored_type_becomes_float32(path: Path, dtype: str, tolerance: float) -> None:
    """The values are exact in every type, so nothing may be lost: seven bits of mantissa."""
    values = np.array([[1.5, -2.25, 0.0], [96.0, -0.0078125, 3.0]], np.float32)
    raw = {
        "F64": values.astype("<f8").tobytes(),
        "F32": values.tobytes(),
        "F16": values.astype("<f2").tobytes(),
        "BF16": (values.view("<u4") >> 16).astype("<u2").tobytes(),
    }[dtype]
    path.write_bytes(file_of({"a": entry([2, 3], 0, dtype), "scalar": entry([], len(raw))}, raw + EIGHT[:4]))
    tensors = read_tensors(path)
    assert tensors["a"].dtype == np.float32
    np.testing.assert_array_equal(tensors["a"], values)
    assert tensors["scalar"].shape == ()


def test_unaligned_tensors_are_read(path: Path) -> None:
    """An odd number of float16 values puts the next float32 on an odd address."""
    header = {"h": entry([3], 0, "F16"), "f": entry([2], 6), "empty": entry([0, 5], 14)}
    path.write_bytes(file_of(header, np.array([1, 2, 3], "<f2").tobytes() + EIGHT))
    tensors = read_tensors(path)
    assert tensors["f"].flags.aligned
    assert tensors["f"].tolist() == [1, 2]
    assert tensors["empty"].shape == (0, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_the_tensor(path: Path, value: float) -> None:
    write_tensors(path, {"good": np.ones(9, np.float32), "bad.weight": np.array([0, value, 0], np.float32)}, {})
    with pytest.raises(CheckpointError, match=r"NaN or infinity in bad\.weight;"):
        read_tensors(path)
    assert set(read_tensors(path, allow_nonfinite=True)) == {"good", "bad.weight"}


def test_a_float64_beyond_float32_is_named_too(path: Path) -> None:
    path.write_bytes(file_of({"huge": entry([1], 0, "F64")}, struct.pack("<d", 1e300)))
    with pytest.raises(CheckpointError, match="infinity in huge"):
        read_tensors(path)


def test_what_is_written_is_what_safetensors_reads(path: Path) -> None:
    tensors = random_tensors()
    write_tensors(path, as_stored(tensors, "float16"), {"format": "pt"})
    theirs = safetensors.numpy.load_file(path)
    ours = read_tensors(path)
    assert set(theirs) == set(ours) == set(tensors)
    for name in tensors:
        np.testing.assert_array_equal(ours[name], theirs[name].astype(np.float32))
    assert read_header(path).metadata == {"format": "pt"}
    assert read_header(path).parameters == sum(a.size for a in tensors.values())


def test_values_beyond_float16_are_not_stored_as_infinity() -> None:
    with pytest.raises(CheckpointError, match="head has values beyond float16"):
        as_stored({"head": np.array([70_000], np.float32)}, "float16")


# --- files that are not plain files, or change ---


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["folder", "device", "loop", "dangling", "missing"])
def test_what_is_no_file_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "blobs" / "gone")
    said = {"dangling": "a link to a file that is gone", "missing": "no such file", "loop": os.strerror(errno.ELOOP)}
    with pytest.raises(CheckpointError, match=said.get(kind, "not a regular file|Is a directory")):
        read_tensors(path)


def test_a_file_cut_short_while_it_is_read_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mmap this would be SIGBUS, which nothing catches."""
    write_tensors(path, {"a": np.ones(1 << 20, np.float32)}, {})
    read_data = tensors_module.read_data

    def cut_then_read(*arguments: object) -> object:
        os.truncate(path, 1 << 20)
        return read_data(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tensors_module, "read_data", cut_then_read)
    with pytest.raises(CheckpointError, match="cut short while it was read"):
        read_tensors(path)


def test_reading_takes_the_file_once(path: Path) -> None:
    """Memory: the data section and no second copy of it."""
    size = 8 << 20
    write_tensors(path, {"a": np.ones(size // 4, np.float32)}, {})
    tracemalloc.start()
    read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * size


# --- writing ---


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.write_file(path, [b"old"])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write_file(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_is_durable_before_it_is_renamed_and_its_name_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first fsync a power cut can leave an empty file, without the second none."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    durable.write_file(path, [b"x"])
    assert steps == ["file", "rename", "folder"]


def test_writing_replaces_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    """A checkpoint folder made of links into the Hub cache: the blob must stay what its name says."""
    blob = tmp_path / "blob"
    blob.write_bytes(b"content-addressed")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    durable.write_file(link, [b"new"])
    assert not link.is_symlink()
    assert blob.read_bytes() == b"content-addressed"


def test_written_files_follow_the_umask(path: Path) -> None:
    mask = os.umask(0o027)
    try:
        durable.write_file(path, [b""])
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="nothing was saved"):
        write_tiny(tmp_path / "file" / "folder")


def test_a_reader_never_sees_half_a_file(path: Path) -> None:
    """A hundred replacements while another thread reads: each time one of the whole files."""
    contents = [bytes([i]) * 100_000 for i in range(2)]
    durable.write_file(path, [contents[0]])
    seen: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())
            time.sleep(0)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100):
        durable.write_file(path, [contents[i % 2][:50_000], contents[i % 2][50_000:]])
    stop.set()
    reader.join()
    assert seen
    assert all(content in contents for content in seen)


# --- JSON ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"x": {"a": 1, "\\u0061": 2}}', "'a' appears twice"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": 1', "not valid JSON, line 1"),
        (b"", "not valid JSON"),
        ('{"a": "ü"}'.encode("latin-1"), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b'"text"', "a string"),
        (b"null", "null"),
    ],
)
def test_bad_json_is_one_line(text: bytes, said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        parse_object(text, "config.json")
    assert str(error.value).startswith("config.json: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_accepted() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": "\xc3\xbc"}', "") == {"a": "ü"}


def test_a_config_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="larger than 16 MiB"):
        read_config(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# --- weights against the config ---


def test_wrappers_prefixes_are_taken_off(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    wrapped = {f"module._orig_mod.{name}": array for name, array in random_tensors().items()}
    write_tensors(tmp_path / "model.safetensors", wrapped, {})
    assert set(read_weights(resolve(str(tmp_path)))) == set(random_tensors())
    write_tensors(tmp_path / "model.safetensors", wrapped | {"cls_token": wrapped["module._orig_mod.cls_token"]}, {})
    with pytest.raises(CheckpointError, match="with and without"):
        read_weights(resolve(str(tmp_path)))


def test_damaged_weights_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    tensors = random_tensors()
    tensors["pos_embed"][0, 3, 7] = np.inf
    write_tensors(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(CheckpointError, match="NaN or infinity in pos_embed; the weights are damaged"):
        read_weights(resolve(str(tmp_path)))


def test_wrong_weights_are_listed_ten_of_each(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    tensors = random_tensors()
    del tensors["cls_token"]
    tensors["blocks.0.attn.qkv.weight"] = tensors["blocks.0.attn.qkv.weight"].T
    tensors |= {f"head_dist.{i}": np.zeros(1, np.float32) for i in range(12)}
    write_tensors(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(CheckpointError) as error:
        read_weights(resolve(str(tmp_path)))
    message = str(error.value)
    assert "missing: cls_token;" in message
    assert "blocks.0.attn.qkv.weight (48, 144) instead of (144, 48)" in message
    assert " and 2 more;" in message
    assert message.count("head_dist.") == 10


def test_a_head_of_another_size_is_said_in_classes(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    edit_config(tmp_path, num_classes=5, label_names=[*LABELS, "fish", "newt"])
    with pytest.raises(CheckpointError, match=r"the config says 5 classes, head\.weight has 3"):
        read_weights(resolve(str(tmp_path)))


def test_a_position_embedding_of_another_grid_is_never_interpolated_silently(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    sizes = {"model_args__img_size": [128, 128], "pretrained_cfg__input_size": [3, 128, 128]}
    edit_config(tmp_path, **sizes)
    with pytest.raises(CheckpointError, match=r"grid of 4×4, the config's 128×128 pixels make 8×8.*--img-size"):
        read_weights(resolve(str(tmp_path)))


def test_an_equal_number_of_patches_in_another_shape_is_noticed(tmp_path: Path) -> None:
    """2 × 8 patches are as many as 4 × 4: only the stored grid tells them apart."""
    write_tiny(tmp_path)
    sizes = {"model_args__img_size": [32, 128], "pretrained_cfg__input_size": [3, 32, 128]}
    edit_config(tmp_path, **sizes)
    with pytest.raises(CheckpointError, match="grid of 4×4, the config's 32×128 pixels make 2×8"):
        read_weights(resolve(str(tmp_path)))


def test_a_grid_that_cannot_be_known_is_an_error(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    edit_config(tmp_path, vit__grid=DELETED)
    tensors = random_tensors()
    tensors["pos_embed"] = np.zeros((1, 201, TINY.embed_dim), np.float32)
    write_tensors(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(CheckpointError, match="200 patches is not square"):
        read_weights(resolve(str(tmp_path)))


@pytest.mark.parametrize(
    "lie",
    [
        {"model_args__embed_dim": 16384, "model_args__depth": 256, "model_args__num_heads": 256},
        {"num_classes": 100_000, "label_names": DELETED},
        {"model_args__embed_dim": 1_000_000},
        {"model_args__depth": 10**9},
        {"model_args__img_size": [10**6, 10**6]},
        {"model_args__reg_tokens": 10**12},
    ],
)
def test_a_memory_bomb_fails_before_any_allocation(tmp_path: Path, lie: dict[str, object]) -> None:
    """The first two pass the config's bounds and fail by the header alone."""
    edit_config(write_tiny(tmp_path), **lie)
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_weights(resolve(str(tmp_path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # the names "class 0" to "class 99999" are 8 MB; the smallest model of these, 6 TB
