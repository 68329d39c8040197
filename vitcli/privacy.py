"""What other packages would send or leave behind by themselves, switched off (docs/design.md, 13).

`import vitcli` comes before each of our imports of theirs, and calls `telemetry_off`; the command line, which owns its
process, also moves their caches into ours. Whoever set one of these variables keeps it.
"""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `import vitcli` is to cost nothing
    from pathlib import Path

_TELEMETRY_OFF = {
    # A device ID and a database in the home folder, and look-ups of its vendor's host; read when it is imported.
    "ORT_DISABLE_TELEMETRY": "1",
    # Names of libraries and their versions with each request.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Usage statistics, and reports of their errors.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    # What a cluster is made of and how it is used, once an hour; read when Ray starts one.
    "RAY_USAGE_STATS_ENABLED": "0",
}
_CACHES = {
    "MPLCONFIGDIR": "matplotlib",  # its list of fonts, in ~/.cache and ~/.config
    "TORCHINDUCTOR_CACHE_DIR": "inductor",  # of --compile, in /tmp
    "TRITON_CACHE_DIR": "triton",
    "PYTORCH_KERNEL_CACHE_PATH": "kernels",
    "CUDA_CACHE_PATH": "cuda",  # in ~/.nv
}


def telemetry_off() -> None:
    for name, value in _TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    # OpenVINO reports its very import, and has no switch but to miss the package that reports.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def caches_into_ours() -> None:
    """Nothing is created here; a style that the user gave matplotlib still counts."""
    styles = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    style = os.path.join(styles, "matplotlib", "matplotlibrc")
    if "MPLCONFIGDIR" not in os.environ and os.path.isfile(style):
        os.environ.setdefault("MATPLOTLIBRC", style)
    for name, folder in _CACHES.items():
        os.environ.setdefault(name, str(our_cache() / folder))


def our_cache() -> "Path":
    """The folder of ours in the user's cache; it need not be there."""
    from pathlib import Path

    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vitcli"
