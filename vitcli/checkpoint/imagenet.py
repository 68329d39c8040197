"""ImageNet's class names for timm's own checkpoints, which carry none: from timm's data files, without importing timm.

Only for repositories of the Hub organisation `timm` whose tag says what they were trained on: guessing by the number of
classes alone, as timm and transformers do, gives any model with 1000 classes the names of ImageNet.
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Number of classes → (what a tag says, file of WordNet ids in logit order)
_SUBSETS = {
    1000: ("in1k", "imagenet_synsets.txt"),
    11821: ("in12k", "imagenet12k_synsets.txt"),
    11221: ("in21k", "imagenet21k_miil_synsets.txt"),
    21841: ("in22k", "imagenet22k_synsets.txt"),
    21842: ("in22k", "imagenet22k_ms_synsets.txt"),
    21843: ("in21k", "imagenet21k_goog_synsets.txt"),
}


@dataclass(frozen=True)
class ClassNames:
    """In logit order: WordNet ids ("n01440764"), and names for people ("tench, Tinca tinca"), both unique."""

    ids: tuple[str, ...]
    names: tuple[str, ...]


def imagenet_names(repo: str, num_classes: int) -> ClassNames | None:
    """The class names of the Hub repository `repo` (org/name) when it is timm's and trained on ImageNet, else None."""
    organisation, _, name = repo.partition("/")
    said, synsets_file = _SUBSETS.get(num_classes, ("", ""))
    tag = name.partition(".")[2]
    if organisation != "timm" or not said or said not in re.split(r"[_.]", tag):
        return None
    installed = timm_folder()
    if installed is None:
        return None
    folder = installed / "data" / "_info"
    try:
        ids = (folder / synsets_file).read_text(encoding="utf-8").split()
        lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    if len(ids) != num_classes:
        return None
    return describe(ids, dict(line.split("\t", 1) for line in lines))


def describe(ids: Sequence[str], lemmas: Mapping[str, str]) -> ClassNames:
    """Names for people: the lemma of each id, with the id where it is not unique (crane: the bird, the machine)."""
    names = [lemmas.get(synset, synset) for synset in ids]
    count = Counter(names)
    unique = (f"{name} ({synset})" if count[name] > 1 else name for synset, name in zip(ids, names, strict=True))
    return ClassNames(tuple(ids), tuple(unique))


def are_wordnet_ids(labels: Sequence[str]) -> bool:
    return bool(labels) and all(re.fullmatch(r"n\d{8}", label) for label in labels)


def timm_folder() -> Path | None:
    """Where timm is installed; it is not imported."""
    spec = importlib.util.find_spec("timm")  # of a top-level package: found, not imported
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
