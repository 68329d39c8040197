"""`python -m tests.fuzz.part_kills --processes 4 --kills 20`: work in parts, each process killed at random moments.

In the end the parts of all processes are one process's result, byte for byte, and no image is in two of them. A process
that ends before it was killed often enough starts on the next round's folder with the others. `--light` imports less
beforehand: the short version inside the suite.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.fuzz import engine
from tests.helpers.checkpoints import LABELS, write_tiny


@dataclass(frozen=True)
class Job:
    """A command for SHARD of the work, what joins the parts into OUT, and what gives one process's result."""

    part: str
    joined: str
    alone: str
    result: str  # file


IMAGES, MODEL = "--from-file list", "-m model"
JOBS = {
    "predict": Job(
        f"predict {IMAGES} {MODEL} --shard SHARD --out PARTS --part-size 3",
        "predict --merge PARTS --out all.jsonl",
        f"predict {IMAGES} {MODEL} --jsonl",
        "all.jsonl",
    ),
    "embed": Job(
        f"embed {IMAGES} {MODEL} --shard SHARD --out PARTS --part-size 3",
        "embed --merge PARTS --out all.parquet",
        f"embed {IMAGES} {MODEL} --out one.parquet",
        "all.parquet",
    ),
    "evaluate": Job(
        "evaluate model --data data --shard SHARD --out PARTS --part-size 3",
        "evaluate model --data data --merge PARTS --json",
        "evaluate model --data data --json",
        "",
    ),
    "predict file": Job(
        f"predict {IMAGES} {MODEL} --out all.csv --part-size 3", "", f"predict {IMAGES} {MODEL} --csv", "all.csv"
    ),
    "embed file": Job(
        f"embed {IMAGES} {MODEL} --out all.npz --part-size 3", "", f"embed {IMAGES} {MODEL} --out one.npz", "all.npz"
    ),
}  # fmt: skip


def make(place: Path, images: int) -> None:
    """A checkpoint, labelled pictures, one file that is none, and a list of all."""
    rng = random.Random(0)
    write_tiny(place / "model")
    for i in range(images):
        path = place / "data" / LABELS[i % 3] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (70, 60), rng.randbytes(70 * 60 * 3)).save(path, compress_level=0)
    (place / "data" / LABELS[0] / "broken.png").write_text("no image")
    names = sorted(str(path.relative_to(place)) for path in (place / "data").rglob("*.png"))
    (place / "list").write_text("\n".join(names))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.part_kills", description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20, help="of each process")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=JOBS, action="append")
    parser.add_argument("--light", action="store_true")
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="vit-parts-"))
    os.environ.update(engine.ENVIRONMENT, HOME=str(place))
    if chosen.light:
        import vitcli.cli.app
        import vitcli.cli.views.predictions
        import vitcli.inference.part_forms
        import vitcli.inference.stream  # noqa: F401
    else:
        engine.warm()
    made = engine.forked(lambda: make(place, chosen.images), place, limited=False)
    if made.code:
        raise SystemExit(made.stderr.decode())
    faults = 0
    for name in chosen.only or JOBS:
        processes = 1 if "file" in name else chosen.processes
        faults += killed(place, name, JOBS[name], processes, chosen.kills, random.Random(f"{name} {chosen.seed}"))
    shutil.rmtree(place)
    return bool(faults)


def killed(place: Path, name: str, job: Job, processes: int, kills: int, rng: random.Random) -> int:
    """Kill each of so many processes so often, in as many rounds as that takes. Returns the number of faults."""
    began = time.monotonic()
    right = result(place, job.alone, "one" + Path(job.result).suffix)
    length = (time.monotonic() - began) / processes
    left = [kills] * processes
    rounds = faults = ended = 0
    while any(left):
        folder = place / f"round-{rounds}"
        folder.mkdir()
        for shared in ("model", "data", "list"):
            (folder / shared).symlink_to(place / shared)
        rounds += 1
        running = [Attempt(job, folder, i, processes) for i in range(processes)]
        while running:
            for attempt in list(running):
                attempt.look(rng, left, length)
                if attempt.code is not None:
                    running.remove(attempt)
                    ended += 1
                    if attempt.code not in (0, 3):
                        faults += 1
                        print(f"{name}: ended with {attempt.code}: {attempt.said}")
            time.sleep(0.002)
        found = result(folder, job.joined, job.result)
        if found != right:
            faults += 1
            print(f"{name}: round {rounds} differs from one process's result")
        if leftover := [path.name for path in folder.rglob(".*.tmp")]:
            print(f"{name}: {leftover[:3]} left behind by killed processes")
        shutil.rmtree(folder)
    print(f"{name}: {processes} processes, {processes * kills} kills in {rounds} rounds, {faults} faults", flush=True)
    return faults


class Attempt:
    """One process at work, started again each time that it was killed."""

    def __init__(self, job: Job, folder: Path, index: int, processes: int) -> None:
        self.index, self.folder = index, folder
        self.words = job.part.replace("SHARD", f"{index}/{processes}").replace("PARTS", "parts").split()
        self.child: engine.Child | None = None
        self.at = 0.0
        self.code: int | None = None
        self.said = ""

    def look(self, rng: random.Random, left: list[int], length: float) -> None:
        """Start it, kill it once its time has come, or see how it ended."""
        if self.child is None:
            self.child = engine.Child(lambda: engine.vit(self.words), self.folder, limited=False)
            # Half of the times while it starts and does a part or two, the others anywhere.
            most = rng.choice((0.3, length / 4, length))
            self.at = time.monotonic() + rng.uniform(0, most) if left[self.index] else float("inf")
        if time.monotonic() >= self.at:
            with suppress(ProcessLookupError):
                os.kill(self.child.pid, signal.SIGKILL)
            self.at = float("inf")
        if os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        end = self.child.wait()
        self.child = None
        if end.code == -signal.SIGKILL:
            left[self.index] -= 1
        else:
            self.code, self.said = end.code, end.stderr.decode()[-500:]


def result(folder: Path, line: str, file: str) -> bytes:
    """What `vit LINE`, if there is one, leaves in `file`, or prints. Raises RuntimeError when it fails."""
    printed = b""
    if line:
        end = engine.forked(lambda: engine.vit(line.replace("PARTS", "parts").split()), folder, limited=False)
        if end.code not in (0, 3):
            raise RuntimeError(f"vit {line} ended with {end.code}: {end.stderr.decode()[-500:]}")
        printed = end.stdout
    return printed or (folder / file).read_bytes()


if __name__ == "__main__":
    sys.exit(main())
