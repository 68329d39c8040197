"""Finding images: order, links that go in circles, globs, long lists."""

import io
import os
import subprocess
import tracemalloc
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.shards import png, write_tar
from vitcli.errors import ImageError
from vitcli.images.decode import open_image
from vitcli.images.find import find_images, natural_key, walk, where


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(root: Path, *arguments: str | Path, skipped: Counter[str] | None = None) -> list[str]:
    found = [Path(source.name) for source in find_images(arguments or [root], skipped=skipped)]
    return [path.relative_to(root).as_posix() for path in found]


def test_folders_are_read_in_natural_order_with_what_lies_below(tmp_path: Path) -> None:
    tree(tmp_path, "img10.jpg", "img2.jpg", "b/2.PNG", "b/10.png", "b/deep/er/1.tif", "A.webp", "c.txt", "z.jpeg")
    skipped: Counter[str] = Counter()
    expected = ["A.webp", "b/2.PNG", "b/10.png", "b/deep/er/1.tif", "img2.jpg", "img10.jpg", "z.jpeg"]
    assert names(tmp_path, skipped=skipped) == expected
    assert skipped == {"file not called like an image": 1}


def test_hidden_and_system_files_are_left_out_unless_named(tmp_path: Path) -> None:
    hidden = (
        ".a.png",
        "._b.jpg",
        ".git/c.jpg",
        "__MACOSX/d.jpg",
        ".ipynb_checkpoints/e.png",
        "Thumbs.db",
        "desktop.ini",
    )
    tree(tmp_path, "x.jpg", *hidden)
    skipped: Counter[str] = Counter()
    assert names(tmp_path, skipped=skipped) == ["x.jpg"]
    assert skipped == {"hidden or system file": len(hidden)}
    assert names(tmp_path, tmp_path / ".a.png", tmp_path / "Thumbs.db") == [".a.png", "Thumbs.db"]


def test_links_in_circles_end(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "across").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "across").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "knot.jpg").symlink_to(tmp_path / "b" / "knot.jpg")
    skipped: Counter[str] = Counter()
    found = [os.path.basename(name) for name in names(tmp_path, skipped=skipped)]
    assert sorted(found) == ["1.jpg", "2.jpg", "knot.jpg"]
    assert skipped == {"folder already seen through another link": 4}
    assert names(tmp_path, f"{tmp_path}/**/*.jpg") == names(tmp_path)


def test_links_to_images_elsewhere_are_followed(tmp_path: Path) -> None:
    tree(tmp_path, "store/1.jpg", "view/2.jpg")
    (tmp_path / "view" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "view" / "3.jpg").symlink_to(tmp_path / "store" / "1.jpg")
    assert names(tmp_path, tmp_path / "view") == ["view/2.jpg", "view/3.jpg", "view/linked/1.jpg"]


def test_folders_deeper_than_python_recurses(tmp_path: Path) -> None:
    start = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.jpg").touch()
        os.chdir(tmp_path)
        assert len(list(walk(Path(".")))) == 1
    finally:
        os.chdir(start)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # which pytest's own cleaning cannot


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    skipped: Counter[str] = Counter()
    assert names(tmp_path, skipped=skipped) == ["a.jpg"]
    assert skipped == {"folder that cannot be read": 1}


