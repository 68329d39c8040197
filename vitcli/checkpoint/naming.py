"""Names for classes that have none: those of a file, instead of the numbers that stand for them until then."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.errors import UsageError, VitError
from vitcli.files import MAX_CONFIG_BYTES, parse_value
from vitcli.text import plural, safe, some

NUMBERED = ("class {}", "LABEL_{}")  # how this program and transformers call the classes of a model without names


def placeholders(count: int) -> tuple[str, ...]:
    """What `count` classes without names are called."""
    return tuple(map(NUMBERED[0].format, range(count)))


def only_numbered(labels: Sequence[str]) -> bool:
    """Whether `labels` are no names: there are none, or they count the classes and say nothing else."""
    return not labels or any(all(name == how.format(i) for i, name in enumerate(labels)) for how in NUMBERED)


def nameless_note(count: int) -> str:
    """What is said of a checkpoint of `count` classes without names."""
    return f"the checkpoint has no class names; its {count} classes are shown by number"


def named(checkpoint: Checkpoint, file: str | Path | None) -> Checkpoint:
    """`checkpoint`, whose classes have no names, with those in `file`, if any. Raises UsageError as `names_for`."""
    if file is None:
        return checkpoint
    classes = 0 if checkpoint.why_no_classes else checkpoint.num_classes
    names = names_for(file, classes, checkpoint.labels, checkpoint.name)
    notes = tuple(line for line in checkpoint.notes if line != nameless_note(checkpoint.num_classes))
    return replace(checkpoint, labels=names, notes=notes)


def names_for(file: str | Path, classes: int, labels: Sequence[str], model: str) -> tuple[str, ...]:
    """The names in `file` for the `classes` classes of `model`, which now has `labels`, in the order of the logits.

    Raises UsageError where they do not fit: another number of them, two that are the same, a model that has names
    already or no classes.
    """
    where = f"--class-names {safe(file)}"
    if not classes:
        raise UsageError(f"{where}: {safe(model)} has no classes that could be named")
    if not only_numbered(labels):
        raise UsageError(f"{where}: {safe(model)} has class names already, {some(labels, 3)}; leave the option out")
    names = read_names(file)
    if len(names) != classes:
        raise UsageError(f"{where}: {plural(len(names), 'name')} for the {classes} classes of {safe(model)}")
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if (earlier := first.setdefault(unicodedata.normalize("NFC", name), number)) != number:
            raise UsageError(f"{where}: classes {earlier} and {number} are both called '{safe(name, 80)}'")
    return names


def read_names(file: str | Path) -> tuple[str, ...]:
    """One name a line; or JSON: a list of names, or an object of number → name or of name → number, from 0.

    Blanks around a line do not count. Raises UsageError for what is neither, and for names that are empty.
    """
    where = f"--class-names {safe(file)}"
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(MAX_CONFIG_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except (OSError, ValueError) as error:  # a NUL in the name
        raise UsageError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise UsageError(f"{where}: larger than {MAX_CONFIG_BYTES >> 20} MiB; these are no class names")
    if Path(file).suffix.casefold() == ".json" or _is_json(text):
        try:
            return _from_json(parse_value(data, where), where)
        except VitError as error:
            raise UsageError(str(error)) from None
    lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if not lines:
        raise UsageError(f"{where}: no names in it; write one a line, or a JSON list")
    if "" in lines:
        raise UsageError(f"{where}: line {lines.index('') + 1} is empty; write one name a line, in the logits' order")
    if len(lines) > 1 and all(re.match(rf"{i}\s*[\s,:;\t]\s*\S", line) for i, line in enumerate(lines)):
        raise UsageError(f"{where}: its lines begin with their numbers; leave these out, or write a JSON list")
    return tuple(lines)


def _is_json(text: str) -> bool:
    """Whether a list or object of JSON is in a file that is not called .json: a name may begin with a bracket, too."""
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def _from_json(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        value = _in_order(value, where)
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise UsageError(f"{where}: a JSON list of names was expected, or an object of number and name")
    if not value:
        raise UsageError(f"{where}: no names in it")
    return tuple(value)


def _in_order(value: Mapping[str, Any], where: str) -> list[Any]:
    """The names of {"0": name, …} or of {name: 0, …} by their numbers, which must count from 0."""
    if all(type(number) is int for number in value.values()):
        by_number: dict[Any, Any] = {number: name for name, number in value.items()}
    else:
        by_number = {int(key) if re.fullmatch(r"\d{1,6}", key, re.ASCII) else key: name for key, name in value.items()}
    if len(by_number) != len(value) or set(by_number) != set(range(len(value))):
        raise UsageError(f"{where}: the numbers in it do not count the classes from 0 to {len(value) - 1}")
    return [by_number[number] for number in range(len(value))]
