"""What this machine has for a run: free memory, processes that decode, and instructions for half precision."""

import os
from pathlib import Path

import torch

from vitcli.data.samples import Kind


def memory_free(device: str) -> int | None:
    """Bytes that the GPU, or this machine, could still give; None where nobody says."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(available[0]) if available else None


def decoding_threads() -> int:
    """Of a pass without training, which decodes beside the model in one process."""
    return min(4, os.cpu_count() or 1)


def default_workers(kind: Kind, device: str) -> int:
    """Decoding processes. For a GPU, which would wait for its images, this process's share of the cores, up to 16.

    Beside training on a CPU none for images in memory, else one a core, up to four.
    """
    cores = os.cpu_count() or 1
    if device.startswith("cuda"):
        return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return 0 if kind == "idx" else min(4, cores)


def emulated(amp: str, device: str) -> bool:
    """Whether `amp` is bfloat16 on a CPU that has no instructions for it: several times slower than float32."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = [known[name] for name in ("avx512_bf16", "amx_bf16") if name in known]  # x86 alone says so
    return amp == "bf16" and device == "cpu" and bool(native) and not any(native)
