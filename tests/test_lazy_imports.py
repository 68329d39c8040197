"""What starts light stays light (docs/design.md, 8): what each command has imported by the time it ends."""

from pathlib import Path

import pytest

from tests.helpers.process import python

SNEAKER = Path(__file__).parent.parent / "docs" / "images" / "sneaker.png"
HEAVY = {"torch", "torchvision", "timm", "transformers"}
PROBE = """
import sys
from vitcli.__main__ import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("\\n".join(sorted({{name.split(".")[0] for name in sys.modules}})), file=sys.stderr)
"""


def imported_by(*arguments: str) -> set[str]:
    """Top-level packages imported by `vit ARGUMENTS…`, run in a process of its own."""
    result = python("-c", PROBE.format(arguments=list(arguments)))
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split("\n"))


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


def test_the_probe_sees_an_import() -> None:
    """The meta-test: a heavy import is noticed."""
    heavy = PROBE.replace("    main()", "    import numpy; main()")
    assert "import numpy" in heavy
    result = python("-c", heavy.format(arguments=["--version"]))
    assert "numpy" in result.stderr.split()
