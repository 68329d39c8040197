"""The classes of a data set → those of a model, by name and by nothing else: never by order, never by number alone.

Alike is, in this order: the same name; the WordNet id (ImageNet's folders); the same but for case, spaces, underscores
and the accents' encoding (`text.folded`); "T-shirt_top" for "T-shirt/top", which no folder can be called; and, of
WordNet's synonyms, the first alone ("tench" for "tench, Tinca tinca"). Only where one class fits one label.
Signs, points and commas are never passed over: "-1" is not "1", "C++" not "C".
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitcli.text import did_you_mean, folded, safe

SHOWN = 8  # of a long list of classes
_SYNONYMS = "tench, Tinca tinca"  # ImageNet's first class, in models whose config has no WordNet ids


@dataclass(frozen=True)
class ClassMap:
    """Which class of a model each class of a data set is."""

    labels: tuple[int | None, ...]  # for each class of the data the model's; None: the model does not know it
    notes: tuple[str, ...]  # names that were not the same to the letter


def map_classes(classes: Sequence[str], known: Sequence[str], ids: Sequence[str] = ()) -> ClassMap:
    """`classes` of the data among the model's labels `known` (K,), whose WordNet ids are `ids` (K,) or nothing."""
    found: dict[str, int] = {}
    notes = []
    synonyms = known if ids or _SYNONYMS in known else ()
    stages: tuple[tuple[Callable[[str], str], Sequence[str], str], ...] = (
        (_exact, known, ""),
        (_exact, ids, ""),
        (folded, known, ""),
        (_as_folder, known, r"[^/]*_[^/]*"),
        (_first_synonym, synonyms, r"[^,]*"),
    )
    for spelling, of, form in stages:  # a class must have this form to be spelt so
        new = _unique_matches(
            [name for name in classes if name not in found and (not form or re.fullmatch(form, name, re.DOTALL))],
            {label: index for index, label in enumerate(of) if index not in found.values()},
            spelling,
        )
        found |= new
        if spelling is not _exact:
            notes += [f"class '{safe(name, 60)}' is the model's '{safe(of[new[name]], 60)}'" for name in new]
    return ClassMap(tuple(found.get(name) for name in classes), _shortened(notes))


def unknown_line(unknown: Sequence[str], known: Sequence[str], model: str) -> str:
    """What to say of classes that the model does not know."""
    if len(unknown) == 1:
        return f"{safe(model)} does not know the class {listed(unknown)}.{did_you_mean(unknown[0], known)}"
    return f"{safe(model)} does not know the classes {listed(unknown)}; it knows {listed(known)}."


def listed(names: Sequence[str]) -> str:
    """`names` in quotes, the first of them where they are many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{safe(name, 60)}'" for name in names[:SHOWN]) + more


def _unique_matches(names: Iterable[str], labels: dict[str, int], spelling: Callable[[str], str]) -> dict[str, int]:
    spelt = {name: spelling(name) for name in names}
    by_spelling: dict[str, list[int]] = {}
    for label, index in labels.items():
        by_spelling.setdefault(spelling(label), []).append(index)
    count = Counter(spelt.values())
    return {
        name: by_spelling[key][0]
        for name, key in spelt.items()
        if key and count[key] == 1 and len(by_spelling.get(key, ())) == 1
    }


def _exact(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _as_folder(name: str) -> str:
    """With the underscore that stands for "/" between letters in a folder's name, which `folded` makes a blank."""
    return folded(re.sub(r"(?<=[^\W\d_])/(?=[^\W\d_])", "_", name))


def _first_synonym(name: str) -> str:
    return folded(name.partition(",")[0])


def _shortened(notes: Sequence[str]) -> tuple[str, ...]:
    more = [f"and {len(notes) - SHOWN} more classes that are written differently"] if len(notes) > SHOWN else []
    return (*notes[:SHOWN], *more)
