"""How the time to the first row, the rate and the memory grow with the number of images, and where they lie.

    python benchmarks/growth.py                          # 10^3 to 10^6 images from folder, tar and Parquet
    python benchmarks/growth.py --forms s3 --largest 4   # over a local S3 server (moto), 10^3 and 10^4
    python benchmarks/growth.py --rows                   # 10^7 rows of an index

Names are simulated over few files: images are small JPEGs under many hard links, and shards of 10^5 images are links to
one another. Each cell is a process of its own, so that its peak memory is its own; what goes on for long is stopped
after some seconds and its rate is that of these. Threads: one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LIMIT = 15.0  # seconds of predicting and embedding
CHECKED = 10_000  # images that `check` and `pack` are measured with, at most
OPERATIONS = ("start", "predict", "embed", "check", "pack")


def write_folder(root: Path, n: int) -> Path:
    """`n` names in two classes and two splits; a tenth validates."""
    rng = np.random.default_rng(0)
    originals = root / "originals"
    originals.mkdir()
    for i in range(64):
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((96, 96))
        noise.save(originals / f"{i}.jpg", quality=90)
    for i in range(n):
        split = "val" if i % 10 == 9 else "train"
        folder = root / "folder" / split / "ab"[i % 2] / f"{i // 20_000:03}"
        if i % 20_000 < 20:
            folder.mkdir(parents=True, exist_ok=True)
        os.link(originals / f"{i * 7 % 64}.jpg", folder / f"{i:08}.jpg")
    return root / "folder"


def write_shards(root: Path, folder: Path, n: int, form: str) -> Path:
    """The folder's images, at most 10^5 of them, in shards; more are links to the same."""
    from vitcli.data.pack import pack
    from vitcli.data.sources import read_splits

    out = root / form
    if form == "tar":
        pack(folder, out, shards=max(2, n // 10_000))
        (out / "manifest.json").unlink()  # what is linked is not in it
        (out / "pack.json").unlink()
        return out
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    for split, samples in read_splits(folder).named.items():
        image = [{"bytes": Path(samples.name(i)).read_bytes(), "path": None} for i in range(len(samples))]
        table = pa.table({"image": image, "label": [int(label) for label in samples.labels]})
        pq.write_table(table, out / f"{split}-000.parquet", row_group_size=100)
    return out


def multiplied(folder: Path, times: int) -> None:
    """So many times the shards, by links."""
    for path in [*folder.iterdir()]:
        split, _, rest = path.name.partition("-")
        number, dot, ending = rest.partition(".")
        for k in range(1, times):
            os.link(path, folder / f"{split}-{k}{number}{dot}{ending}")


def cell(operation: str, data: str, n: int) -> dict[str, Any]:
    """What one operation takes from there."""
    from vitcli.data.sources import open_data
    from vitcli.images.preprocess import Preprocess

    if operation == "start":
        from vitcli.training.seeds import epoch_order  # torch, whose import is not what is measured
    began = time.perf_counter()
    first, count = None, 0
    if operation == "start":
        found = open_data(data)
        _ = found.fingerprint
        order = epoch_order(len(found.train), 0, 0)
        for i in order[:1000].tolist():
            found.train.reduced(i, Preprocess((64, 64)))
            first = first or time.perf_counter() - began
            count += 1
    elif operation == "check":
        from vitcli.data.check import check

        check(data, near=False)
        count = n
    elif operation == "pack":
        from vitcli.data.pack import pack

        with tempfile.TemporaryDirectory() as out:
            count = sum(pack(data, out).images.values())
    else:
        from vitcli import embed, predict

        kind: Any = predict if operation == "predict" else embed
        for _ in islice(kind(data, "fashion-vit"), n):
            first = first or time.perf_counter() - began
            count += 1
            if time.perf_counter() - began > LIMIT:
                break
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rest = max(seconds - (first or 0), 1e-9)
    return {"first": first or seconds, "rate": count / (rest if first else seconds), "peak": peak}


def measured(operation: str, data: str, n: int) -> dict[str, Any]:
    arguments = [sys.executable, __file__, "--cell", operation, data, str(n)]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


@contextmanager
def bucket(folder: Path) -> Iterator[str]:
    """The address of what is in a folder, in a bucket of a local S3 server."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    system = fsspec.filesystem("s3")
    system.mkdir("growth")
    for path in sorted(folder.iterdir()):
        system.put(str(path), f"growth/data/{path.name}")
    yield "s3://growth/data"
    server.stop()


def decades(forms: list[str], largest: int, operations: list[str]) -> None:
    print("| images | from | what | first row, s | images/s | peak memory, MiB |\n|---|---|---|---|---|---|")
    for power in range(3, largest + 1):
        n = 10**power
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            os.environ["XDG_CACHE_HOME"] = str(root / "cache")
            part = n if "folder" in forms else min(n, 100_000)
            folder = write_folder(root, part)
            for form in forms:
                if form == "folder":
                    rows(form, str(folder), n, operations)
                    continue
                some = folder if part <= 100_000 else write_folder_of(root, 100_000)
                shards = write_shards(root, some, min(n, 100_000), "tar" if form == "s3" else form)
                multiplied(shards, n // min(n, 100_000))
                if form == "s3":
                    with bucket(shards) as address:
                        rows(form, address, n, operations)
                else:
                    rows(form, str(shards), n, operations)


def write_folder_of(root: Path, n: int) -> Path:
    (root / "some").mkdir(exist_ok=True)
    return write_folder(root / "some", n)


def rows(form: str, data: str, n: int, operations: list[str]) -> None:
    for operation in operations:
        if operation in ("check", "pack") and n > CHECKED:
            continue
        found = measured(operation, data, n)
        power = len(str(n)) - 1
        print(
            f"| 10^{power} | {form} | {operation} | {found['first']:.2f} | {found['rate']:.0f} | {found['peak']:.0f} |",
            flush=True,
        )


def index_rows(n: int, each: int = 100_000) -> None:
    """`n` rows of an index over archives that are holes: what a run's start costs."""
    from vitcli.data import index
    from vitcli.data.members import Texts

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        (root / "shards").mkdir()
        rng = np.random.default_rng(0)
        for k in range(n // each):
            archive = root / "shards" / f"{'val' if k % 10 == 9 else 'train'}-{k:04}.tar"
            archive.touch()
            os.truncate(archive, each * 40_000)
            names = Texts.of([f"{k * each + i:09}.jpg" for i in range(each)])
            codes = rng.integers(0, 1000, each).astype(np.int32)
            starts = np.arange(each, dtype=np.int64) * 40_000
            labels = tuple((f"class {i:04}",) for i in range(1000))
            made = index.Index(
                names, starts, np.full(each, 30_000, np.int64), labels, codes, ("",), np.zeros(each, np.int32)
            )
            known = index.signature(archive)
            assert known is not None
            index.write(Path(str(index.beside(archive))), made, known)
        found = measured("open", str(root / "shards"), n)
        print(f"| 10^{len(str(n)) - 1} rows of an index | start | {found['first']:.1f} s | {found['peak']:.0f} MiB |")


def opened(data: str) -> dict[str, Any]:
    """A run's start up to the order of its first epoch; no image is read."""
    from vitcli.data.sources import open_data
    from vitcli.training.seeds import epoch_order

    began = time.perf_counter()
    found = open_data(data)
    _ = found.fingerprint
    epoch_order(len(found.train), 0, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": time.perf_counter() - began, "rate": 0.0, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forms", nargs="+", default=["folder", "tar", "parquet"])
    parser.add_argument("--largest", type=int, default=6, help="power of ten")
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS))
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if wanted.cell:
        operation, data, n = wanted.cell
        print(json.dumps(opened(data) if operation == "open" else cell(operation, data, int(n))))
    elif wanted.rows:
        index_rows(10**7)
    else:
        decades(wanted.forms, wanted.largest, wanted.operations)


if __name__ == "__main__":
    main()
