"""`python -m tests.fuzz --cases 20000 --seed 0`: damaged files of every kind through the commands, and what went wrong.

A case is a function of kind, seed and number: `--only onnx --seed 0 --case 17` makes it again, and keeps its files.
"""

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from tests.fuzz import engine

# Kinds and their modules, imported after the environment is set: NumPy starts threads unless told not to.
KINDS = {
    "safetensors": "weights",
    "config": "configs",
    "onnx": "onnx_files",
    "images": "images",
    "manifests": "manifests",
    "recipes": "recipes",
    "runs": "runs",
}
TARGETS: dict[str, ModuleType] = {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=700, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind; may be repeated")
    parser.add_argument("--case", type=int, help="one case of one kind: shown in full, its files kept in fuzz-KIND-N")
    chosen = parser.parse_args()
    names = chosen.only or list(KINDS)
    if chosen.case is not None and len(names) != 1:
        parser.error("--case takes one --only")
    place = Path(tempfile.mkdtemp(prefix="vit-fuzz-"))
    try:
        _prepare(place, names)
        if chosen.case is not None:
            return _show(place, names[0], chosen.seed, chosen.case)
        return _many(place, names, chosen.seed, -(-chosen.cases // len(names)))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _prepare(place: Path, names: list[str]) -> None:
    """The sound files. Every command succeeds on them: what fails afterwards is the damage's doing."""
    os.environ.update(engine.ENVIRONMENT, HOME=str(place), HF_HUB_CACHE=str(place / "cache"))
    for name in ("VIT_MODEL", "VIT_DEBUG", "FORCE_COLOR"):
        os.environ.pop(name, None)
    engine.warm()
    TARGETS.update((name, importlib.import_module(f"tests.fuzz.{KINDS[name]}")) for name in names)
    sound = importlib.import_module("tests.fuzz.sound")
    for make in (sound.make, *(TARGETS[name].prepare for name in names if hasattr(TARGETS[name], "prepare"))):
        made = engine.forked(lambda make=make: make(place), place, limited=False)
        if made.code:
            raise SystemExit(f"the sound files could not be made:\n{made.stderr.decode()}")
    for name in names:
        for command in TARGETS[name].COMMANDS:
            command, ended, wrong = _case(place, name, random.Random(0), place / "sound", command)
            if wrong or (ended.code and name != "images"):  # there, formats that are not read are among the sound ones
                raise SystemExit(f"vit {command} on sound files: {wrong or ended.code}\n{ended.stderr.decode()}")


def _case(
    place: Path, name: str, rng: random.Random, folder: Path, sound_command: str = ""
) -> tuple[str, engine.Ended, str]:
    """Files laid out in `folder`, damaged unless a command for sound ones is given; the command, its end, the fault."""
    target = TARGETS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target.lay(place, folder, rng)
    if not sound_command:
        target.damage(place, folder, rng)
    command = sound_command or rng.choice(target.COMMANDS)
    command = target.fill(command, rng) if hasattr(target, "fill") else command
    ended = engine.run(command, folder)
    wrong = engine.verdict(command, ended, folder)
    if not wrong and ended.code in (0, 3) and hasattr(target, "absurd"):
        wrong = target.absurd(place, folder, command, ended.stdout.decode())
    return command, ended, wrong


def _rng(name: str, seed: int, case: int) -> random.Random:
    return random.Random(f"{name}/{seed}/{case}")


def _show(place: Path, name: str, seed: int, case: int) -> int:
    folder = Path(f"fuzz-{name}-{case}").resolve()
    command, ended, wrong = _case(place, name, _rng(name, seed, case), folder)
    print(f"in {folder}: vit {command}")
    for stream in (ended.stdout, ended.stderr):
        print(stream.decode("utf-8", "backslashreplace").encode("unicode_escape").decode().replace("\\n", "\n"))
    print(f"exit code {ended.code}, {ended.cpu:.1f} s, {ended.memory >> 20} MiB more: {wrong or 'as it should be'}")
    return bool(wrong)


def _many(place: Path, names: list[str], seed: int, cases: int) -> int:
    """So many cases of every kind; Ctrl-C ends early, with the table of what was run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    rows: list[Tally] = []
    faults: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    with suppress(KeyboardInterrupt):
        for name in names:
            rows.append(Tally(name))
            for case in range(cases):
                _, ended, wrong = _case(place, name, _rng(name, seed, case), place / "case")
                rows[-1].add(ended, wrong)
                if case % 200 == 199:
                    print(f"{name}: {case + 1} cases, {rows[-1].faults} faults", file=sys.stderr, flush=True)
                if wrong:
                    faults[name, wrong].append(case)
                    print(f"{name} {case}: {wrong}", file=sys.stderr, flush=True)
    print("| files | cases | refused | some inputs failed | accepted | other ends | slowest | most memory | faults |")
    print("| --- |" + " --- |" * 8)
    for row in rows:
        print(row.line())
    for (name, wrong), found in sorted(faults.items(), key=lambda item: (item[0][0], -len(item[1]))):
        print(f"{name}: {len(found)} × {wrong}: --only {name} --seed {seed} --case {found[0]}", *found[1:6], flush=True)
    return bool(faults)


@dataclass
class Tally:
    """How the cases of one kind ended."""

    name: str
    codes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds of computing
    largest: int = 0  # bytes
    faults: int = 0

    def add(self, ended: engine.Ended, wrong: str) -> None:
        self.codes[ended.code] += 1
        self.slowest, self.largest = max(self.slowest, ended.cpu), max(self.largest, ended.memory)
        self.faults += bool(wrong)

    def line(self) -> str:
        """A row of the table."""
        codes, cases = self.codes, self.codes.total()
        others = cases - codes[0] - codes[1] - codes[2] - codes[3]
        ends = (cases, codes[1] + codes[2], codes[3], codes[0], others)
        cells = (self.name, *ends, f"{self.slowest:.1f} s", f"{self.largest / 2**20:.0f} MiB", self.faults)
        return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())
