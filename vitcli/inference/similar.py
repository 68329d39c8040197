"""Which pictures are like which: nearest vectors by the cosine, exactly, and groups of near duplicates. Prints nothing.

Products are taken in float32, a block at a time; whatever could be among the answers by the bound on their rounding is
compared again in float64. So the answers, and their order, are those of brute force in float64; of equals the first.

Legend: N vectors, D width, q queries, b rows of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitcli.errors import UsageError, VitError
from vitcli.files import replacing
from vitcli.inference.stored_vectors import Block
from vitcli.text import safe

MOST_VALUES = 10**6 * 768  # N · D up to which every vector is looked at
MOST_HELD = 1 << 30  # bytes of vectors that are compared with one another
PAIRS_AT_ONCE = 1024  # rows of a square of the table of all pairs

Vectors = npt.NDArray[np.float32]


class Source(Protocol):
    """Vectors to look through, as often as `blocks` is asked for."""

    @property
    def n(self) -> int: ...

    @property
    def width(self) -> int: ...

    def blocks(self) -> Iterator[Block]: ...


@dataclass(frozen=True)
class Neighbour:
    path: str
    row: int  # among the images that have a vector
    similarity: float  # cosine, from -1 to 1

    @property
    def distance(self) -> float:
        """1 − cosine."""
        return 1.0 - self.similarity


def neighbours(source: Source, queries: npt.NDArray[np.floating], k: int) -> list[list[Neighbour]]:
    """The `k` nearest vectors of each query (q, D), nearest first; fewer where there are fewer.

    Memory is that of a block, whatever N. Raises UsageError for another width and for more than 10⁶ × 768 values.
    """
    if k < 1:
        raise UsageError("k must be at least 1")
    if queries.shape[1] != source.width:
        raise UsageError(f"the queries have {queries.shape[1]} values, the vectors {source.width}")
    if source.n * source.width > MOST_VALUES:
        raise UsageError(
            f"{source.n} vectors of {source.width} values are too many to look at each: an index is for that"
        )
    exact, slack = _units(queries.astype(np.float64)), _slack(source.width)
    quick = exact.astype(np.float32)
    best = [_Best(k) for _ in queries]
    start = 0
    for block in source.blocks():
        similar = _similarities(quick, block.vectors)  # (q, b)
        least = np.array([one.worst(row) for one, row in zip(best, similar, strict=True)])
        near = similar >= least[:, None] - slack
        for i in np.flatnonzero(near.any(axis=1)).tolist():
            rows = np.flatnonzero(near[i])
            best[i].add(start, block, rows, _cosines(exact[i], block.vectors[rows]))
        start += len(block.paths)
    return [one.found for one in best]


class _Best:
    """The k nearest so far of one query."""

    def __init__(self, k: int) -> None:
        self._k = k
        self.found: list[Neighbour] = []

    def worst(self, similar: npt.NDArray[np.float32]) -> float:
        """What a similarity must not fall below: that of the k-th nearest known, or of a first block."""
        if len(self.found) == self._k:
            return self.found[-1].similarity
        return float(np.partition(similar, -self._k)[-self._k]) if len(similar) > self._k else -np.inf

    def add(self, start: int, block: Block, rows: npt.NDArray[np.intp], cosines: npt.NDArray[np.float64]) -> None:
        order = np.argsort(-cosines, kind="stable")[: self._k]
        new = [Neighbour(block.paths[rows[j]], start + int(rows[j]), float(cosines[j])) for j in order.tolist()]
        self.found = sorted([*self.found, *new], key=lambda one: (-one.similarity, one.row))[: self._k]


def _slack(width: int) -> float:
    """Twice how far a cosine in float32 may be off, its lengths included: Higham's γ, generously."""
    return 4 * (width + 8) * 2.0**-24