def test_folders_that_may_not_be_listed_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for root, to whom nothing is refused."""
    tree(tmp_path, "a.jpg", "closed/b.jpg")
    real = os.scandir

    def refuse(path: Path) -> "object":
        if Path(path).name == "closed":
            raise PermissionError(13, os.strerror(13), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    skipped: Counter[str] = Counter()
    assert names(tmp_path, skipped=skipped) == ["a.jpg"]
    assert skipped == {"folder that cannot be read": 1}


def test_a_file_that_vanishes_after_it_was_found(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "b.jpg")
    found = find_images([tmp_path])
    first = next(found)
    (tmp_path / "b.jpg").unlink()
    second = next(found)
    assert (Path(first.name).name, Path(second.name).name) == ("a.jpg", "b.jpg")
    with pytest.raises(ImageError, match=r"b\.jpg does not exist"):
        open_image(second.source, name=second.name)


def test_globs(tmp_path: Path) -> None:
    tree(tmp_path, "1.jpg", "10.jpg", "2.jpg", "3.png", "d/4.jpg", "d/e/5.jpg", ".h.jpg", "f/6.jpg")
    assert names(tmp_path, f"{tmp_path}/*.jpg") == ["1.jpg", "2.jpg", "10.jpg"]
    assert names(tmp_path, f"{tmp_path}/[12].jpg") == ["1.jpg", "2.jpg"]
    assert names(tmp_path, f"{tmp_path}/d*") == ["d/4.jpg", "d/e/5.jpg"]
    assert names(tmp_path, f"{tmp_path}/**/*.jpg") == ["1.jpg", "2.jpg", "10.jpg", "d/4.jpg", "d/e/5.jpg", "f/6.jpg"]
    assert names(tmp_path, f"{tmp_path}/**/e/*") == ["d/e/5.jpg"]
    assert names(tmp_path, f"{tmp_path}/d/**/5.*") == ["d/e/5.jpg"]


def test_a_path_that_exists_is_no_glob(tmp_path: Path) -> None:
    tree(tmp_path, "a[1].jpg", "a1.jpg", "b[2]/x.jpg")
    assert names(tmp_path, f"{tmp_path}/a[1].jpg") == ["a[1].jpg"]
    assert names(tmp_path, f"{tmp_path}/b[2]") == ["b[2]/x.jpg"]
    assert names(tmp_path, f"{tmp_path}/a[!2].jpg") == ["a1.jpg"]


@pytest.mark.parametrize("argument", ["gone.jpg", "no*match.jpg", "**/none.jpg", "nul\0.jpg", ""])
def test_what_is_not_there_is_reported_in_its_place(tmp_path: Path, argument: str) -> None:
    tree(tmp_path, "a.jpg")
    found = list(find_images([tmp_path / "a.jpg", str(tmp_path / "x" / argument), tmp_path / "a.jpg"]))
    assert len(found) == 3
    with pytest.raises(ImageError):
        open_image(found[1].source, name=found[1].name)


def test_standard_input_is_one_image() -> None:
    (found,) = find_images(["-"], stdin=io.BytesIO(b"bytes"))
    assert (found.name, found.source) == ("standard input", b"bytes")
    assert next(find_images(["-"])).source == Path("-")


def test_strange_names_pass_through(tmp_path: Path) -> None:
    strange = [
        "-rf.jpg",
        "two words.jpg",
        "new\nline.jpg",
        "é.jpg",
        "e\u0301.jpg",
        "[b].jpg",
        "esc\x1b[31m.jpg",
        "😀.jpg",
    ]
    strange.append(os.fsdecode(b"\xff\xfe.jpg"))
    strange.append("n" * 251 + ".jpg")
    tree(tmp_path, *strange)
    assert sorted(names(tmp_path)) == sorted(strange)


def test_long_lists_cost_constant_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    # A hundred names again and again: Python keeps a table of all names that paths ever had.
    for _ in find_images(f"{tmp_path}/{i % 100}.jpg" for i in range(60_000)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # bytes; 60 000 kept paths took 25 MiB


@given(st.permutations(["1", "01", "2", "10", "a1b2", "a1b10", "B", "b", "c", "img9", "img10", "img" + "9" * 5000]))
def test_natural_order(shuffled: list[str]) -> None:
    expected = ["01", "1", "2", "10", "a1b2", "a1b10", "B", "b", "c", "img9", "img10", "img" + "9" * 5000]
    assert sorted(shuffled, key=natural_key) == expected


@given(st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("0123456789")), max_size=5), st.randoms())
def test_natural_order_of_any_names(some: list[str], random: Random) -> None:
    shuffled = random.sample(some, len(some))
    assert sorted(some, key=natural_key) == sorted(shuffled, key=natural_key)


def test_archives_are_looked_into_like_folders(tmp_path: Path) -> None:
    """Members keep the archive's order, and their names can be given back."""
    inside = {"b.png": png(2), "a.png": png(1), "a.txt": b"label", ".hidden.png": b"", "deep/c.jpg": b"no image"}
    archive = write_tar(tmp_path / "x.tar", inside)
    skipped: Counter[str] = Counter()
    found = list(find_images([str(archive)], skipped=skipped))
    assert [one.name for one in found] == [f"{archive}#{name}" for name in ("b.png", "a.png", "deep/c.jpg")]
    assert skipped == {"hidden or system file": 1, "file not called like an image": 1}
    assert [open_image(one.source).getpixel((0, 0)) for one in found[:2]] == [(2, 90, 30), (1, 90, 30)]
    again = [one for name in found for one in find_images([name.name])]
    assert again == found
    assert where(found[1].name) == found[1].source
    with pytest.raises(ImageError, match=r"x\.tar#deep/c\.jpg is not an image"):
        open_image(found[2].source)
    with pytest.raises(ImageError, match=r"x\.tar#gone\.png cannot be opened: the archive has no such member"):
        open_image(next(find_images([f"{archive}#gone.png"])).source)


def test_braces_and_folders_of_archives(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / "shards" / f"{i:02}.tar", {f"{i}.png": png(i)})
    expected = [f"{tmp_path}/shards/{i:02}.tar#{i}.png" for i in range(3)]
    for named in (f"{tmp_path}/shards/{{00..02}}.tar", f"{tmp_path}/shards/*.tar", f"{tmp_path}/shards"):
        assert [one.name for one in find_images([named])] == expected
    assert [one.name for one in find_images([f"{tmp_path}/{{a,b}}.jpg"])] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    tree(tmp_path, "{a,b}.jpg")  # a file that is there is meant
    assert len(list(find_images([f"{tmp_path}/{{a,b}}.jpg"]))) == 1
    (tmp_path / "shards" / "photo.png").write_bytes(png())
    assert names(tmp_path) == ["shards/photo.png", "{a,b}.jpg"]  # archives beside images are not looked into


def test_an_archive_that_is_cut_off_gives_what_is_whole_and_one_error(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) + bytes(2000) for i in range(4)})
    archive.write_bytes(archive.read_bytes()[:6000])
    *whole, broken = find_images([archive])
    assert [one.name for one in whole] == [f"{archive}#0.png", f"{archive}#1.png"]
    assert [open_image(one.source).size for one in whole] == [(9, 7)] * 2
    with pytest.raises(ImageError, match=r"x\.tar cannot be opened: it is .*2\.png|behind 1\.png"):
        open_image(broken.source)
