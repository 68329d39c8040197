"""Small shards, member by member, and damage done to them."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from vitcli.data.samples import Splits


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """An archive with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_shards(folder: Path, found: Splits, each: int = 5) -> Path:
    """The images of a data set in shards of `each`, in their order, with names of classes beside them."""
    for split, samples in found.named.items():
        for start in range(0, len(samples), each):
            members: dict[str, bytes] = {}
            for i in range(start, min(start + each, len(samples))):
                path = Path(samples.name(i))
                members[f"{i:06}{path.suffix}"] = path.read_bytes()
                members[f"{i:06}.txt"] = found.classes[samples.labels[i]].encode()
            write_tar(folder / f"{split}-{start // each:03}.tar", members)
    return folder


def png(shade: int = 0) -> bytes:
    """A small picture; another `shade`, another one."""
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (shade % 256, 90, 30)).save(file, "PNG")
    return file.getvalue()
