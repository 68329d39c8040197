"""Class folders: layouts, class order, what is ignored and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from vitcli.data.check import check
from vitcli.data.samples import DataSet, FileSamples, Samples
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import AmbiguousData, DataError, ImageError, UsageError
from vitcli.images.preprocess import Preprocess, load


def image(path: Path, value: int = 0) -> None:
    """A small PNG whose pixels tell `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (value % 256, value // 256, len(path.parts) % 256)).save(path)


def classes(root: Path, **counts: int) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            image(root / name / f"{i}.png", 1000 * number + i)
    return root


def names(samples: Samples, data: DataSet) -> set[str]:
    return {Path(samples.name(i)).relative_to(data.root).as_posix() for i in range(len(samples))}


def test_class_folders_with_a_split_by_content(tmp_path: Path) -> None:
    data = open_data(classes(tmp_path, cat=30, dog=20), val_fraction=0.2)
    assert (data.kind, data.classes, data.test) == ("folders", ("cat", "dog"), None)
    train, val = names(data.train, data), names(data.val, data)
    assert not train & val
    assert len(train | val) == 50
    assert set(data.val.labels.tolist()) == {0, 1}
    for i in range(len(data.train)):
        assert Path(data.train.name(i)).parent.name == data.classes[data.train.labels[i]]
    assert any(f"{len(val)} of 50 training images validate" in note for note in data.notes)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("training", "valid", "test"), ("Train", "Validation", "Test"), ("train", "eval", None)],
)
def test_split_folders(tmp_path: Path, train: str, val: str, test: str | None) -> None:
    classes(tmp_path / train, cat=3, dog=4)
    classes(tmp_path / val, cat=2, dog=1)
    if test:
        classes(tmp_path / test, cat=1, dog=1)
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val)) == (7, 3)
    assert (len(data.test) if data.test else None) == (2 if test else None)
    assert data.notes == ()
    assert data.counts["train"] == (3, 4)
    assert data.counts["val"] == (2, 1)
    assert list(data.counts) == ["train", "val", "test"][: 3 if test else 2]


def test_classes_and_labels_are_torchvisions(tmp_path: Path) -> None:
    classes(tmp_path, **{"10": 2, "2": 2, "Zebra": 2, "apple": 2, "001": 2, "1": 2})
    theirs = ImageFolder(str(tmp_path))
    ours = read_splits(tmp_path)
    assert list(ours.classes) == theirs.classes == ["001", "1", "10", "2", "Zebra", "apple"]
    train = ours.named["train"]
    assert sorted((train.name(i), int(train.labels[i])) for i in range(len(train))) == sorted(theirs.samples)


def test_nested_folders_belong_to_their_class_and_content_decides_the_format(tmp_path: Path) -> None:
    classes(tmp_path, cat=2, dog=2)
    image(tmp_path / "cat" / "siamese" / "dog" / "9.PNG", 7)
    Image.new("RGB", (2, 2)).save(tmp_path / "dog" / "really_webp.jpg", "WEBP")
    data = open_data(tmp_path)
    assert data.counts["train"][0] + data.counts["val"][0] == 3
    everything = read_splits(tmp_path).named["train"]
    assert {everything.image(i).mode for i in range(len(everything))} == {"RGB"}


def test_train_may_be_a_class(tmp_path: Path) -> None:
    assert open_data(classes(tmp_path, bus=3, train=3)).classes == ("bus", "train")
    assert open_data(classes(tmp_path, bus=3, train=3, test=3)).classes == ("bus", "test", "train")


def test_stray_folders_and_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    classes(tmp_path, cat=9, dog=9)
    for stray in (".ipynb_checkpoints/0.png", "__MACOSX/cat/._0.png", ".DS_Store", "Thumbs.db", "cat/._1.png"):
        image(tmp_path / "x.png")
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.png").rename(tmp_path / stray)
    (tmp_path / "README.md").touch()
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 18
    assert "left out: 1 × file not called like an image, 5 × hidden or system file" in data.notes


def test_folders_beside_the_splits_are_named(tmp_path: Path) -> None:
    classes(tmp_path / "train", cat=5, dog=5)
    classes(tmp_path, unlabelled=2)
    image(tmp_path / "test" / "1.png")  # as competitions ship it: no classes
    data = open_data(tmp_path)
    assert data.test is None
    assert "left out, since it holds no class folders of a split: 'test', 'unlabelled'" in data.notes


def test_classes_are_matched_by_name_in_every_split(tmp_path: Path) -> None:
    classes(tmp_path / "train", b=2, a=2, c=2)
    classes(tmp_path / "val", c=2, a=3)
    data = open_data(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert sorted(data.val.labels.tolist()) == [0, 0, 0, 2, 2]
    assert data.notes == ("no validation images of 'b'",)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_without_training_images_is_refused(tmp_path: Path, split: str) -> None:
    classes(tmp_path / "train", cat=2, dog=2)
    classes(tmp_path / "val", cat=1, dog=1)
    classes(tmp_path / split, Cat=1)
    with pytest.raises(DataError, match="no training images of 'Cat'"):
        open_data(tmp_path)
    assert read_splits(tmp_path).classes == ("Cat", "cat", "dog")  # evaluation maps names by itself


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    classes(tmp_path, cat=2, dog=2)
    for i in range(30):
        (tmp_path / f"empty {i:02}").mkdir()
    with pytest.raises(DataError, match="no training images of 'empty 00', 'empty 01'") as error:
        open_data(tmp_path)
    assert "'empty 19', …" in str(error.value)
    assert "empty 20" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no training images; expected"),
        ([".hidden/1.png", "notes.txt"], "no training images"),
        (["1.png", "2.png"], "2 images outside class folders: '1.png', '2.png'"),
        (["cat/1.png", "dog/1.png", "loose.png"], "1 images outside class folders: 'loose.png'"),
        (["train/cat/1.png", "train/dog/1.png", "train/loose.png"], "outside class folders: 'loose.png'"),
        (["cat/1.png"], "only one class, 'cat'"),
        (["unpacked/train/cat/1.png", "unpacked/train/dog/1.png"], "or is the data set .*unpacked"),
        (["train/1.png", "val/1.png"], "must hold one folder per class"),
        (["val/cat/1.png", "val/dog/1.png"], "no training split, only val"),
        (["train/cat/1.png", "training/cat/1.png"], "two folders for one split"),
    ],
)
def test_layouts_that_make_no_sense(tmp_path: Path, files: list[str], said: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name in files:
        image(root / name) if name.endswith(".png") else (root / name).touch()
    with pytest.raises(DataError, match=said) as error:
        open_data(root)
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_data(tmp_path / "gone")
    for name in ("data.zip", "data.tar.gz", "data.rar"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=f"{name} is neither a folder nor a manifest.*unpack other archives first"):
            open_data(tmp_path / name)


def test_class_names_are_stored_composed(tmp_path: Path) -> None:
    classes(tmp_path, **{"cafe\u0301": 3, "bar": 3})
    assert open_data(tmp_path).classes == ("bar", "caf\u00e9")
    classes(tmp_path, **{"caf\u00e9": 3})
    if len(os.listdir(tmp_path)) == 3:  # some file systems compose names themselves
        with pytest.raises(DataError, match="two folders for the class"):
            open_data(tmp_path)


def test_class_names_that_no_checkpoint_can_store(tmp_path: Path) -> None:
    classes(tmp_path, cat=2)
    image(tmp_path / os.fsdecode(b"\xff") / "1.png")
    with pytest.raises(DataError, match="not UTF-8"):
        open_data(tmp_path)


def test_links_in_circles(tmp_path: Path) -> None:
    classes(tmp_path, cat=4, dog=4)
    (tmp_path / "cat" / "up").symlink_to(tmp_path / "cat")
    data = open_data(tmp_path)
    assert len(data.train) + len(data.val) == 8
    assert any("already seen through another link" in note for note in data.notes)


def test_copies_are_reported_and_stay_on_one_side(tmp_path: Path) -> None:
    classes(tmp_path, cat=40, dog=40)
    for i in range(40):
        shutil.copy(tmp_path / "cat" / f"{i}.png", tmp_path / "cat" / f"copy of {i}.png")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "dog" / "a cat.png")
    data = open_data(tmp_path, val_fraction=0.3)
    assert "41 training images are exact copies of others" in data.notes
    (note,) = (note for note in data.notes if "under two classes" in note)
    assert note.startswith("1 images stand")
    assert "a cat.png (dog)" in note
    val = {Path(name).name for name in names(data.val, data) if name.startswith("cat")}
    assert val
    assert {name.removeprefix("copy of ") for name in val} == {name for name in val if not name.startswith("copy")}


def test_an_unreadable_image_is_reported_when_it_is_decoded(tmp_path: Path) -> None:
    classes(tmp_path, cat=5, dog=5)
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "cat" / "dangling.png").symlink_to(tmp_path / "nowhere")
    data = open_data(tmp_path)
    failed = []
    for samples in (data.train, data.val):
        for i in range(len(samples)):
            try:
                samples.image(i)
            except ImageError as error:
                failed.append(str(error))
    assert len(failed) == 2
    assert all(str(tmp_path / "cat") in line for line in failed)


def test_loading_is_what_predict_does(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.jpg")
    samples = read_splits(tmp_path).named["train"]
    assert isinstance(samples, FileSamples)
    preprocess = Preprocess((32, 32))
    for exact in (False, True):
        assert np.array_equal(samples.load(1, preprocess, exact=exact), load(samples.path(1), preprocess, exact=exact))


def test_fingerprints(tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        return open_data(root).fingerprint

    split, plain = tmp_path / "split", classes(tmp_path / "plain", cat=5, dog=5)
    classes(split / "train", cat=3, dog=3)
    classes(split / "val", cat=2, dog=2)
    for root, changed in ((split, "train/cat/1.png"), (plain, "cat/1.png")):
        first = fingerprint(root)
        copy = tmp_path / "elsewhere" / root.name
        shutil.copytree(root, copy)
        os.utime(copy / changed, (0, 0))
        assert fingerprint(copy) == first, "a copy on another disk is the same data"
        (copy / changed).write_bytes((copy / changed).read_bytes() + b"\0")
        assert fingerprint(copy) != first
        (root / changed).rename(root / changed.replace("1.png", "new.png"))
        assert fingerprint(root) != first


def test_progress_counts_the_files_that_are_hashed(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_data(classes(tmp_path, a=3, b=2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_ten_thousand_to_one(tmp_path: Path) -> None:
    data = open_data(classes(tmp_path, common=200, rare=1))
    assert data.counts["train"][1] == 1
    assert max(data.counts["train"]) == data.counts["train"][0] > 100
    assert "no validation images of 'rare'" in data.notes


SPLIT_NAMES = {
    "train": ["train", "Training", "TRAIN", "trn", "train_set", "TrainSet", "trainset", "Train_Images", "1_train",
              "train2017", "training data", "imgs-train", "train_224x224", "training_v2", "trainval"],
    "val": ["val", "Valid", "VALIDATION", "validation_set", "val2017", "2. val", "dev", "devset", "eval", "val.images"],
    "test": ["test", "Testing", "TEST", "test_set", "TestData", "test-img", "holdout", "Hold-Out", "held_out", "tst"],
}  # fmt: skip
NO_SPLITS = [
    "contest",
    "trains",
    "testimony",
    "bullet_train",
    "pregnancy test",
    "invalid",
    "developer",
    "train_val",
    "set",
]


@pytest.mark.parametrize(("split", "name"), [(split, name) for split in SPLIT_NAMES for name in SPLIT_NAMES[split]])
def test_usual_names_of_splits(tmp_path: Path, split: str, name: str) -> None:
    counts = {"train": 2, "val": 1, "test": 1} | {split: 3}
    for of, count in counts.items():
        classes(tmp_path / (name if of == split else of), cat=count, dog=count)
    found = read_splits(tmp_path)
    assert {of: len(samples) for of, samples in found.named.items()} == {of: 2 * n for of, n in counts.items()}
    assert found.classes == ("cat", "dog")
    assert found.notes == ()


def test_words_that_only_contain_a_splits_name(tmp_path: Path) -> None:
    found = read_splits(classes(tmp_path, **dict.fromkeys(NO_SPLITS, 1)))
    assert set(found.named) == {"train"}
    assert found.classes == tuple(sorted(NO_SPLITS))


def tree(root: Path, *files: str) -> Path:
    for number, name in enumerate(files):
        image(root / name, number) if name.endswith(".png") else (root / name).mkdir(parents=True)
    return root


def halves(*folders: str) -> list[str]:
    """The same two classes in each of `folders`."""
    return [f"{folder}/{name}/{i}.png" for folder in folders for name in ("cat", "dog") for i in (1, 2)]


@pytest.mark.parametrize(
    "files",
    [
        halves("seg_train", "seg_test"),
        halves("seg_train/seg_train", "seg_test/seg_test"),
        halves("train/images", "test/images"),
        [*halves("images/train", "images/test"), "labels"],
        halves("data/images/Train", "data/images/Test"),
        halves("train/train", "test"),
    ],
)
def test_splits_in_wrappers_and_with_names_in_common(tmp_path: Path, files: list[str]) -> None:
    found = read_splits(tree(tmp_path / "d", *files))
    assert found.classes == ("cat", "dog")
    assert {split: samples.labels.tolist() for split, samples in found.named.items()} == {
        "train": [0, 0, 1, 1],
        "test": [0, 0, 1, 1],
    }
    assert all(samples.path(i).is_file() for samples in found.named.values() for i in range(4))  # type: ignore[union-attr]


AMBIGUOUS = {
    "a class called train": ["train/steam/1.png", "train/diesel/1.png", "car/1.png", "bus/1.png"],
    "a class called test": ["test/blood/1.png", "test/eye/1.png", "rest/1.png"],
    "one unknown name": halves("train", "lernen"),
    "one unknown name of three": halves("train", "test", "extra"),
    "only unknown names": halves("lernen", "pruefen"),
    "unknown names, other classes": [*halves("lernen", "pruefen"), "lernen/fox/1.png"],
    "splits inside classes": ["cat/train/1.png", "cat/test/1.png", "dog/train/1.png", "dog/test/1.png"],
    "one split inside a class": ["cat/1.png", "cat/test/2.png", "dog/1.png"],
    "a wrapper with a name": halves("archive/train", "archive/test"),
    "two names for one split": halves("train", "val", "validation"),
    "dev and eval": halves("train", "dev", "eval"),
    "case alone": halves("train", "Train", "test"),
}


@pytest.mark.parametrize("files", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_folders_that_can_be_read_in_two_ways(tmp_path: Path, files: list[str]) -> None:
    """They are refused with the option that decides, and `--folders classes` reads every image of them."""
    root = tree(tmp_path / "d", *files)
    with pytest.raises(AmbiguousData, match="--folders") as error:
        read_splits(root)
    assert "\n" not in str(error.value)
    found = read_splits(root, folders="classes")
    assert len(found.named["train"]) == len(files)
    assert set(found.classes) == {name.split("/")[0] for name in files}
    (finding,) = check(root).findings
    assert (finding.kind, finding.grade) == ("ambiguous-folders", "spoils a measurement")


def test_folders_as_they_are_said_to_be(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", *halves("a, b", "old/exam", "spare"), "lies here.png")
    found = read_splits(root, folders="train=a, b,test=old/exam")
    assert {split: len(samples) for split, samples in found.named.items()} == {"train": 4, "test": 4}
    assert found.notes == ("left out, as --folders says: 'spare', 'lies here.png'",)
    assert open_data(root, folders="train=spare,val=old/exam").counts == {"train": (2, 2), "val": (2, 2)}


@pytest.mark.parametrize(
    "folders", ["", "splits", "train", "train=", "train=gone", "train=../d/a", "train=/tmp", "train=a,train=b", "tr=a"]
)
def test_folders_that_are_said_wrongly(tmp_path: Path, folders: str) -> None:
    with pytest.raises(UsageError, match="--folders"):
        read_splits(tree(tmp_path / "d", *halves("a", "b")), folders=folders)


def test_folders_are_not_for_what_says_its_splits(tmp_path: Path) -> None:
    tree(tmp_path / "d", *halves("a"))
    (tmp_path / "d" / "metadata.csv").write_text("file_name,label\na/cat/1.png,cat\na/dog/1.png,dog\n")
    for path in (tmp_path / "d", tmp_path / "d" / "metadata.csv"):
        with pytest.raises(UsageError, match="which says the splits"):
            read_splits(path, folders="classes")


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        (["stray.png"], {"stray.png"}),
        (["unlabeled/1.png"], {"unlabeled"}),
        (["predictions/1.png"], {"predictions"}),
        (["val/1.png"], {"val"}),
        (["val/val/1.png"], {"val"}),
        (["val"], set()),
        (["notes"], set()),
    ],
)
def test_images_beside_the_splits_are_said(tmp_path: Path, files: list[str], left_out: set[str]) -> None:
    root = tree(tmp_path / "d", *halves("train", "test"), *files)
    found = read_splits(root)
    assert {split: len(samples) for split, samples in found.named.items()} == {"train": 4, "test": 4}
    assert set(found.left_out) == left_out
    (note,) = found.notes
    assert note.startswith("left out")
    assert files[0].split("/")[0] in note
    assert ("left-out" in {finding.kind for finding in check(root, near=False).findings}) == bool(left_out)


def test_a_split_without_images_is_none(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", *halves("train", "test"), "val/cat", "val/dog")
    data = open_data(root)
    assert len(data.val) > 0, "drawn from train"
    assert any("there is no val split" in note for note in data.notes)


@pytest.mark.parametrize("name", ["test", "Test_Images", "val", "validation", "eval-set", "dev"])
def test_a_class_called_like_a_held_out_split_is_said(tmp_path: Path, name: str) -> None:
    """Without folders inside it cannot be a split, but it may be images without labels."""
    root = tree(tmp_path / "d", "cat/1.png", "dog/1.png", f"{name}/1.png")
    assert f"read as a class: '{name}'" in " ".join(open_data(root).notes)
    assert "class-like-a-split" in {finding.kind for finding in check(root).findings}
    assert "class-like-a-split" not in {finding.kind for finding in check(root, folders="classes").findings}


def test_links(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", *halves("train"))
    tree(tmp_path / "elsewhere", "cat/9.png", "dog/9.png")
    (root / "Testing").symlink_to(tmp_path / "elsewhere")
    found = read_splits(root)
    assert {split: len(samples) for split, samples in found.named.items()} == {"train": 4, "test": 2}
    (root / "Testing").unlink()
    (root / "Testing").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="Testing is a link that leads nowhere"):
        read_splits(root)
    (root / "Testing").unlink()
    (root / "images").symlink_to(root)  # a wrapper of itself
    with pytest.raises(AmbiguousData):
        read_splits(root)


def test_links_that_make_one_folder_two_things(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", *halves("train"))
    (root / "test").symlink_to(root / "train")
    with pytest.raises(DataError, match=r"lies in .*, so test would be part of train|train would be part of test"):
        read_splits(root)
    for said in ("train=train,val=train", "train=.,test=train"):
        with pytest.raises(DataError, match="would be part of"):
            read_splits(root, folders=said)
    (root / "test").unlink()
    (root / "train" / "kitten").symlink_to(root / "train" / "cat")
    with pytest.raises(DataError, match="the classes 'cat', 'kitten' are one folder, by a link"):
        read_splits(root)


def test_class_names_that_are_almost_alike_are_said(tmp_path: Path) -> None:
    data = open_data(classes(tmp_path, **{"hot dog": 3, "Hot_Dog": 3, "1": 3, "01": 3, "cat": 3, "-1": 3}))
    assert {note for note in data.notes if "almost alike" in note} == {
        "classes that are written almost alike: '01', '1'",
        "classes that are written almost alike: 'Hot_Dog', 'hot dog'",
    }


def test_classes_named_like_empty_cells_are_said(tmp_path: Path) -> None:
    data = open_data(classes(tmp_path, **{"nan": 3, "NULL": 3, "Nan bread": 3, "none": 3, "cat": 3}))
    assert [note for note in data.notes if "empty cell" in note] == [
        "taken as a class, though it may be an empty cell: 'NULL', 'nan'; leave such images out"
    ]
