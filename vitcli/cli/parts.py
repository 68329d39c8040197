"""Long work in parts, as predict, embed and evaluate offer it: shares of the images, and a file gone on with."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import typer

from vitcli.cli.settings import refuse
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import plural, safe

if TYPE_CHECKING:
    from vitcli.inference.joining import Joined
    from vitcli.inference.parts import Form
    from vitcli.inference.shards import Shard
    from vitcli.inference.stream import Stream

Row = TypeVar("Row")
Item = TypeVar("Item")


@contextmanager
def computed_on(on: str | None, out: str | None, stream: "Stream", refused: Mapping[str, Any]) -> Iterator[None]:
    """Have `stream` compute on the cluster `on`, if there is one. Raises UsageError for what would not go with it."""
    if on is None:
        yield
        return
    from vitcli.inference.on_ray import address_of, cluster, send

    address = address_of(on)
    if out in (None, "-"):
        raise UsageError("--on computes for a file: name it with --out")
    refuse(refused, "--on has the cluster share the work, of images that are files")
    with cluster(address):
        send(stream)
        yield


@dataclass(frozen=True, eq=False)
class Work(Generic[Item, Row]):
    """What is done in parts: items, and how they become rows."""

    form: "Form[Row]"
    about: Mapping[str, Any]  # what rows are made with
    items: Iterable[Item]
    name: Callable[[Item], str]
    compute: Callable[[Iterator[Item]], Iterator[Row]]
    doing: str  # in a word or two
    size: int | None  # images a part, where it was asked for
    default: int  # otherwise


def refuse_shard(shard: str | None, out: str | None, part_size: int | None, *, file: bool) -> None:
    """Raises UsageError for options of parts that do not go together; `file`: --out alone is a file made in parts."""
    if shard is not None and out is None:
        raise UsageError("--shard needs --out, the folder that all shards share")
    if shard is not None and out == "-":
        raise UsageError("--shard writes parts: --out is a folder, not -")
    if part_size is not None and (out in (None, "-") or not (shard or file)):
        raise UsageError("--part-size is of --shard" + (" and of --out FILE" if file else ""))


def several_need_a_file(out: str | None) -> None:
    """Raises UsageError where several processes would each print all results."""
    from vitcli.inference.shards import torchrun_shard

    if out in (None, "-") and torchrun_shard():
        raise UsageError("several processes share the work where --out names a file, or with --shard a folder")


def device_here(device: str | None, shard: str | None) -> str | None:
    """The device that was asked for, or this process's own of several."""
    from vitcli.inference.shards import torchrun_shard
    from vitcli.machine import own_device

    return own_device() if device is None and (shard is not None or torchrun_shard()) else device


def shard_into(folder: Path, work: Work[Item, Row], shard: "Shard") -> None:
    """Do `shard` of `work` in `folder`. Raises typer.Exit where images failed; of several processes the first one."""
    from vitcli.inference.joining import join, wait_for_all

    failed = _do(folder, work, shard)
    together = _together(shard)
    if together and shard.index:
        return
    if together:
        wait_for_all(folder, shard.count)
        failed = join(folder, work.form).failed
    say_failed(failed)


def file_by_parts(
    path: Path,
    work: Work[Item, Row],
    write: Callable[["Joined[Row]"], object],
) -> None:
    """Make `path` by way of a folder of parts beside it, which a killed process leaves for the next one.

    Of several processes of `torchrun` each does its share, and the first one writes. Raises as `shard_into`.
    """
    from vitcli.inference.joining import join, remove, wait_for_all
    from vitcli.inference.shards import Shard, torchrun_shard

    folder, shard = parts_of(path), torchrun_shard() or Shard()
    if path.exists() and folder.is_dir() and _made_from(path, folder):
        if shard.count > 1:
            raise UsageError(f"{safe(folder)} is left of what {safe(path)} was made of: remove it")
        remove(folder)
    _do(folder, work, shard)
    if shard.index:
        return
    wait_for_all(folder, shard.count)
    joined = join(folder, work.form, option="the same command makes it")
    write(joined)
    remove(folder)
    say_failed(joined.failed)


def parts_of(path: Path) -> Path:
    """The folder beside the file `path` that it is made from."""
    return path.with_name(f"{path.name}.parts")


def _do(folder: Path, work: Work[Item, Row], shard: "Shard") -> int:
    from vitcli.cli.console import note, waiting
    from vitcli.inference.parts import Parts, stoppable

    again = f"what is done is in {safe(folder)}; to go on, give the same command again"
    parts = Parts(folder, work.form, work.about, shard, size=work.size, default=work.default)
    try:
        with stoppable(f"stopped; {again}"), waiting(work.doing):
            done = parts.work(work.items, work.name, work.compute)
    finally:
        with suppress(OSError):  # where nothing came of it
            folder.rmdir()
    if done.before:
        note(f"{done.before} of {plural(done.images, 'image')} were done before")
    if shard.count > 1:
        note(f"shard {shard}: {plural(done.images, 'image')} in {safe(folder)}")
    return done.failed


def _together(shard: "Shard") -> bool:
    """Whether the other shards are those of processes that `torchrun` started with this one and ends with it."""
    from vitcli.inference.shards import torchrun_shard

    return torchrun_shard() == shard


def _made_from(path: Path, folder: Path) -> bool:
    """Whether the parts in `folder` are those that `path` was made from, so that only their removal is left to do."""
    ends = [one.stat().st_mtime_ns for one in folder.glob("shard-*.last.*")]
    return bool(ends) and path.stat().st_mtime_ns >= max(ends)


def say_failed(failed: int) -> None:
    """Raises typer.Exit with the code for that where images failed."""
    from vitcli.cli.console import note

    if failed:
        note(f"{failed} of the images could not be read")
        raise typer.Exit(EXIT_SOME_FAILED)
