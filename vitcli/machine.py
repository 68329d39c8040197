"""What this machine has: cores, devices, free memory, instructions for half precision. Imports torch only to ask it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vitcli import __version__

# Variables that make other libraries compute by other instructions or in another order.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


def what_decides_bits(device: str | None = None) -> dict[str, Any]:
    """What the bits of a result depend on beside settings and data: where all of this is equal, the bits are."""
    import torch
    from PIL import features

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
    """Bytes of memory that the GPU `device`, or this machine, could still give; None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(available[0]) if available else None


def decoding_threads() -> int:
    """How many threads decode images beside a model that is not trained: this process's share of the cores.

    OMP_NUM_THREADS does not count: it is about computing, and `torchrun` sets it to 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def default_workers(kind: str, device: str) -> int:
    """How many processes decode images beside training, for data of this `kind` ("folders", "manifest", "idx").

    For a GPU, which would wait for its images, this process's share of the cores, up to 16. On a CPU one a core, up to
    four, and none where the images are in memory already ("idx").
    """
    cores = os.cpu_count() or 1
    if device.startswith("cuda"):
        return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return 0 if kind == "idx" else min(4, cores)


def emulated(amp: str, device: str) -> bool:
    """Whether `amp` is bfloat16 on a CPU that has no instructions for it: several times slower than float32."""
    import torch

    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = [known[name] for name in ("avx512_bf16", "amx_bf16") if name in known]  # x86 alone says so
    return amp == "bf16" and device == "cpu" and bool(native) and not any(native)


def available_cpus() -> int:
    """Cores this process may use: OMP_NUM_THREADS, as in torch, or those that the system lets it run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_visible() -> bool:
    """Whether there is an NVIDIA driver and this process may use it, without importing torch to ask."""
    return Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def default_device() -> str:
    """What torch computes on unless it is told otherwise."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