def _similarities(queries: Vectors, vectors: Vectors) -> npt.NDArray[np.float32]:
    """Cosines (q, b) of unit queries with vectors, in float32."""
    with np.errstate(over="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors)
    if ((squares > 1e-20) & (squares < 1e20)).all():
        return np.asarray(queries @ vectors.T / np.sqrt(squares))
    return np.asarray(queries @ _units(vectors.astype(np.float64)).astype(np.float32).T)  # float32 cannot square them


def _units(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, D) of length 1; zero stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def _short_units(vectors: Vectors) -> Vectors:
    """The same in float32, a part at a time."""
    parts = [
        _units(part.astype(np.float64)).astype(np.float32) for part in np.array_split(vectors, len(vectors) // 4096 + 1)
    ]
    return np.concatenate(parts)


def _cosines(query: npt.NDArray[np.float64], vectors: Vectors) -> npt.NDArray[np.float64]:
    """Of a unit vector (D,) with vectors (b, D), in float64."""
    return np.asarray(np.clip(np.einsum("nd,d->n", _units(vectors.astype(np.float64)), query), -1.0, 1.0))


@dataclass(frozen=True)
class Group:
    """Pictures that hang together: each is as near as the threshold to another one of them."""

    paths: tuple[str, ...]
    similarities: tuple[float, ...]  # of each to the first


def duplicates(source: Source, threshold: float) -> list[Group]:
    """Groups of images whose cosine is `threshold` or more, the largest first.

    Every pair is compared. Raises UsageError for a threshold that is none, VitError for more than 1 GiB of vectors.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--duplicates {threshold:g}: a cosine above 0 and up to 1, such as 0.97")
    if 4 * source.n * source.width > MOST_HELD:
        raise VitError(
            f"{source.n} vectors of {source.width} values are too many to compare each with each (1 GiB of them is "
            "the most): look for duplicates folder by folder"
        )
    blocks = list(source.blocks())
    paths = [path for block in blocks for path in block.paths]
    vectors = np.concatenate([block.vectors for block in blocks]) if blocks else np.zeros((0, source.width), np.float32)
    units, above = _short_units(vectors), _Groups(len(paths))
    for i in range(0, len(paths), PAIRS_AT_ONCE):
        for j in range(i, len(paths), PAIRS_AT_ONCE):
            rows, columns = np.nonzero(
                units[i : i + PAIRS_AT_ONCE] @ units[j : j + PAIRS_AT_ONCE].T >= threshold - _slack(source.width)
            )
            pairs = [(i + row, j + column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
            for row, column in pairs:
                if row < column and above.apart(row, column) and _cosine(vectors, row, column) >= threshold - 1e-12:
                    above.join(row, column)
    found = []
    for members in above.groups():
        cosines = _cosines(_units(vectors[members[:1]].astype(np.float64))[0], vectors[members])
        found.append(Group(tuple(paths[i] for i in members), tuple(cosines.tolist())))
    return sorted(found, key=lambda group: -len(group.paths))


def _cosine(vectors: Vectors, i: int, j: int) -> float:
    return float(_cosines(_units(vectors[i : i + 1].astype(np.float64))[0], vectors[j : j + 1])[0])


class _Groups:
    """Which of n things hang together."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def apart(self, i: int, j: int) -> bool:
        return self._root(i) != self._root(j)

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self._root(i), self._root(j)))
        self._parent[high] = low

    def groups(self) -> list[list[int]]:
        """Those of two and more, members in order."""
        found: dict[int, list[int]] = {}
        for i in range(len(self._parent)):
            found.setdefault(self._root(i), []).append(i)
        return [members for members in found.values() if len(members) > 1]


def write_for_index(source: Source, path: Path) -> None:
    """The vectors for an index library: `path` is a NumPy array (N, D) of unit vectors in float32, which faiss, usearch
    and hnswlib take; the images' names are the lines of `path` with .txt for .npy."""
    rows = sum(len(block.paths) for block in source.blocks())
    with replacing(path) as file, replacing(path.with_suffix(".txt")) as names:
        head = {"descr": "<f4", "fortran_order": False, "shape": (rows, source.width)}
        np.lib.format.write_array_header_1_0(file, head)
        for block in source.blocks():
            file.write(_short_units(block.vectors).data)
            names.write("".join(f"{safe(name, None)}\n" for name in block.paths).encode())


def too_many(source: Source) -> bool:
    """Whether looking at every vector would take too long."""
    return source.n * source.width > MOST_VALUES


@dataclass(frozen=True, eq=False)
class Held:
    """Vectors in memory."""

    paths: Sequence[str]
    vectors: Vectors  # (N, D)

    @property
    def n(self) -> int:
        return len(self.paths)

    @property
    def width(self) -> int:
        return int(self.vectors.shape[1])

    def blocks(self) -> Iterator[Block]:
        for start in range(0, self.n, 4096):
            yield Block(self.paths[start : start + 4096], self.vectors[start : start + 4096])
