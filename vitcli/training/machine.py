"""What this machine has for a run: free memory, and instructions for half precision."""

from pathlib import Path

import torch


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


def emulated(amp: str, device: str) -> bool:
    """Whether `amp` is bfloat16 on a CPU that has no instructions for it: several times slower than float32."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = [known[name] for name in ("avx512_bf16", "amx_bf16") if name in known]  # x86 alone says so
    return amp == "bf16" and device == "cpu" and bool(native) and not any(native)
