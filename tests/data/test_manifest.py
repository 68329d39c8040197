"""CSV, TSV and JSONL manifests: what is read, and what is wrong on which line."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.shards import png, write_tar
from vitcli.data.check import check
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
        ("images,cat", "images is not a file"),
        (",cat", "no file_name or path"),
        ("images/5.png,", "no label"),
        ("images/5.png", "1 cells for 2 columns"),
        ("images/5.png,cat,dog", "3 cells for 2 columns"),
        ("a.tar#1.png,cat", "a.tar#1.png: it cannot be read"),
        ("images/1.png,cat", "is on line 2 already"),
        ("./images/1.png,dog", "is on line 2 already"),
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
        ('{"path": "images/5.png", "label": "a", "split": "later"}', "split later is none of"),
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


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC"), ("NFD", "NFD")])
def test_any_unicode_form_of_a_name_finds_the_file(tmp_path: Path, listed: str, stored: str) -> None:
    for name in ("caf\u00e9/\u00fcber.png", "caf\u00e9/plain.png"):
        path = tmp_path / unicodedata.normalize(stored, name)
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(path)
    lines = ["file_name,label", "caf\u00e9/\u00fcber.png,caf\u00e9", "caf\u00e9/plain.png,tea"]
    (tmp_path / "m.csv").write_text(unicodedata.normalize(listed, "\n".join(lines)), "utf-8")
    found = read_splits(tmp_path / "m.csv")
    assert found.classes == ("caf\u00e9", "tea")
    samples = found.named["train"]
    assert [samples.image(i).size for i in range(2)] == [(2, 2)] * 2


def test_one_file_by_two_names_is_one_image(root: Path) -> None:
    Image.new("L", (2, 2)).save(root / "images" / "\u00fc.png")
    for first, second in [
        ("images/\u00fc.png", "images/u\u0308.png"),
        ("images/1.png", f"{root}/images/1.png"),
        ("images/1.png", "images/1.png  "),
    ]:
        (root / "m.jsonl").write_text("\n".join(json.dumps({"path": p, "label": "a"}) for p in (first, second)))
        with pytest.raises(DataError, match=r"line 2: .*is on line 1 already"):
            read_splits(root / "m.jsonl")


@pytest.mark.parametrize(
    ("cell", "split"),
    [("Training", "train"), (" TEST ", "test"), ("val2017", "val"), ("test_set", "test"), ("dev", "val")],
)
def test_split_columns_say_what_folders_say(root: Path, cell: str, split: str) -> None:
    (root / "m.csv").write_text(f"path,label,split\nimages/1.png,a,train\nimages/2.png,b,{cell}\n")
    assert (split, "2.png", "b") in rows(read_splits(root / "m.csv"))


@pytest.mark.parametrize("column", ["set", "subset", "Usage", "data set", "split_name"])
def test_a_split_column_by_another_name_is_not_passed_over(root: Path, column: str) -> None:
    cells = ["train", "Testing", "", "val"]
    lines = [f"images/{i}.png,{i % 2},{cell}" for i, cell in enumerate(cells, 1)]
    (root / "m.csv").write_text("\n".join([f"path,label,{column}", *lines]))
    with pytest.raises(
        DataError, match=f"'{column.casefold()}' says train, val or test on every line; call it 'split'"
    ):
        read_splits(root / "m.csv")
    (root / "m.csv").write_text("\n".join([f"path,label,split,{column}", *(f"{line},x" for line in lines)]))
    assert set(read_splits(root / "m.csv").named) == {"train", "val", "test"}
    (root / "m.csv").write_text("\n".join([f"path,label,{column}", *lines, "images/5.png,1,red"]))
    assert set(read_splits(root / "m.csv").named) == {"train"}


def test_json_keys_are_read_as_a_header_is(root: Path) -> None:
    lines = [{"Path": "images/1.png", "LABEL": "a"}, {"Path": "images/2.png", "Label ": "b", "Split": "test"}]
    (root / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, lines)).encode())
    assert rows(read_splits(root / "m.jsonl")) == {("train", "1.png", "a"), ("test", "2.png", "b")}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("name", ["path", "label", "split"])
def test_a_column_that_stands_twice(root: Path, suffix: str, name: str) -> None:
    columns = {"path": "images/1.png", "label": "a", "split": "train"}
    if suffix == ".csv":
        text = f"{','.join(columns)},{name.upper()}\n{','.join(columns.values())},{columns[name]}"
    else:
        text = json.dumps(columns)[:-1] + f', "{name}": "x"}}'
    (root / f"m{suffix}").write_text(text)
    with pytest.raises(DataError, match=f"'{name}'.* twice"):
        read_splits(root / f"m{suffix}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,caption\ncat/1.png,a cat\n"),
        ("metadata.csv", "id,label\n1,cat\n"),
        ("metadata.csv", ""),
        ("metadata.tsv", "photographer\tyear\nme\t2020\n"),
        ("metadata.jsonl", '{"file_name": "cat/1.png", "text": "a cat"}\n'),
    ],
)
def test_metadata_without_labels_leaves_the_folders_their_say(tmp_path: Path, name: str, text: str) -> None:
    for file in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), len(file)).save(tmp_path / file)
    (tmp_path / name).write_text(text)
    found = read_splits(tmp_path)
    assert (found.kind, found.classes) == ("folders", ("cat", "dog"))
    assert f"{name} has no columns for files and labels" in found.notes[0]


def test_images_that_a_manifest_beside_them_does_not_list_are_said(root: Path) -> None:
    (root / "metadata.csv").write_text("file_name,label\nimages/1.png,a\nimages/2.png,b\n")
    found = read_splits(root)
    assert len(found.left_out) == 7
    assert "left out, since no label is given: 7 images, such as" in found.notes[0]
    (root / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"holds 'metadata.csv', 'metadata.jsonl': name the one"):
        read_splits(root)


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


GROUPS = {"images/1.png": "anna", "images/2.png": " anna ", "images/3.png": "", "images/4.png": 7}


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl"])
def test_groups_in_every_dress(root: Path, name: str) -> None:
    mark = "\t" if name == "m.tsv" else ","
    rows = [("path", "label", "Group"), *((file, "cat", str(group)) for file, group in GROUPS.items())]
    text = "\n".join(mark.join(row) for row in rows)
    if name == "m.jsonl":
        text = "\n".join(json.dumps({"path": file, "label": "cat", "Group": group}) for file, group in GROUPS.items())
    (root / name).write_text(text)
    samples = read_splits(root / name).named["train"]
    assert samples.groups == ("anna", "anna", "", "7")
    assert samples.keep(np.array([True, False, False, True])).groups == ("anna", "7")


def test_without_groups_nobody_says_any(root: Path) -> None:
    (root / "m.csv").write_text("path,label,group\nimages/1.png,cat,\nimages/2.png,dog, \n")
    assert read_splits(root / "m.csv").named["train"].groups is None


@pytest.mark.parametrize("value", ["true", "[1]", "1.5"])
def test_a_group_that_is_no_text_is_named(root: Path, value: str) -> None:
    (root / "m.jsonl").write_text(f'{{"path": "images/1.png", "label": "cat", "group": {value}}}')
    with pytest.raises(DataError, match=r"line 1: group .* is not text"):
        read_splits(root / "m.jsonl")


def grouped(root: Path, groups: str, splits: str = "") -> Path:
    """A manifest of nine images of two classes by turns, with a letter each for its group, and perhaps its split."""
    split = {"t": "train", "v": "val", "e": "test"}
    lines = ["path,label,group" + ",split" * bool(splits)]
    for i, group in enumerate(groups):
        lines.append(f"images/{i + 1}.png,{['cat', 'dog'][i % 2]},{group}" + (f",{split[splits[i]]}" if splits else ""))
    (root / "m.csv").write_text("\n".join(lines))
    return root / "m.csv"


def test_the_validation_split_takes_whole_groups(root: Path) -> None:
    """And the fingerprint knows them, since they decide what is trained on."""
    data = open_data(grouped(root, "aabbccdd"), val_fraction=0.3)
    assert len(data.train) + len(data.val) == 8
    assert len(data.val) > 0
    assert data.train.groups is not None
    assert data.val.groups is not None
    assert not {*data.train.groups} & {*data.val.groups}
    assert "group by group" in " ".join(data.notes)
    assert open_data(grouped(root, "aabbccde"), val_fraction=0.3).fingerprint != data.fingerprint


@pytest.mark.parametrize("groups", ["aaaaaaaa", "abababab"])
def test_groups_that_cannot_be_parted_are_an_error(root: Path, groups: str) -> None:
    with pytest.raises(DataError, match="no validation images can be drawn"):
        open_data(grouped(root, groups))
    assert len(open_data(grouped(root, groups), val_fraction=0.0).train) == 8


def test_groups_that_the_datas_own_splits_tear_are_said(root: Path) -> None:
    data = open_data(grouped(root, "aabbccdd", "ttttveve"))
    assert any("2 groups in more than one split of the data's own: 'c' in val and test" in note for note in data.notes)
    (finding,) = (one for one in check(root / "m.csv").findings if one.kind == "group-leak")
    assert (finding.grade, finding.count) == ("spoils a measurement", 2)
    assert finding.examples == ("c (val, test)", "d (val, test)")


def test_members_of_archives_may_be_listed(root: Path) -> None:
    """By the names that `vit predict` gives them."""
    write_tar(root / "old.tar", {"x/1.png": png(1), "x/2.png": png(2), "notes.txt": b""})
    (root / "m.csv").write_text("path,label\nold.tar#x/2.png,a\nimages/1.png,b\n./old.tar#x/1.png,a\n")
    samples = read_splits(root / "m.csv").named["train"]
    assert [samples.image(i).getpixel((0, 0)) for i in (0, 2)] == [(2, 90, 30), (1, 90, 30)]
    assert samples.keep(np.array([False, False, True])).image(0).getpixel((0, 0)) == (1, 90, 30)
    for row, said in (("old.tar#x/3.png", "no such member"), ("./old.tar#x/2.png", "on line 2 already")):
        (root / "m.csv").write_text(f"path,label\nold.tar#x/2.png,a\n{row},a\n")
        with pytest.raises(DataError, match=f"line 3: .*{said}"):
            read_splits(root / "m.csv")
