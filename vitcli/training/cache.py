"""Copies of a run's images (`--cache`): whether they pay, where they fit, and a task that reads them.

Whether there are copies is part of a run, because random crops of a copy are resized twice and differ from those of the
original (docs/benchmarks.md says how far); where they are kept is not, and changes no bit.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from vitcli.data.samples import DataSet, FileSamples
from vitcli.errors import ImageError, UsageError
from vitcli.images.copies import Copies, Rule, Store, signatures
from vitcli.images.decode import image_size
from vitcli.images.preprocess import Preprocess
from vitcli.machine import memory_free
from vitcli.privacy import our_cache
from vitcli.storage.records import Cache, Memory, bytes_below, opened_folder, shared_memory
from vitcli.storage.remote import Root

if TYPE_CHECKING:  # they import torch, which a study that is done does without
    from vitcli.training.settings import Settings
    from vitcli.training.task import Task

CacheWish = Literal["auto", "ram", "disk", "none"]

SHARE = 0.5  # of the free memory or disk that copies may take
PAYS = 2.0  # times as many pixels in the originals as in the copies, for `auto`
LOOKED_AT = 32  # originals, for that


@dataclass(frozen=True)
class Needed:
    """What the copies of some images take at most, by the rule that they are made by."""

    samples: FileSamples
    rule: Rule

    @property
    def bytes(self) -> int:
        return len(self.samples) * self.rule.bytes


@dataclass(frozen=True)
class Choice:
    """Where copies are kept, and in one line why, for the plan; no line where copies were out of the question."""

    cache: Cache
    why: str = ""


def needed(data: DataSet, preprocess: Preprocess, crop_scale: float) -> list[Needed]:
    """The copies that training on `data` reads.

    Training images are cut at random, to `crop_scale` of their area at least, at 1 not at all; validation images are as
    `predict` sees them.
    """
    rules = Rule(preprocess, least=crop_scale, reduced=True), Rule(preprocess)
    return [
        Needed(samples, rule)
        for samples, rule in zip((data.train, data.val), rules, strict=True)
        if isinstance(samples, FileSamples)
    ]


def needed_by(task: "Task", settings: "Settings") -> list[Needed]:
    """As `needed`, for a run; where nothing but a head is fitted, no part is cut at random."""
    return needed(task.data, task.preprocess, 1.0 if settings.tune == "head" else task.recipe.crop_scale)


def reads_again(settings: "Settings", images: int) -> bool:
    """Whether a run on so many training `images` reads one of them more than once."""
    if settings.tune == "head":
        return False
    recipe = settings.recipe
    longer = recipe.steps * recipe.batch_size > images if recipe.steps else recipe.epochs > 1
    return settings.tune == "head+all" or bool(recipe.lrs) or longer


def choose_cache(wish: CacheWish, copies: Sequence[Needed], *, again: bool, processes: int) -> Choice:
    """Where `copies` are kept for a run that begins. `again`: whether it reads an image more than once.

    Raises UsageError for a wish that cannot be met or would change nothing.
    """
    if wish == "none":
        return Choice("none")
    total = sum(one.bytes for one in copies)
    if not total:
        if wish != "auto":
            raise UsageError(f"--cache {wish} copies images in files; these are in memory already, leave it out")
        return Choice("none")
    if wish == "ram":
        _require_memory(again, processes)
    if wish == "auto" and not (again and _pays(copies)):
        return Choice("none")
    there = [kind for kind in _kinds(processes) if wish in (kind, "auto")]
    for kind in there:
        limit = _limit(kind)
        if total <= limit:
            count = sum(len(one.samples) for one in copies)
            return Choice(kind, f"{kind}: {count} copies, up to {_size(total)} of {_size(limit)} that they may take")
    limits = " or ".join(f"{_size(_limit(kind))} of {_PLACES[kind]}" for kind in there)
    too_large = f"copies take up to {_size(total)}, more than the {limits} that they may"
    if wish == "auto":
        return Choice("none", f"none: {too_large}")
    raise UsageError(f"--cache {wish}: {too_large}; another --cache, or none")


def _require_memory(again: bool, processes: int) -> None:
    if not shared_memory():
        raise UsageError("--cache ram needs Linux; --cache disk keeps copies anywhere")
    if processes > 1:
        raise UsageError("--cache ram is for one process; under torchrun choose --cache disk, which all of them share")
    if not again:
        raise UsageError("--cache ram ends with the run, which reads each image once; it would change nothing")


class Copied:
    """Gives tasks their copies, of which those by one rule have one place; a context manager that lets them go."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._memory: dict[str, Memory] = {}
        self._folders: dict[tuple[str, str], Store] = {}

    def task(self, task: "Task", settings: "Settings") -> "Task":
        """`task`, which reads copies where its run does. Raises VitError when none can be kept."""
        if settings.cache == "none":
            return task
        copies = needed_by(task, settings)
        kind: Cache = "ram" if self._memory else kept_in(settings.cache, copies)  # what it holds is free no longer
        of = {id(one.samples): self._copies(one, kind, task.data.root) for one in copies}
        parts = {
            name: replace(samples, copies=of[id(samples)])
            for name, samples in (("train", task.data.train), ("val", task.data.val))
            if isinstance(samples, FileSamples)
        }
        data = replace(task.data, **parts)  # type: ignore[arg-type]
        _ = data.fingerprint  # asks each file for its size: now, for it may be gone when a checkpoint is written
        return replace(task, data=data)

    def _copies(self, one: Needed, kind: Cache, root: Root) -> Copies:
        known = signatures(map(one.samples.path, range(len(one.samples))))
        store: Store = _Nowhere()
        if kind == "ram":
            if one.rule.name not in self._memory:
                self._memory[one.rule.name] = Memory(one.rule.bytes)
                self._stack.callback(self._memory[one.rule.name].close)
            store = memory = self._memory[one.rule.name]
            memory.claim(known)
        elif kind == "disk":
            about = {"of": os.path.realpath(root) if isinstance(root, Path) else str(root), "rule": one.rule.name}
            key = about["of"], about["rule"]
            if key not in self._folders:
                held = opened_folder(_home(), about, one.bytes, _limit("disk"))
                self._folders[key] = self._stack.enter_context(held)
            store = self._folders[key]
        return Copies(one.rule, store, known)

    def __enter__(self) -> "Copied":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def kept_in(cache: Cache, copies: Iterable[Needed]) -> Cache:
    """Where the copies of a run are kept now: "none" where they are made again each time, with the same bits.

    A run that was begun elsewhere may be gone on with where its copies fit no longer.
    """
    total = sum(one.bytes for one in copies)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    wished: list[Cache] = [cache, *(kind for kind in _kinds(processes) if kind != cache)]
    return next((kind for kind in wished if kind in _kinds(processes) and total <= _limit(kind)), "none")


