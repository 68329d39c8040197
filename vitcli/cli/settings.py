"""What the user typed becomes the settings of a run: recipe file, then `--set`, then the options of their own names."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitcli.errors import UsageError
from vitcli.text import did_you_mean, safe

AUTO = "auto"  # for --resume: the run in --out where there is one, else a fresh one
# What may be typed beside --resume: how the run goes on, not what it is.
OF_RESUMPTION = ("resume", "data", "epochs", "score", "track", "device", "workers", "dry_run", "json")


def assigned(assignments: list[str]) -> dict[str, Any]:
    """`name=value` texts → values as TOML reads them; bare words are strings. Raises UsageError."""
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {safe(assignment)}: write name=value")
        values[name] = _value(text)
    return values


def split(values: Mapping[str, Any], recipe: list[str], model: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`values` parted into settings of the recipe and settings of the model. Raises UsageError for one of neither."""
    for name in values:
        if name not in recipe and name not in model:
            raise UsageError(f"--set: no setting '{safe(name)}'.{did_you_mean(name, [*recipe, *model])}")
    return (
        {name: value for name, value in values.items() if name in recipe},
        {name: value for name, value in values.items() if name in model},
    )


def given(**options: Any) -> dict[str, Any]:
    """Those of `options` that were typed: the others are None."""
    return {name: value for name, value in options.items() if value is not None}


def typed(command: Callable[..., object], values: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The options of `command` whose `values` (its `locals()`) are not their defaults, without those called `but`."""
    return {
        f"--{name.strip('_').replace('_', '-')}": True
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in but and values[name] != parameter.default
    }


def refuse(options: Mapping[str, Any], reason: str) -> None:
    """Raises UsageError when any of `options` was typed: a setting that would do nothing is an error."""
    if useless := [name for name, value in options.items() if value]:
        raise UsageError(f"{reason}; {', '.join(useless)} would change nothing")


def size(text: str | None, option: str) -> list[int] | None:
    """`224` or `224x320` (height x width), as `option` has it → [height, width] in pixels. Raises UsageError."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides, default=0) < 1:
        raise UsageError(f"{option} {safe(text)}: write one number of pixels, or HEIGHTxWIDTH")
    return sides * 2 if len(sides) == 1 else sides


def new_file(text: str, option: str, endings: tuple[str, ...], force: bool) -> Path:
    """The file `text` that is to be written, before any work. Raises UsageError for one that must not be."""
    path = Path(text)
    if path.suffix.lower() not in endings:
        raise UsageError(f"{option} {safe(text)}: the name must end in {' or '.join(endings)}")
    if path.exists() and not force:
        raise UsageError(f"{safe(path)} is there already; --force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{safe(path.parent)}: no such folder")
    return path


def _value(text: str) -> Any:
    import tomllib

    from vitcli.training.recipe import parse_toml

    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError):  # valid, but beyond what a setting can be: the same gate says so
        document = {}
    whole = parse_toml(f"value = {text}".encode("utf-8", "surrogateescape"), f"--set {safe(text, 40)}")
    return whole["value"] if document.keys() <= {"value"} else text
