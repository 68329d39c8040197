"""`python -m tests.fuzz.kills --kills 200 --seed 0`: SIGKILL at random moments of long commands, each gone on with.

In the end the folder holds the same bits as one that nobody disturbed, but for times. The commands run as they are, in
forked children of a process that has imported everything; `tests/test_kill.py` is the short version inside the suite.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import engine


@dataclass(frozen=True)
class Job:
    """A command that leaves its work in the folder OUT, and the one that goes on with it once `begun` is there."""

    command: str
    resume: str
    begun: str


SHORT = "--batch-size 8 --score none"
JOBS = {
    "train": Job(
        f"train --data data --out OUT --epochs 12 {SHORT} SIZES",
        "train --resume OUT --score none",
        "run.json",
    ),
    "finetune": Job(
        f"finetune -m run/best --data data --tune all --out OUT --epochs 12 {SHORT}",
        "finetune --resume OUT --score none",
        "run.json",
    ),
    "head": Job(
        "finetune -m run/best --data data --tune head --out OUT --score none",
        "finetune --resume OUT --score none",
        "run.json",
    ),
    "compare": Job(
        "compare --data split --models vit-small,test_resnet --sizes 50%,100% --seeds 1 --epochs 2 "
        "--set batch_size=8 --out OUT",
        "compare --resume OUT",
        "study.json",
    ),
}  # fmt: skip
TIMES = {"images_per_second", "seconds", "cpu_seconds"}
OF_TIMES = {"run.json", "LATEST.json", "report.html", ".lock", "cpu_seconds"}  # commands, dates and how long it took


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of all commands together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=JOBS, action="append", help="this command; may be repeated")
    chosen = parser.parse_args()
    names = chosen.only or list(JOBS)
    place = Path(tempfile.mkdtemp(prefix="vit-kills-"))
    os.environ.update(engine.ENVIRONMENT, HOME=str(place))
    engine.warm()
    from tests.fuzz import sound

    made = engine.forked(lambda: sound.make(place), place, limited=False)
    if made.code:
        raise SystemExit(f"the sound files could not be made:\n{made.stderr.decode()}")
    faults = 0
    for name in names:
        job = JOBS[name]
        job = Job(job.command.replace("SIZES", sound.SIZES), job.resume, job.begun)
        rng = random.Random(f"{name}/{chosen.seed}")
        faults += killed(place, name, job, -(-chosen.kills // len(names)), rng)
    if faults:
        print(f"the folders are kept in {place}")
    else:
        shutil.rmtree(place)
    return bool(faults)


def killed(place: Path, name: str, job: Job, kills: int, rng: random.Random) -> int:
    """Kill `job` so many times, in as many runs of it as that takes. Returns the number of faults, each printed."""
    whole = place / f"{name}-whole"
    began = time.monotonic()
    end = engine.forked(_attempt(job, whole, 0), place, limited=False)
    if end.code:
        raise SystemExit(f"{name} undisturbed ended with {end.code}:\n{end.stderr.decode()}")
    length, right = time.monotonic() - began, bits(whole)
    done = runs = faults = 0
    while done < kills:
        folder = place / f"{name}-{runs}"
        runs += 1
        left = rng.randint(1, 12)  # kills of this run; then it may end
        while True:
            child = engine.Child(_attempt(job, folder, rng.choice((0, 0, 0, 1, 2))), place, limited=False)
            if left and done < kills:
                time.sleep(rng.uniform(0, length / 2))
                with suppress(ProcessLookupError):
                    rng.choice((os.kill, os.killpg))(child.pid, signal.SIGKILL)
            end = child.wait()
            if end.code != -signal.SIGKILL:
                break
            left, done = left - 1, done + 1
        differ = sorted(dict(bits(folder).items() ^ right.items())) if end.code == 0 else []
        if end.code or differ:
            what = (
                f"differs in {', '.join(differ)}" if differ else f"ended with {end.code}: {end.stderr.decode()[-500:]}"
            )
            print(f"{name}: {folder.name} {what}")
            faults += 1
        else:
            shutil.rmtree(folder)
    print(f"{name}: {done} kills in {runs} runs, {faults} faults", flush=True)
    return faults


def _attempt(job: Job, folder: Path, workers: int) -> Callable[[], None]:
    line = (job.resume if (folder / job.begun).exists() else job.command).replace("OUT", folder.name)
    return lambda: engine.vit([*line.split(), "--workers", str(workers)])


def bits(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` by its path, times left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in OF_TIMES]
    return {str(path.relative_to(folder)): hashlib.sha256(_content(path)).hexdigest() for path in files}


def _content(path: Path) -> bytes:
    if path.parent.name == "checkpoints":
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = b"".join(name.encode() + file.get_tensor(name).tobytes() for name in sorted(file.keys()))
        return json.dumps(_timeless(progress)).encode() + tensors
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        return json.dumps([_timeless(json.loads(line)) for line in lines]).encode()
    if path.suffix == ".csv":
        return json.dumps(_timeless(list(csv.DictReader(content.decode().splitlines())))).encode()
    return content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
