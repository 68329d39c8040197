"""CSV, TSV and JSONL manifests: what is read, and what is wrong on which line."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitcli.data.samples import Splits
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(1, 10):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), i).save(path)
    return tmp_path


def rows(found: Splits) -> set[tuple[str, str, str]]:
    """(split, file, class name)"""
    return {
        (split, Path(samples.name(i)).name, found.classes[samples.labels[i]])
        for split, samples in found.named.items()
        for i in range(len(samples))
    }


EXPECTED = {("train", "1.png", "cat"), ("train", "2.png", "dog"), ("val", "3.png", "cat"), ("test", "4.png", "dog")}
TABLE = [
    ("file_name", "label", "split"),
    ("images/1.png", "cat", "train"),
    ("images/2.png", "dog", ""),
    ("images/3.png", "cat", "Validation"),
    ("images/4.png", "dog", "test"),
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "\n".join(",".join(row) for row in TABLE)),
        ("m.csv", "\ufeff" + "\r\n".join(", ".join(row) for row in TABLE) + "\r\n\r\n"),
        ("m.CSV", "\n".join(";".join(row) for row in TABLE)),
        ("m.tsv", "\n".join("\t".join(row) for row in TABLE)),
        ("m.csv", "\n".join(",".join(f'"{cell}"' for cell in row) for row in TABLE)),
        ("m.csv", "\n".join(",".join((*row[::-1], "x")) for row in [("Path", "Label", "SPLIT"), *TABLE[1:]])),
        ("m.jsonl", "\n\n".join(json.dumps(dict(zip(TABLE[0], row, strict=True))) for row in TABLE[1:])),
    ],
)
def test_the_same_table_in_every_dress(root: Path, name: str, text: str) -> None:
    (root / name).write_bytes(text.encode())
    found = read_splits(root / name)
    assert (found.kind, found.classes) == ("manifest", ("cat", "dog"))
    assert rows(found) == EXPECTED


def test_a_manifest_beside_its_images_is_found(root: Path) -> None:
    (root / "metadata.csv").write_text("file_name,label\n" + "".join(f"images/{i}.png,{i % 2}\n" for i in range(1, 9)))
    data = open_data(root)
    assert data.classes == ("0", "1")
    assert len(data.train) + len(data.val) == 8
    assert data.train.image(0).mode == "RGB"


def test_labels_are_text(root: Path) -> None:
    (root / "m.csv").write_text(
        'path,label\nimages/1.png,001\nimages/2.png,1\nimages/3.png," 1 "\nimages/4.png,"a, ""b"""\n'
    )
    assert read_splits(root / "m.csv").classes == ("001", "1", 'a, "b"')
    lines = [{"path": "images/1.png", "label": 10}, {"path": "images/2.png", "label": 9}]
    (root / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_splits(root / "m.jsonl").classes == ("10", "9")


def test_absolute_paths_and_paths_above(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists" / "m.csv").write_text(f"path,label\n../images/1.png,a\n{root}/images/2.png,b\n")
    assert rows(read_splits(root / "lists" / "m.csv")) == {("train", "1.png", "a"), ("train", "2.png", "b")}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("images/77.png,cat", "images/77.png does not exist"),
        ("images,cat", "images is no file"),
        (",cat", "no file_name or path"),
        ("images/5.png,", "no label"),
        ("images/5.png", "1 cells for 2 columns"),
        ("images/5.png,cat,dog", "3 cells for 2 columns"),
        ("https://example.org/1.png,cat", "address"),
        ("images/1.png,cat", "stands on line 2 already"),
        ("./images/1.png,dog", "stands on line 2 already"),
        ('"images/5.png"x,cat', "expected after"),
        ("nul\0.png,cat", "does not exist"),
        ("a\x1b[31m.png,cat", r"a\\x1b\[31m.png does not exist"),
        ("x" * 200_000 + ",cat", "field larger than field limit"),
        ('images/5.png,"two\nlines\nand on', "unexpected end"),
    ],
)
def test_wrong_lines_are_named(root: Path, row: str, said: str) -> None:
    (root / "m.csv").write_text(f"path,label\nimages/1.png,cat\nimages/2.png,dog\n{row}\n")
    with pytest.raises(DataError, match=f"line 4: .*{said}") as error:
        read_splits(root / "m.csv")
    assert str(root / "m.csv") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"path": "images/5.png", "label": true}', "label True is not text"),
        ('{"path": "images/5.png", "label": 1.5}', "is not text"),
        ('{"path": "images/5.png", "label": null}', "no label"),
        ('{"path": 5, "label": "a"}', "no file_name or path"),
        ('{"path": "images/5.png", "label": "a", "split": "dev"}', "split dev is none of"),
        ('{"path": "images/5.png", "label": "a", "split": 3}', "split 3 is none of"),
    ],
)
def test_wrong_json_lines_are_named(root: Path, line: str, said: str) -> None:
    (root / "m.jsonl").write_text('{"path": "images/1.png", "label": "a"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=f"line 3: .*{said}"):
        read_splits(root / "m.jsonl")


def test_line_numbers_count_lines_not_records(root: Path) -> None:
    (root / "m.csv").write_text('path,label\nimages/1.png,"a\nb"\n\nimages/2.png,b\ngone.png,c\n')
    with pytest.raises(DataError, match=r"line 6: gone\.png"):
        read_splits(root / "m.csv")


def test_twenty_errors_are_enough(root: Path) -> None:
    (root / "m.csv").write_text("path,label\n" + "".join(f"gone{i}.png,a\n" for i in range(50)))
    with pytest.raises(DataError) as error:
        read_splits(root / "m.csv")
    assert str(error.value).count("does not exist") == 20
    assert str(error.value).endswith("and 30 more")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "line 1 must name the columns"),
        (b"images/1.png,cat\n", "line 1 must name the columns"),
        (b"path,class\nimages/1.png,cat\n", "line 1 must name the columns"),
        (b"path,label\n", "lists no images"),
        ("path,label\nimages/1.png,caf\u00e9\n".encode("latin-1"), "not UTF-8"),
        ("path,label\nimages/1.png,cat\n".encode("utf-16"), "not UTF-8"),
        (b"path,label\n" + b"x" * (2 << 20), "line 2 is longer"),
    ],
)
def test_files_that_are_no_manifests(root: Path, data: bytes, said: str) -> None:
    (root / "m.csv").write_bytes(data)
    with pytest.raises(DataError, match=said):
        read_splits(root / "m.csv")


def test_training_needs_what_folders_need(root: Path) -> None:
    (root / "m.csv").write_text("path,label,split\nimages/1.png,a,train\nimages/2.png,a,\nimages/3.png,b,val\n")
    with pytest.raises(DataError, match="no training images of 'b'"):
        open_data(root / "m.csv")
    (root / "m.csv").write_text("path,label\nimages/1.png,a\nimages/2.png,a\n")
    with pytest.raises(DataError, match="only one class"):
        open_data(root / "m.csv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.text(st.sampled_from('path,label\n\r\t;" 1é'), max_size=60).map(str.encode))
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_any_bytes_give_splits_or_a_data_error(root: Path, suffix: str, data: bytes) -> None:
    path = root / f"any{suffix}"
    path.write_bytes(b"path,label\n" + data)
    try:
        assert len(read_splits(path).classes) > 0
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
