"""A folder of images as vectors that are computed once: kept by the images' content in the user's cache.

A file of the cache belongs to a folder, a model and what is asked of it, and holds that folder's images alone, so it
grows no larger than they are. One that is damaged, or whose folder has changed, is made anew as far as that is needed.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vitcli.errors import VitError
from vitcli.files import content_hash, replacing
from vitcli.images.find import ImageSource, find_images
from vitcli.inference.embed import Embedder
from vitcli.inference.evaluate import Unreadable
from vitcli.inference.similar import Held, Vectors
from vitcli.privacy import our_cache
from vitcli.storage.named import absolute
from vitcli.text import safe

Known = dict[str, Vectors]  # by a digest of the file


def folder_vectors(
    folder: str | Path, embedder: Embedder, progress: Callable[[int, int], None] | None = None
) -> tuple[Held, list[Unreadable]]:
    """The images in `folder` and below, or in an archive, in order, and those that cannot be read.

    Raises VitError for none.
    """
    images = list(find_images([folder]))
    if not images:
        raise VitError(f"no images in {safe(folder)}")
    cache = _cache_file(folder, embedder)
    known, digests = _read(cache), [_digest(one) for one in images]
    new = {digest: one for digest, one in zip(digests, images, strict=True) if digest not in known}
    errors: dict[str, str] = {}
    computed = embedder.of(iter(new.values())) if new else iter(())  # no model is opened for nothing
    for done, (digest, one) in enumerate(zip(new, computed, strict=True), start=1):
        if one.vector is None:
            errors[digest] = one.error or ""
        else:
            known[digest] = one.vector
        if progress:
            progress(done, len(new))
    here = [(one.name, digest) for one, digest in zip(images, digests, strict=True) if digest in known]
    failed = [
        Unreadable(one.name, errors[digest]) for one, digest in zip(images, digests, strict=True) if digest in errors
    ]
    if not here:
        raise VitError(f"none of the images in {safe(folder)} could be read, such as {failed[0].error}")
    if new or len(known) > len(set(digests)):
        _write(cache, {digest: known[digest] for _, digest in here})
    return Held([name for name, _ in here], np.stack([known[digest] for _, digest in here])), failed


def _cache_file(folder: str | Path, embedder: Embedder) -> Path:
    said = json.dumps([absolute(str(folder)), embedder.about()], sort_keys=True)
    return our_cache() / "vectors" / f"{hashlib.sha256(said.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"


def _digest(image: ImageSource) -> str:
    """Of a file's content; of the name of one that cannot be read, which decoding will report."""
    try:
        if isinstance(image.source, bytes):
            raise OSError
        return content_hash(image.source).hex()
    except OSError:
        return f"unreadable {image.name}"


def _read(cache: Path) -> Known:
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as found:
            digests, vectors = found["digest"].tolist(), found["vector"]
            if vectors.dtype != np.float32 or len(digests) != len(vectors) or not np.isfinite(vectors).all():
                return {}
            return dict(zip(digests, vectors, strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def _write(cache: Path, known: Known) -> None:
    """A cache that cannot be written is none."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as file:
            np.savez(file, digest=np.array(list(known)), vector=np.stack(list(known.values())))
    except OSError:
        return


def query_vectors(images: Iterator[ImageSource], embedder: Embedder) -> tuple[Sequence[str], Vectors, list[Unreadable]]:
    """Names and vectors (q, D) of the images that can be read, and the others."""
    names, vectors, failed = [], [], []
    for one in embedder.of(images):
        if one.vector is None:
            failed.append(Unreadable(one.path, one.error or ""))
        else:
            names.append(one.path)
            vectors.append(one.vector)
    if not names:
        raise VitError(f"none of the images could be read, such as {failed[0].error}")
    return names, np.stack(vectors), failed
