"""What starts light stays light (docs/design.md, 8): what each command has imported by the time it ends."""

from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.process import imported_by, python

SNEAKER = Path(__file__).parent.parent / "docs" / "images" / "sneaker.png"
HEAVY = {"torch", "torchvision", "timm", "transformers"}
MEASURES = {"torchmetrics", "sklearn", "scipy"}  # half a second and more, each


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["models"]], ids=" ".join)
def test_starts_without_the_heavy(arguments: list[str]) -> None:
    assert imported_by(*arguments) & (HEAVY | {"numpy", "PIL", "huggingface_hub", "onnx"}) == set()


def test_only_what_is_drawn_imports_rich() -> None:
    for form in ("--json", "--jsonl", "--csv"):
        assert "rich" not in imported_by("predict", str(SNEAKER), form), form
    assert "rich" in imported_by("predict", str(SNEAKER))


def test_a_prediction_on_the_cpu_never_imports_torch() -> None:
    assert (
        imported_by("predict", str(SNEAKER), "--engine", "onnxruntime") & (HEAVY | {"huggingface_hub", "onnx"}) == set()
    )


@pytest.mark.parametrize("more", [[], ["--weights"]], ids=str)
def test_what_a_model_is_is_told_without_torch(more: list[str]) -> None:
    assert imported_by("inspect", *more) & (HEAVY | {"huggingface_hub", "onnx", "matplotlib"}) == set()


def test_the_package_is_light_until_it_is_used() -> None:
    program = "import sys, vitcli; vitcli.__all__; print(*{name.split('.')[0] for name in sys.modules})"
    names = set(python("-c", program).stdout.split())
    assert "vitcli" in names
    assert names & (HEAVY | {"numpy", "PIL", "rich", "typer", "huggingface_hub", "onnx", "onnxruntime"}) == set()


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures in each split of two classes that the bundled model knows."""
    folder = tmp_path_factory.mktemp("clothes")
    for n, (split, label, i) in enumerate(product(("train", "test"), ("Bag", "Sneaker"), range(2))):
        (folder / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 30 * n).save(folder / split / label / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "fashion-vit", "--data"],
        ["evaluate", "fashion-vit", "--json", "--data"],
        ["evaluate", "fashion-vit", "fashion-vit", "--data"],
        ["evaluate", "fashion-vit", "--few-shot", "1,2", "--data"],
        ["check", "--no-near"],
    ],
    ids=" ".join,
)
def test_what_computes_without_torch_never_imports_it(arguments: list[str], clothes: Path) -> None:
    assert imported_by(*arguments, clothes) & (HEAVY | MEASURES | {"onnx", "huggingface_hub"}) == set()


def test_values_that_are_plain_need_no_pydantic() -> None:
    assert "pydantic" not in imported_by("predict", SNEAKER, "--engine", "onnxruntime", "--top", "3")


def test_the_probe_sees_an_import() -> None:
    """The meta-test: a heavy import is noticed."""
    assert "sklearn" in imported_by("--version", first="import sklearn")
    assert "sklearn" not in imported_by("--version")
