"""`python -m tests.fuzz.nodes`: two machines train together, and their network, or one of them, fails.

The machines are two network namespaces of this one, joined by a cable; their file system is shared, as a cluster's is.
Needs the right to make them (root, or CAP_SYS_ADMIN and CAP_NET_ADMIN). `tests/training/test_nodes.py` does one of it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.helpers.data import write_idx
from tests.helpers.process import environment

STEPS = 30
# The command line, with a state saved at every step.
SCRIPT = """
from functools import partial
from vitcli.training import train as training
from vitcli.training.fit import fit
training.fit = partial(fit, save_every=0.0)
from vitcli.__main__ import main
main()
"""
SIZES = ("img_size=[16,16]", "patch_size=[4,4]", "embed_dim=24", "depth=2", "num_heads=3")


def may_make_networks() -> bool:
    """Whether this process may make network namespaces, and has the tools."""
    if not (shutil.which("ip") and sys.platform == "linux"):
        return False
    probe = f"vit-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return False
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return True


@dataclass
class Nodes:
    """Two machines and the cable between them."""

    place: Path
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def name(self, node: int) -> str:
        return f"vit{os.getpid()}n{node}"

    def cable(self, node: int) -> str:
        return f"vt{os.getpid() % 100000}n{node}"

    def address(self, node: int) -> str:
        return f"10.213.{os.getpid() % 250}.{node + 1}"

    def start(self, node: int, arguments: list[str], restarts: int = 3) -> None:
        """torchrun on that machine, and with it its share of the work."""
        torchrun = [
            *[sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=test"],
            *["--rdzv-backend=c10d", f"--rdzv-endpoint={self.address(0)}:29411", f"--max-restarts={restarts}"],
            f"--rdzv-conf=is_host={int(node == 0)}",  # which torchrun tells by the name of the machine elsewhere
            *[f"--local-addr={self.address(node)}", str(self.place / "script.py"), *arguments],
        ]
        with (self.place / f"log-{node}").open("ab") as log:  # which the child keeps
            self.running[node] = subprocess.Popen(
                ["ip", "netns", "exec", self.name(node), *torchrun],
                env=environment(
                    GLOO_SOCKET_IFNAME=self.cable(node), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", CUDA_VISIBLE_DEVICES=""
                ),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, node: int) -> None:
        """As a power cut does it: torchrun and what it started."""
        listed = subprocess.run(["ip", "netns", "pids", self.name(node)], capture_output=True, text=True, check=True)
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.running.pop(node).wait()

    def link(self, state: str) -> None:
        """The cable is `up`, or `down`."""
        ip("-n", self.name(0), "link", "set", self.cable(0), state)

    def slow_down(self, delay: str, rate: str) -> None:
        """Both directions by netem. Raises CalledProcessError where the kernel has none."""
        for node in (0, 1):
            limits = ["delay", delay, "rate", rate]
            subprocess.run(
                ["tc", "-n", self.name(node), "qdisc", "add", "dev", self.cable(node), "root", "netem", *limits],
                check=True, capture_output=True,
            )  # fmt: skip

    def wait(self, seconds: float = 240) -> None:
        """For both to end well. Raises RuntimeError with what they said otherwise."""
        deadline = time.monotonic() + seconds
        for node, process in self.running.items():
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = -1
            if code:
                raise RuntimeError(
                    f"node {node} ended with {code}:\n{(self.place / f'log-{node}').read_text()[-3000:]}"
                )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def two_nodes(place: Path) -> Iterator[Nodes]:
    """Two machines, gone with all that ran on them at the end."""
    nodes = Nodes(place)
    (place / "script.py").write_text(SCRIPT)
    try:
        for node in (0, 1):
            ip("netns", "add", nodes.name(node))
        ip(
            "link",
            "add",
            nodes.cable(0),
            "netns",
            nodes.name(0),
            "type",
            "veth",
            "peer",
            "name",
            nodes.cable(1),
            "netns",
            nodes.name(1),
        )
        for node in (0, 1):
            ip("-n", nodes.name(node), "addr", "add", f"{nodes.address(node)}/24", "dev", nodes.cable(node))
            for device in ("lo", nodes.cable(node)):
                ip("-n", nodes.name(node), "link", "set", device, "up")
        yield nodes
    finally:
        for node in (0, 1):
            if node in nodes.running:
                with suppress(subprocess.CalledProcessError):
                    nodes.kill(node)
            subprocess.run(["ip", "netns", "del", nodes.name(node)], capture_output=True)


def command(data: Path, out: Path) -> list[str]:
    """What each machine is told: begin this run, or go on with it."""
    more = [f"--set={one}" for one in (*SIZES, f"steps={STEPS}", "micro_batch=8", "amp=fp32")]
    return [
        *["train", "--data", str(data), "--out", str(out), "--resume", "auto", "--batch-size", "16", *more],
        *["--device", "cpu", "--score", "none", "--workers", "0"],
    ]


def make_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    write_idx(folder, "train", rng.integers(0, 256, (100, 16, 16)), np.arange(100) % 3)
    return folder


def losses(run: Path) -> list[float]:
    """Of each step that is on record."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        with suppress(ValueError):  # the last one, while it is written
            entry = json.loads(line)
            found += [entry["loss"]] if entry["event"] == "stepped" else []
    return found