def kept_since(settings: "Settings", copies: Iterable[Needed]) -> str:
    """Where the copies of a run that goes on are kept, for the plan; nothing where it has none."""
    if settings.cache == "none":
        return ""
    now = kept_in(settings.cache, copies)
    return f"{now}, as it began" if now == settings.cache else f"{now}: no room any more for {settings.cache}"


class _Nowhere:
    """A store that keeps nothing."""

    lasting = False

    def read(self, key: str) -> bytes | None:
        return None

    def write(self, key: str, record: bytes) -> None:
        pass

    def remove(self, key: str) -> None:
        pass


_PLACES = {"ram": "memory", "disk": "disk"}


def _kinds(processes: int) -> list[Literal["ram", "disk"]]:
    """The kinds of cache that there can be here, the quicker first."""
    return ["ram", "disk"] if processes == 1 and shared_memory() else ["disk"]


def _limit(kind: Cache) -> int:
    """Bytes that all copies of a kind may take together."""
    if kind == "ram":
        return int(SHARE * (memory_free("cpu") or 0))
    home = _home()
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    return int(SHARE * (shutil.disk_usage(there).free + bytes_below(home)))


def _home() -> Path:
    return our_cache() / "copies"


def _pays(copies: Sequence[Needed]) -> bool:
    """Whether the originals have clearly more pixels than their copies, judged by some of them."""
    whole = kept = 0
    for one in copies:
        step = max(1, len(one.samples) // LOOKED_AT)
        for i in range(0, len(one.samples), step):
            try:
                width, height = image_size(one.samples.path(i))
            except ImageError:
                continue  # training will say so
            whole += width * height
            kept += min(width * height, one.rule.pixels)
    return whole >= PAYS * kept > 0


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 1 << 30 else f"{count / 2**30:.1f} GiB"
