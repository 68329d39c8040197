"""What this machine has: cores, devices, free memory, instructions for half precision. Imports torch only to ask it."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from vitcli import __version__

# Variables that make other libraries compute by other instructions or in another order.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


Precision = Literal["fp32", "bf16", "fp16"]

SMALL_IMAGE = 64 * 64  # pixels


def what_decides_bits(device: str | None = None) -> dict[str, Any]:
    """What the bits of a result depend on beside settings and data: where all of this is equal, the bits are."""
    from importlib.metadata import version

    import torch
    from PIL import features

    place = device or default_device()
    on_gpu = place.startswith("cuda")
    names = ("torch", "torchvision", "timm", "numpy", "pillow")
    versions = {"vitcli": __version__, **{name: version(name) for name in names}}
    versions["libjpeg"] = str(features.version("libjpeg_turbo") or features.version("jpg"))
    if on_gpu:
        versions["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    has = sorted(name for name, value in known.items() if value is True)
    return {
        "versions": versions,
        "python": platform.python_version(),
        "processes": int(os.getenv("WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name(torch.device(place)) if on_gpu else place,
        "processor": processor(),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *has]),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def processor() -> str:
    """The kind of this machine's processor, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    known: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in kinds:
            known.setdefault(name.strip(), value.strip())
    return " ".join(known.values()) or platform.processor() or platform.machine()


def memory_free(device: str) -> int | None:
    """Bytes of memory that `device`, or this machine, could still give; None where the system does not say."""
    if not on_cpu(device):
        import torch

        asked = getattr(torch.get_device_module(device), "mem_get_info", None)  # Apple's has none
        return None if asked is None else int(asked(torch.device(device))[0])
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*available, *_left_by_groups()], default=None)


def _left_by_groups(root: Path = Path("/")) -> Iterator[int]:
    """Bytes of memory that the control groups of this process, those of a container or a job, leave it.

    What they hold of files that nobody uses counts as free. Both versions: docs.kernel.org/admin-guide/cgroup-v2.html.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        mount, most, used = "sys/fs/cgroup", "memory.max", "memory.current"
        if kinds:
            mount, most, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        if kinds and "memory" not in kinds.split(","):
            continue
        own = root / mount / path.lstrip("/")
        for group in (own, *own.parents[: len(own.relative_to(root / mount).parts)]):
            with suppress(OSError, ValueError):  # "max": no limit
                stat = dict(one.split() for one in (group / "memory.stat").read_text().splitlines())
                limit, now = int((group / most).read_text()), int((group / used).read_text())
                yield max(0, limit - now + int(stat["inactive_file"]))


def decoding_threads(pixels: int) -> int:
    """How many threads decode images beside a model that is not trained, which sees `pixels` of each.

    This process's share of the cores; of small images, at which threads wait for Python's lock more than they decode,
    four at most. OMP_NUM_THREADS does not count: it is about computing, and `torchrun` sets it to 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(4, share) if pixels <= SMALL_IMAGE else share


def default_workers(kind: str, device: str) -> int:
    """How many processes decode images beside training, for data of this `kind` ("folders", "manifest", "idx").

    For an accelerator, which would wait for its images, this process's share of the cores, up to 16. On a CPU one a
    core, up to four, and none where the images are in memory already ("idx").
    """
    cores = os.cpu_count() or 1
    if not on_cpu(device):
        return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return 0 if kind == "idx" else min(4, cores)


def best_precision(device: str) -> Precision:
    """What the forward pass of a training is fastest in on `device` without losing accuracy.

    bfloat16 where there are instructions for it, float16 on NVIDIA's older GPUs, float32 elsewhere. Apple's GPUs are
    left at float32: none was there to try another.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"  # natively
    return "bf16" if kind == "xpu" or (kind == "cpu" and any(_instructions_for("bf16"))) else "fp32"


def emulated(amp: str, device: str) -> bool:
    """Whether `device` has no instructions for the precision `amp`: several times slower than float32 there."""
    import torch

    if device.startswith("cuda"):
        return amp == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False)
    native = _instructions_for(amp)
    return on_cpu(device) and bool(native) and not any(native)


_INSTRUCTIONS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}


def _instructions_for(amp: str) -> list[bool]:
    """Which of the CPU's instructions for `amp` are there; none are known of on processors other than x86."""
    import torch

    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return [known[name] for name in _INSTRUCTIONS.get(amp, ()) if name in known]


def available_cpus() -> int:
    """Cores this process may use: OMP_NUM_THREADS, as in torch, or those that the system lets it run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DRIVERS = ("/proc/driver/nvidia/version", "/dev/dxg", "/dev/kfd")  # NVIDIA; Windows's GPU inside WSL2; AMD
INTEL = "/dev/dri"  # of any maker's graphics, so that torch's build has to be Intel's, too
KINDS = ("cuda", "mps", "xpu")  # NVIDIA's and AMD's, Apple's, Intel's GPUs, as torch calls them


def gpu_visible() -> bool:
    """Whether there seems to be a GPU that this process and the installed torch may use, without importing torch.

    A guess on the generous side, for a question that `default_device` answers, seconds later.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    hidden = any(os.environ.get(name) in ("", "-1") for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))
    driver = not hidden and any(Path(driver).exists() for driver in DRIVERS)
    if not driver and not Path(INTEL).exists():
        return False
    from importlib.metadata import PackageNotFoundError, version  # as much as a tenth of a prediction

    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        return False
    return build == "xpu" or (driver and build != "cpu")


def default_device() -> str:
    """What torch computes on unless it is told otherwise."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None and found.type in KINDS else "cpu"


def own_device() -> str | None:
    """The GPU of this process, of several that `torchrun` or `srun` started on a machine with several; else None."""
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if not number.isdecimal() or not gpu_visible() or (kind := default_device()) not in ("cuda", "xpu"):
        return None
    import torch

    count = torch.accelerator.device_count()
    return f"{kind}:{int(number) % count}" if count > 1 else None


def devices() -> list[str]:
    """Every name of a device that torch can compute on here, the CPU's first; several GPUs have numbers, too."""
    import torch

    kind = default_device()
    if kind == "cpu":
        return ["cpu"]
    return ["cpu", kind, *(f"{kind}:{number}" for number in range(torch.accelerator.device_count()))]


def on_cpu(device: str) -> bool:
    """Whether `device` is the CPU itself."""
    return device.partition(":")[0] == "cpu"


def wait_for(device: str) -> None:
    """Return when `device` has done what it was asked for. The CPU has."""
    if not on_cpu(device):
        import torch

        torch.accelerator.synchronize(torch.device(device))