def wait_for_steps(nodes: Nodes, run: Path, count: int, seconds: float = 180) -> None:
    """Return once so many steps are on record. Raises RuntimeError when that takes too long."""
    deadline = time.monotonic() + seconds
    while len(losses(run)) < count:
        if time.monotonic() > deadline or any(one.poll() for one in nodes.running.values()):
            said = (nodes.place / "log-0").read_text()[-3000:]
            raise RuntimeError(f"{len(losses(run))} steps, not {count}:\n{said}")
        time.sleep(0.05)


def undisturbed(nodes: Nodes, run: Path) -> None:
    pass


def killed(nodes: Nodes, run: Path) -> None:
    """The second machine loses its power, and comes back seconds later with the same command."""
    wait_for_steps(nodes, run, 5)
    nodes.kill(1)
    time.sleep(2)
    nodes.start(1, command(nodes.place / "data", run))


def cut(nodes: Nodes, run: Path) -> None:
    """The cable is out for ten seconds."""
    wait_for_steps(nodes, run, 5)
    nodes.link("down")
    time.sleep(10)
    nodes.link("up")


def slow(nodes: Nodes, run: Path) -> None:
    """20 ms and 10 Mbit/s each way."""
    nodes.slow_down("20ms", "10mbit")


SCENARIOS: dict[str, Callable[[Nodes, Path], None]] = {
    "undisturbed": undisturbed, "killed": killed, "cut": cut, "slow": slow,
}  # fmt: skip


def train(place: Path, scenario: str) -> list[float]:
    """The losses of a run by two machines in the folder `place`, to which the scenario happens."""
    run = place / scenario
    with two_nodes(place) as nodes:
        if scenario == "slow":
            slow(nodes, run)
        for node in (0, 1):
            nodes.start(node, command(place / "data", run))
        if scenario != "slow":
            SCENARIOS[scenario](nodes, run)
        nodes.wait()
    return losses(run)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.nodes", description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    chosen = parser.parse_args()
    if not may_make_networks():
        raise SystemExit("network namespaces cannot be made here")
    place = Path(tempfile.mkdtemp(prefix="vit-nodes-"))
    make_data(place / "data")
    whole = train(place, "undisturbed")
    print(f"undisturbed: {len(whole)} steps, loss {whole[0]:.4f} to {whole[-1]:.4f}", flush=True)
    faults = len(whole) != STEPS
    for name in chosen.only or [one for one in SCENARIOS if one != "undisturbed"]:
        began = time.monotonic()
        try:
            same = train(place, name) == whole
        except subprocess.CalledProcessError as error:
            print(f"{name}: not tried: {error.stderr!r}", flush=True)
            continue
        faults += not same
        print(f"{name}: {'the same losses' if same else 'OTHER LOSSES'}, {time.monotonic() - began:.0f} s", flush=True)
    shutil.rmtree(place)
    return int(faults)


if __name__ == "__main__":
    sys.exit(main())
