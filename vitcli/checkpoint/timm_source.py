"""What timm's source text says of an architecture, without importing timm, which takes seconds.

Enough to refuse a config that names another model than its weights are of; whatever passes is built and compared.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from vitcli.checkpoint.imagenet import timm_folder

_ENTRY = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_IMPORT = re.compile(r"^\s*from (?:\.|timm\.models\.)(\w+) import", re.MULTILINE)


@cache
def architectures() -> dict[str, Path]:
    """Name of each architecture → the file that defines it; empty where timm's source is not to be found."""
    folder = timm_folder()
    files = sorted((folder / "models").glob("*.py")) if folder else []
    return {name: file for file in files for name in _ENTRY.findall(_text(file))}


def foreign(architecture: str, names: Iterable[str]) -> list[str]:
    """The parts of a model that the weights `names` begin with and that `architecture`'s source never mentions.

    A part's name stands in the source of its model, or in that of a model this is made from; numbers are put behind it
    (`layer1`), so that they do not count.
    """
    file = architectures().get(architecture)
    if file is None:
        return []
    text = "".join(map(_text, _with_imports(file)))
    parts = dict.fromkeys(name.partition(".")[0] for name in names)
    return [part for part in parts if (stem := part.rstrip("0123456789").rstrip("_")) and stem not in text]


def _with_imports(file: Path) -> list[Path]:
    """`file` and those of timm's models that it imports, directly or not."""
    found = [file]
    for one in found:  # which grows
        for name in _IMPORT.findall(_text(one)):
            other = one.with_name(f"{name}.py")
            if other.is_file() and other not in found:
                found.append(other)
    return found


@cache
def _text(file: Path) -> str:
    return file.read_text("utf-8", "replace")
