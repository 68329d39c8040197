"""Long work in parts: each a file of a folder, written whole or not at all; what is there is not done again.

    parts = Parts(folder, form, about, shard, size=1024)
    parts.work(items, name, compute)  # in as many processes as there are shards, each as often as it is killed

A shard's images are those of the whole list that its hash deals to it, in their order; part k has the k-th `size` of
them, so that a process that starts again, and one that does the same shard beside it, make the same files. A part says
of itself what it was made with, where in the list its images stand, and the last one of a shard how long that list was.
`joining` makes one result of them. Knows neither images nor models.
"""

import hashlib
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from vitcli.errors import Stopped, UsageError, VitError
from vitcli.files import LEFTOVER, parse_object, read_typed
from vitcli.inference.shards import Shard, as_bytes
from vitcli.text import as_json, plural, safe, some

Row = TypeVar("Row")
Item = TypeVar("Item")

SIZE = 1024  # images a part
MOST_IMAGES = 1 << 16  # a part
MOST_ROWS = 1 << 34  # that a list may have
NAME = re.compile(r"shard-(\d{5})-of-(\d{5})\.part-(\d{6})(\.last)?")


@dataclass(frozen=True)
class Whole:
    """The list of all images, as each shard has seen it."""

    images: int
    names: str  # SHA-256 over all names, in their order


@dataclass(frozen=True)
class Head:
    """What a part says of itself."""

    index: int  # of the shard
    count: int
    number: int  # of the part in its shard, from 0
    size: int  # images of a part that is not the last
    positions: tuple[int, ...]  # in the list, of its images
    names: str  # SHA-256 over their names
    failed: int  # of them
    whole: Whole | None = None  # in the last part of a shard

    def __post_init__(self) -> None:
        sound = 0 <= self.index < self.count and self.number >= 0 and 1 <= self.size <= MOST_IMAGES
        sound = sound and 0 <= self.failed <= len(self.positions) <= self.size
        if not sound or any(a >= b for a, b in zip((-1, *self.positions), self.positions, strict=False)):
            raise ValueError("numbers that cannot be")
        if self.whole and not max(self.positions, default=-1) < self.whole.images <= MOST_ROWS:
            raise ValueError("more images than its list has")

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return part_name(Shard(self.index, self.count), self.number, last=self.whole is not None)


class Form(Protocol[Row]):
    """How a part is written; `head` is JSON, and comes back as it was."""

    ending: str

    def write(self, path: Path, head: Mapping[str, Any], rows: Sequence[Row]) -> None: ...

    def head(self, path: Path) -> Mapping[str, Any]: ...

    def rows(self, path: Path) -> list[Row]: ...

    def name(self, row: Row) -> str: ...

    def failed(self, row: Row) -> bool: ...


def part_name(shard: Shard, number: int, *, last: bool = False) -> str:
    """Of the file of a part, without its ending."""
    return f"shard-{shard.index:05d}-of-{shard.count:05d}.part-{number:06d}{'.last' * last}"


@dataclass(frozen=True)
class Done:
    """What a shard comes to: its images, those that failed, and those of parts that were there already."""

    images: int
    failed: int
    before: int


@dataclass(eq=False)
class _Block(Generic[Item]):
    """The items of a part."""

    number: int
    items: list[Item]
    positions: list[int]
    names: str
    whole: Whole | None = None  # known once the list has ended


