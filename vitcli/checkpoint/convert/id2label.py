"""transformers' id2label → the names of the classes, in the order of the logits."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vitcli.checkpoint.convert.result import Source, embedding_labels
from vitcli.checkpoint.naming import only_numbered
from vitcli.errors import CheckpointError
from vitcli.text import safe


def labels_of(source: Source, num_classes: int, *, classifies: bool) -> tuple[str, ...]:
    """The names in id2label in logit order; none where they only number the classes.

    Where the head does not classify, its outputs are counted. Raises CheckpointError for names that cannot be meant.
    """
    named = source.config.get("id2label")
    if not num_classes:
        return ()
    if not classifies:
        return embedding_labels(num_classes)
    if named is None:
        return ()
    if not isinstance(named, dict | list):
        raise CheckpointError(f"{source.where}: config.json: id2label is neither an object nor a list")
    names = _names(named, f"{source.where}: config.json")
    if len(names) != num_classes:
        raise CheckpointError(
            f"{source.where}: config.json has {len(names)} names in id2label for {num_classes} classes"
        )
    if only_numbered(names):
        return ()
    often = Counter(unicodedata.normalize("NFC", name) for name in names)
    return tuple(
        f"{name} ({i})" if often[unicodedata.normalize("NFC", name)] > 1 else name for i, name in enumerate(names)
    )


def _names(named: Mapping[Any, Any] | list[Any], where: str) -> list[str]:
    """The values of id2label in the order of its keys, which transformers takes for whole numbers; or those of a list.

    A name that is a number is written as one ("0": 0 is the digit "0"). Raises CheckpointError for keys that do not
    count from 0, and for names that are neither text nor numbers.
    """
    by_number: dict[int, Any] = {}
    for key, name in named.items() if isinstance(named, dict) else enumerate(named):
        try:
            by_number[int(key)] = name
        except ValueError:
            raise CheckpointError(f"{where}: the key '{safe(key, 40)}' of id2label is no number") from None
    if len(by_number) != len(named) or (by_number and (min(by_number), max(by_number)) != (0, len(named) - 1)):
        raise CheckpointError(f"{where}: the keys of id2label do not count from 0 to {len(named) - 1}")
    for number, name in by_number.items():
        if not isinstance(name, str | int | float) or name == "":
            raise CheckpointError(f"{where}: class {number} has no name in id2label, but {safe(repr(name), 40)}")
    return [str(by_number[number]) for number in range(len(named))]
