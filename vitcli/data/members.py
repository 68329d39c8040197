"""Where the images of some archives lie, kept small: 10^7 of them as Python objects would take gigabytes.

Legend: N images.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcli.data.samples import Labels
from vitcli.files import Where
from vitcli.storage.tar import Member

Numbers = npt.NDArray[np.int64]


class Texts(Sequence[str]):
    """Short texts in one piece of memory, those at `rows` of it."""

    def __init__(self, letters: bytes, ends: Numbers, rows: Numbers | None = None) -> None:
        """`ends` (M,) says where each text ends in `letters`, UTF-8 with any byte escaped as file names have it."""
        self.letters, self.ends = letters, ends
        self.rows = np.arange(len(ends)) if rows is None else rows

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        return cls(b"".join(encoded), np.cumsum([len(one) for one in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        row = int(self.rows[i])
        start = int(self.ends[row - 1]) if row else 0
        return self.letters[start : int(self.ends[row])].decode("utf-8", "surrogateescape")

    def take(self, rows: Numbers) -> "Texts":
        return Texts(self.letters, self.ends, self.rows[rows])

    def joined(self, *others: "Texts") -> "Texts":
        parts = (self, *others)
        ends = np.cumsum([0, *(len(one.letters) for one in parts[:-1])])
        before = np.cumsum([0, *(len(one.ends) for one in parts[:-1])])
        return Texts(
            b"".join(one.letters for one in parts),
            np.concatenate([one.ends + start for one, start in zip(parts, ends, strict=True)]),
            np.concatenate([one.rows + start for one, start in zip(parts, before, strict=True)]),
        )


@dataclass(frozen=True, eq=False)
class Members:
    """Images in tar archives, in a fixed order."""

    archives: tuple[Where, ...]
    archive: npt.NDArray[np.int32]  # number of each image's archive, (N,)
    starts: Numbers  # of its bytes in there, (N,)
    sizes: Numbers  # (N,)
    names: Texts  # in the archive, (N,)
    contents: npt.NDArray[np.uint8] | None = None  # a hash of each image's bytes, (N, 16), where an index has them

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int, /) -> Member:
        archive = self.archives[self.archive[i]]
        return Member(archive, self.names[i], int(self.starts[i]), int(self.sizes[i]))

    def take(self, rows: Labels) -> "Members":
        return replace(
            self, archive=self.archive[rows], starts=self.starts[rows], sizes=self.sizes[rows],
            names=self.names.take(rows), contents=None if self.contents is None else self.contents[rows],
        )  # fmt: skip

    def joined(self, *others: "Members") -> "Members":
        parts = (self, *others)
        before = np.cumsum([0, *(len(one.archives) for one in parts[:-1])])
        contents = [one.contents for one in parts if one.contents is not None]
        return Members(
            tuple(archive for one in parts for archive in one.archives),
            np.concatenate([one.archive + np.int32(start) for one, start in zip(parts, before, strict=True)]),
            np.concatenate([one.starts for one in parts]),
            np.concatenate([one.sizes for one in parts]),
            self.names.joined(*(one.names for one in others)),
            np.concatenate(contents) if len(contents) == len(parts) else None,
        )

    def hashes(self) -> list[bytes] | None:
        """Of each image's bytes, (N,), where they are known without reading them."""
        return None if self.contents is None else [row.tobytes() for row in self.contents]

    def digest(self) -> bytes:
        """Of the archives' own names, and of the names and sizes of what they hold."""
        archives = "\0".join(PurePosixPath(str(one)).name for one in self.archives)
        digest = hashlib.sha256(archives.encode("utf-8", "surrogateescape"))
        for part in (self.archive.astype("<i4"), self.sizes.astype("<i8"), self.names.rows, self.names.ends):
            digest.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
        digest.update(self.names.letters)
        return digest.digest()