class Parts(Generic[Row]):
    """The parts of one shard in a folder."""

    def __init__(
        self,
        folder: Path,
        form: Form[Row],
        about: Mapping[str, Any],
        shard: Shard,
        *,
        size: int | None = None,
        default: int = SIZE,
    ) -> None:
        """`about` is what rows are made with: parts made with anything else are not gone on with.

        `size`: images a part; None: as the parts that are there have, or `default`. Raises UsageError for a folder with
        parts of another kind, VitError for one that cannot be made.
        """
        self.folder, self.form, self.about, self.shard = folder, form, about, shard
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VitError(f"{safe(folder)}: {error.strerror}: no folder for parts") from error
        there = sorted(entries(folder, form))
        if there:
            head = self._same(there[0])
            if size is not None and size != head.size:
                raise UsageError(f"{safe(folder)} holds parts of {plural(head.size, 'image')}: leave --part-size out")
            if head.count != shard.count:
                raise UsageError(
                    f"{safe(folder)} holds parts of {head.count} shards, not {shard.count}: choose another"
                )
            size = head.size
        self.size = default if size is None else size
        if not 1 <= self.size <= MOST_IMAGES:
            raise UsageError(f"a part has 1 to {MOST_IMAGES} images, not {self.size}")

    def work(
        self,
        items: Iterable[Item],
        name: Callable[[Item], str],
        compute: Callable[[Iterator[Item]], Iterator[Row]],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Done:
        """Do what is not done yet of this shard of the list `items`; `compute` gives a row for each, in their order.

        `progress` is told how many of its images are done. Raises UsageError where the folder holds parts of other
        images or settings.
        """
        done = failed = before = 0
        pending: deque[_Block[Item]] = deque()

        def todo() -> Iterator[Item]:
            nonlocal done, failed, before
            for block in self._blocks(items, name):
                head = self._there(block)
                if head is None:
                    pending.append(block)
                    yield from block.items
                else:
                    done, failed, before = done + len(block.items), failed + head.failed, before + len(block.items)

        left = todo()
        first = next(left, None)
        rows: Iterable[Row] = () if first is None else compute(chain([first], left))
        made: list[Row] = []
        for row in rows:
            made.append(row)
            if len(made) == len(pending[0].items):
                failed += self._write(pending.popleft(), made)
                done, made = done + len(made), []
                if progress:
                    progress(done)
        for block in pending:  # the last one of a shard without images
            self._write(block, [])
        for leftover in self.folder.glob(f".{part_name(self.shard, 0).partition('.')[0]}{LEFTOVER[1:]}"):
            leftover.unlink(missing_ok=True)  # of killed processes
        return Done(done, failed, before)

    def _blocks(self, items: Iterable[Item], name: Callable[[Item], str]) -> Iterator[_Block[Item]]:
        """The items of this shard, a part's at a time; the last of them, of at least one item where there is any."""
        every, own, images, number = hashlib.sha256(), hashlib.sha256(), 0, 0
        block: list[Item] = []
        positions: list[int] = []
        for position, item in enumerate(items):
            images, text = position + 1, name(item)
            add_name(every, text)
            if not self.shard.has(text):
                continue
            if len(block) == self.size:
                yield _Block(number, block, positions, own.hexdigest())
                number, block, positions, own = number + 1, [], [], hashlib.sha256()
            block.append(item)
            positions.append(position)
            add_name(own, text)
        yield _Block(number, block, positions, own.hexdigest(), Whole(images, every.hexdigest()))

    def _there(self, block: "_Block[Any]") -> Head | None:
        """The head of the part of `block` where its file is there. Raises UsageError where it holds other images."""
        path, other = (
            self.folder / (part_name(self.shard, block.number, last=last) + self.form.ending)
            for last in (block.whole is not None, block.whole is None)
        )
        found = [one for one in (path, other) if one.exists()]
        if not found:
            return None
        head = self._same(found[0])
        if found != [path] or (head.names, list(head.positions), head.whole) != (
            block.names, block.positions, block.whole,
        ):  # fmt: skip
            raise UsageError(
                f"{safe(found[0])} is of another list of images than is named now: choose another folder, "
                "or remove this one"
            )
        return head

    def _same(self, path: Path) -> Head:
        """The head of the part `path`. Raises UsageError when it was made with anything else than ours are."""
        head, about = read_head(path, self.form)
        if differs := difference(about, self.about):
            raise UsageError(f"{safe(path)} was made with {differs}: choose another folder, or remove this one")
        return head

    def _write(self, block: "_Block[Any]", rows: list[Row]) -> int:
        failed = sum(map(self.form.failed, rows))
        shard = self.shard
        head = Head(
            shard.index, shard.count, block.number, self.size, tuple(block.positions), block.names, failed, block.whole
        )
        path = self.folder / (head.name + self.form.ending)
        self.form.write(path, {**self.about, "part": asdict(head)}, rows)
        return failed


def add_name(digest: Any, name: str) -> None:
    """Put `name` into a digest of names, so that others do not give the same."""
    encoded = as_bytes(name)
    digest.update(len(encoded).to_bytes(4) + encoded)


def entries(folder: Path, form: Form[Any]) -> list[Path]:
    """The parts in `folder`. Raises UsageError for parts of another form."""
    found = [path for path in folder.iterdir() if NAME.match(path.name)]
    if others := [path for path in found if path.name != f"{path.name.removesuffix(form.ending)}{form.ending}"]:
        raise UsageError(f"{safe(others[0])} is no part that ends in {form.ending}: choose another folder")
    return found


def read_head(path: Path, form: Form[Any]) -> tuple[Head, dict[str, Any]]:
    """What a part says of itself, and what it was made with. Raises VitError for a damaged one."""
    try:
        about = dict(form.head(path))
        head = read_typed(Head, about.pop("part", None), "part")
    except (VitError, ValueError) as error:
        raise damaged(path, error) from None
    if path.name != head.name + form.ending:
        raise VitError(f"{safe(path)} is {safe(head.name)} by another name: a part is there twice; remove this one")
    return head, about


def damaged(path: Path, error: Exception) -> VitError:
    """What to say of a part that `error` says is none."""
    said = str(error).removeprefix(f"{safe(path)}: ")
    return VitError(f"{safe(path)} is damaged: {said}; remove it, and the command that made it makes it again")


NAMES = ("name", "model", "source", "revision")  # by which the same weights may be called


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], but: Sequence[str] = ()) -> str:
    """In what two descriptions differ, a word each; nothing where they are the same but for what models are called."""
    found, wanted = _as_kept(found), _as_kept(wanted)
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name) and name not in (*NAMES, *but)]
    words = {"sha256": "another model", "schema": "another command"}
    said = [
        words.get(name) or f"{safe(name)} {safe(found.get(name), 60)}, not {safe(wanted.get(name), 60)}"
        for name in names
    ]
    return next((word for word in said if word.startswith("another")), some(said, 3, limit=150))


def _as_kept(about: Mapping[str, Any]) -> dict[str, Any]:
    """`about` as it comes back from a file."""
    return parse_object(as_json(about).encode(), "about")


@contextmanager
def stoppable(message: str) -> Iterator[None]:
    """SIGTERM and SIGUSR1 inside the block raise Stopped with `message`: what is written is whole anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(message)

    numbers = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
