"""Reports: pages that are whole, safe and legible by themselves; figures that are the same for the same numbers."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcli.errors import ImageError, UsageError
from vitcli.metrics import measure, mistakes
from vitcli.report.figures import (
    CELL,
    GAP,
    confusion_figure,
    curves_figure,
    reliability_figure,
    save,
    similarity_figure,
    svg,
)
from vitcli.report.page import Page, inline
from vitcli.training.report import Outcome, write_report

HOSTILE = '</style><script>alert(1)</script>"><img src=http://example.org/x onerror=alert(2)>\u202e\x1b[31m'
VOID = {"meta", "img", "br", "link", "use", "path"}


class Reader(HTMLParser):
    """Tags and attributes of a page; fails on one that is closed out of turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def lines() -> Iterator[dict[str, Any]]:
    for step in range(1, 21):
        at = {"step": step, "total": 20, "epoch": step / 10}
        yield {"event": "stepped", **at, "loss": 2 / step, "lr": 1e-3 / step, "images_per_second": 9.0}
        if step % 10 == 0:
            validation = {"n": 30, "accuracy": 0.5 + step / 100, "loss": 1 / step}
            yield {"event": "evaluated", **at, "train_loss": 2 / step, "validation": validation, "is_best": True}


class Pictures:
    """Samples of which every tenth cannot be read any more."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def image(self, i: int) -> Image.Image:
        if i % 10 == 0:
            raise ImageError("gone")
        return Image.new("RGB", (8, 5), "red")


def run_folder(folder: Path, entries: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"architecture": HOSTILE, "started": "today", "versions": {"vit": "1"}, "command": ["vit", "train"]}
    (folder / "run.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def data_of(names: list[str]) -> Any:
    pictures = Pictures(names)
    return SimpleNamespace(
        root=Path("photos"), train=pictures, val=pictures, test=None, classes=("cat", "bird & co"), multi_label=False
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with hostile names everywhere."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    probabilities = rng.dirichlet((1, 1, 1), 60)
    classes = ("cat", HOSTILE, "bird & co")
    names = [f"{HOSTILE}{i}.png" for i in range(60)]
    folder = run_folder(tmp_path_factory.mktemp("runs") / "photos<b>", [dict(line) for line in lines()])
    evaluation: Any = SimpleNamespace(
        measures=measure(probabilities, labels, classes), probabilities=probabilities, labels=labels
    )
    wrong = tuple(mistakes(probabilities, labels, classes, names))[:12]
    write_report(folder, data_of(names), Outcome("val", evaluation, wrong, folder / "report.html", HOSTILE))
    return folder / "report.html"


class TestPage:
    def test_is_well_formed_and_has_its_sections(self, report: Path) -> None:
        reader = Reader(report.read_text("utf-8"))
        assert reader.open == []
        words = " ".join(reader.words)
        for section in ("Use it", "Training", "Scores", "Classes", "Most confidently wrong"):
            assert section in words
        assert reader.tags.count("svg") == 4  # the curve of risk against coverage, too

    def test_nothing_from_outside_is_markup(self, report: Path) -> None:
        page = report.read_text("utf-8")
        reader = Reader(page)
        assert "script" not in reader.tags
        assert not any(name.startswith("on") for name, _ in reader.attributes)
        assert "\u202e" not in page
        assert "\x1b" not in page
        assert "alert(1)" in " ".join(reader.words)  # shown as text

    def test_needs_nothing_from_anywhere(self, report: Path) -> None:
        reader = Reader(report.read_text("utf-8"))
        for name, value in reader.attributes:
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/png;base64,", "#"))
        outside = [(n, v) for n, v in reader.attributes if "//" in v and n not in ("src", "alt")]
        assert outside == []
        assert "url(" not in re.sub(r"url\(#", "", report.read_text("utf-8"))
        assert ("http-equiv", "Content-Security-Policy") in reader.attributes

    def test_figures_do_not_share_names(self, report: Path) -> None:
        found = re.findall(r' id="([^"]+)"', report.read_text("utf-8"))
        assert len(found) == len(set(found)) > 10
        page = report.read_text("utf-8")
        assert set(re.findall(r'href="#([^"]+)"', page)) <= set(found)
        assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(found)

    def test_a_picture_that_is_gone_is_left_out(self, report: Path) -> None:
        pictures = Reader(report.read_text("utf-8")).tags.count("img")
        assert 0 < pictures <= 12

    def test_pieces_may_be_missing(self, tmp_path: Path) -> None:
        write_report(run_folder(tmp_path, []), data_of([]), None)
        reader = Reader((tmp_path / "report.html").read_text("utf-8"))
        assert "svg" not in reader.tags
        assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "report.html", "run.json"]

    def test_chromium_shows_it_without_complaint(self, report: Path, tmp_path: Path) -> None:
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if browser is None:
            pytest.skip("no Chromium on this machine")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
                   f"--user-data-dir={tmp_path}", report.as_uri()]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert shown.returncode == 0
        assert "CONSOLE" not in shown.stderr  # a script, or something that the policy forbids
        reader = Reader(shown.stdout)
        assert "Most confidently wrong" in " ".join(reader.words)
        assert "script" not in reader.tags

    def test_files_beside_it_are_linked(self) -> None:
        page = Page("t")
        page.files(["a b.npz", '"x".csv'])
        assert ("href", "a b.npz") in Reader(page.html()).attributes

    def test_inline_svg_loses_its_prologue(self) -> None:
        markup = '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://x/y" id="a"><metadata>m\n</metadata>' \
                 '<use xlink:href="#a" clip-path="url(#a)"/></svg>'  # fmt: skip
        assert inline(markup, 3) == '<svg id="f3-a"><use href="#f3-a" clip-path="url(#f3-a)"/></svg>'


class TestFigures:
    def test_the_same_numbers_give_the_same_bytes(self, tmp_path: Path) -> None:
        def draw() -> Any:
            return confusion_figure([[3, 1], [0, 4]], ["cat", "dog"])

        assert svg(draw()) == svg(draw())
        for kind in ("png", "svg", "pdf"):
            first, second = save(draw(), tmp_path / f"a.{kind}"), save(draw(), tmp_path / f"b.{kind}")
            assert first.read_bytes() == second.read_bytes()
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.width > 900  # 300 dots an inch

    def test_other_endings(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"ends with \.png, \.svg or \.pdf"):
            save(confusion_figure([[1]], ["a"]), tmp_path / "a.bmp")
        assert list(tmp_path.iterdir()) == []

    def test_confusion_shows_shares_of_the_true_class(self) -> None:
        axes = confusion_figure([[3, 1], [0, 0]], ["cat", "dog"]).axes[0]
        np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
        assert [t.get_text() for t in axes.texts] == ["3", "1"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")

    def test_many_classes_have_no_names(self) -> None:
        axes = confusion_figure(np.eye(40, dtype=int).tolist(), [f"c{i}" for i in range(40)]).axes[0]
        assert "c0" not in [tick.get_text() for tick in axes.get_xticklabels()]

    def test_reliability_bars(self) -> None:
        top = reliability_figure([(0.0, 0.5, 4, 0.25), (0.5, 1.0, 0, None)]).axes[0]
        assert [bar.get_height() for bar in top.patches] == [0.25, 0.0]

    def test_curves(self) -> None:
        axes = curves_figure([("loss, nats", {"a": ([1, 2], [3, 4]), "b": ([1], [2])})], "epoch").axes[0]
        assert [line.get_label() for line in axes.lines] == ["a", "b"]
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), [3, 4])

    def test_similarity_tiles(self) -> None:
        patches = np.eye(6, dtype=np.float32)
        sheet = np.ma.filled(similarity_figure([(patches, (2, 3))], ["x"]).axes[0].images[0].get_array(), np.nan)
        for i, (row, column) in enumerate(np.ndindex(2, 3)):
            high, wide = 2 * CELL + GAP, 3 * CELL + GAP
            tile = sheet[row * high :, column * wide :][: 2 * CELL : CELL, : 3 * CELL : CELL]
            assert tile.flat[i] == 1
            assert tile.sum() == 1
            assert np.isnan(sheet[2 * CELL]).all()  # the gap

    def test_hostile_labels_are_drawn_as_text(self) -> None:
        drawn = svg(confusion_figure([[1, 0], [0, 1]], [HOSTILE, "$\\frac{$"]))
        assert "<script" not in drawn


def test_metrics_lines_are_those_of_a_run() -> None:
    """The keys that the report reads are the keys that a run writes."""
    from vitcli.training.events import Evaluated, Stepped
    from vitcli.training.log import as_line
    from vitcli.training.validation import Validation

    stepped = json.loads(json.dumps(as_line(Stepped(1, 2, 0.5, 1.0, 1e-3, 10.0))))
    evaluated = json.loads(json.dumps(as_line(Evaluated(1, 2, 0.5, 1.0, Validation(3, 0.5, 1.0), True))))
    made = list(lines())
    assert made[0].keys() <= stepped.keys()
    assert next(line for line in made if line["event"] == "evaluated").keys() <= evaluated.keys()
