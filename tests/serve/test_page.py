"""The page in a real browser: a picture goes in, the answer is read from the page, and no other host is asked."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from tests.helpers.checkpoints import write_tiny
from tests.helpers.familiar import write_familiar
from tests.helpers.serving import browser, picture, serving, watched
from vitcli.inference.predict import as_dict, load
from vitcli.serve import page as module

TOKEN = "a token of some length"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_familiar(tmp_path_factory.mktemp("known")), write_tiny(tmp_path_factory.mktemp("plain"), seed=3)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def url(chromium: Any, folders: tuple[Path, Path]) -> Iterator[str]:
    with serving(*folders) as server:
        yield server.url


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    path = tmp_path / "<b>strange.png"
    path.write_bytes(picture(7))
    return path


def shown(page: Any) -> list[list[tuple[str, str]]]:
    """Label and share of each bar, of each answer."""
    return [
        [
            (line.locator(".label").inner_text(), line.locator(".share").inner_text())
            for line in section.locator("li").all()
        ]
        for section in page.locator("article section").all()
    ]


def expected(folder: Path, path: Path) -> list[tuple[str, str]]:
    (prediction,) = load(folder).predict(path)
    return [(one["label"], f"{100 * one['probability']:.1f}%") for one in as_dict(prediction)["labels"]]


def test_two_models_answer_side_by_side(url: str, chromium: Any, folders: tuple[Path, Path], strange: Path) -> None:
    with watched(chromium, url) as page:
        page.goto(url)
        page.set_input_files("#files", strange)
        page.locator("article ol").nth(1).wait_for()
        assert shown(page) == [expected(folder, strange) for folder in folders]
        assert page.locator("h2").inner_text() == strange.name
        assert page.locator(".strange").inner_text() == "Looks like nothing it learned: it was trained on ramps."
        assert re.search(r"\d ms", page.locator("article section").first.inner_text())
        page.get_by_role("status").get_by_text(f"{strange.name}: {folders[0]} says ").wait_for()
        assert page.locator("article img").evaluate("image => image.naturalWidth") == 90


def test_a_picture_may_be_dropped_or_pasted(url: str, chromium: Any) -> None:
    give = """([bytes, kind]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
          : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
        document.body.dispatchEvent(event);
    }"""
    with watched(chromium, url) as page:
        page.goto(url)
        page.locator("#choice").wait_for()
        for n, kind in enumerate(("drop", "paste"), start=1):
            page.evaluate(give, [list(picture(1)), kind])
            page.locator("article ol").nth(2 * n - 1).wait_for()
        first, second, *more = shown(page)
        assert more == [first, second]


def test_the_keyboard_is_enough_and_roles_have_names(url: str, chromium: Any, strange: Path) -> None:
    with watched(chromium, url) as page:
        page.goto(url)
        page.locator("#choice").wait_for()
        reached = []
        for _ in range(3):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert reached == ["first", "second", "choose"]
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        page.get_by_label("Beside it").select_option("none")
        chooser.value.set_files(strange)
        answers = page.get_by_role("region", name="Answers")
        article = answers.get_by_role("article", name=strange.name)
        article.get_by_role("listitem").nth(2).wait_for()
        assert article.get_by_role("listitem").count() == 3  # of the one model that is chosen
        assert page.get_by_role("status").inner_text()


def test_why_is_shown_when_it_is_asked(url: str, chromium: Any, strange: Path) -> None:
    with watched(chromium, url) as page:
        page.goto(url)
        page.set_input_files("#files", strange)
        page.get_by_role("button", name=re.compile("Why .*\\?")).nth(1).wait_for()
        page.get_by_role("button", name=re.compile("Why .*\\?")).first.click()
        picture = page.get_by_alt_text("what spoke for")
        picture.wait_for()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 64
        assert page.get_by_role("button", name=re.compile("Why .*\\?")).count() == 1


def test_what_cannot_be_read_is_said(url: str, chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(picture(1)[:60])
    with watched(chromium, url, errors=["422"]) as page:
        page.goto(url)
        page.set_input_files("#files", tmp_path / "broken.png")
        page.locator(".error").first.wait_for()
        assert "broken.png is damaged" in page.locator(".error").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_fits_a_phone_and_is_readable(scheme: str, width: int, url: str, chromium: Any, strange: Path) -> None:
    with watched(chromium, url, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        page.goto(url)
        page.set_input_files("#files", strange)
        page.locator("article ol").nth(1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        colours = page.evaluate(
            """() => [...document.querySelectorAll("h1, .dim, .strange, .label, button")].map((element) => {
                let behind = element;
                const under = () => getComputedStyle(behind).backgroundColor;
                while (under().startsWith("rgba(0, 0, 0, 0")) behind = behind.parentElement;
                return [getComputedStyle(element).color, under()];
            })"""
        )
        assert min(contrast(*pair) for pair in colours) >= 4.5


def contrast(*colours: str) -> float:
    """Of two CSS colours, as WCAG 2 has it: 1 to 21."""

    def luminance(colour: str) -> float:
        shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_the_page_asks_for_the_token(chromium: Any, folders: tuple[Path, Path], strange: Path) -> None:
    with serving(folders[1], "--token", TOKEN) as server:
        with watched(chromium, server.url, errors=["401"]) as page:
            page.goto(server.url)
            page.get_by_label("token").fill(TOKEN)
            page.keyboard.press("Enter")
            page.get_by_text("knows 3 classes").wait_for()
            page.set_input_files("#files", strange)
            page.locator("article ol").wait_for()
            assert not page.locator("#access").is_visible()
        with watched(chromium, server.url) as page:
            page.goto(f"{server.url}/#token={TOKEN.replace(' ', '%20')}")
            page.get_by_text("knows 3 classes").wait_for()


def test_the_page_is_one_file() -> None:
    html = module.html()
    assert re.findall(r"(?:https?:)?//[\w.]+", html) == []
    assert re.findall(r"\s(?:src|href)=\"([^\"]*)\"", html) == ["data:,"]
    assert re.findall(r"\sstyle=|\son\w+=", html) == []  # which the policy would not let be


def test_the_watch_can_fail(chromium: Any, url: str) -> None:
    def wrong() -> None:
        with watched(chromium, url) as page:
            page.goto(url)
            page.evaluate("console.error('no such host')")

    with pytest.raises(AssertionError, match="no such host"):
        wrong()
