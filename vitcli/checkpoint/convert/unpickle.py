"""The child process of `pickles`: reads a PyTorch pickle under limits and writes its tensors as safetensors.

Run by its path, with nothing of this package imported, in an environment that holds no token. Prints one JSON object:
{"container": key path of the weights} or {"error": why not}.

    python unpickle.py SOURCE DESTINATION
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

GIB = 1 << 30
# Which of several models in one file, the first that is there: averaged weights before the raw ones
PREFERRED = ("teacher", "state_dict_ema", "model_ema", "ema", "state_dict", "model", "student", "")


def limit_resources(size: int) -> None:
    """Memory and file size in proportion to the pickle's `size`, and CPU time; nothing on systems without limits."""
    try:
        import resource
    except ImportError:
        return
    taken = 4 * GIB  # what torch itself has mapped, where the system does not tell
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, taken + 4 * size + GIB),
        (resource.RLIMIT_FSIZE, 4 * size + GIB // 16),
        (resource.RLIMIT_CPU, 120 + size // (20 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with suppress(ValueError, OSError):  # a kind of limit that this system has not
            resource.setrlimit(kind, (limit, limit))


def models_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(keys to it, tensors) of every mapping with tensors, down to three levels."""
    import torch

    if isinstance(value, torch.nn.Module) or not isinstance(value, Mapping) or len(path) > 3:
        return
    tensors = {str(key): item for key, item in value.items() if isinstance(item, torch.Tensor)}
    if len(tensors) > 1 or (tensors and not path):  # one alone: a part of a model in several files
        yield path, tensors
    for key, item in value.items():
        yield from models_in(item, (*path, str(key)))


def unpickle(source: str, destination: str) -> dict[str, str]:
    import torch
    from safetensors.torch import save_file

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 10):
        return {"error": f"torch {torch.__version__} reads pickles unsafely (CVE-2026-24747); 2.10 or newer is needed"}
    limit_resources(os.path.getsize(source))
    # The settings of a training run, in the files of DINO, DeiT and MAE: plain values in a plain object.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=False)
    models = {path: tensors for path, tensors in models_in(content) if path[:1] != ("optimizer",)}
    if not models:
        return {"error": "no weights in it: no dictionary of tensors"}
    wanted = {name: rank for rank, name in enumerate(PREFERRED)}
    path = min(models, key=lambda keys: (wanted.get(keys[0] if keys else "", len(wanted)), len(keys)))
    tensors = {}
    for name, tensor in models[path].items():
        dense = tensor.detach()
        dense = dense if dense.is_floating_point() else dense.to(torch.int64)
        tensors[name] = dense.contiguous().clone()  # shared memory would be refused
    save_file(tensors, destination)
    return {"container": ".".join(path)}


def main() -> None:
    try:
        answer = unpickle(*sys.argv[1:3])
    except MemoryError:
        answer = {"error": "it takes more memory than weights of its size can need"}
    except Exception as error:  # whatever a hostile file brings about is one line for the parent
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
