"""Vision Transformers from the command line and from Python (docs/python.md). Importing this imports nothing heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitcli.privacy import telemetry_off

if TYPE_CHECKING:
    from vitcli.comparison.compare import compare
    from vitcli.inference.embed import Embedding, embed
    from vitcli.inference.evaluate import evaluate
    from vitcli.inference.predict import Model, Prediction, Score, load, predict
    from vitcli.inspection.explain import Explanation, explain
    from vitcli.inspection.look import inspect
    from vitcli.training.run import finetune, train

telemetry_off()

__version__ = "0.1.0"
__all__ = [
    "Embedding",
    "Explanation",
    "Model",
    "Prediction",
    "Score",
    "__version__",
    "compare",
    "embed",
    "evaluate",
    "explain",
    "finetune",
    "inspect",
    "load",
    "predict",
    "train",
]

_HOMES = {  # where each name is, which is imported when the name is first used
    **dict.fromkeys(("Model", "Prediction", "Score", "load", "predict"), "inference.predict"),
    **dict.fromkeys(("Embedding", "embed"), "inference.embed"),
    "evaluate": "inference.evaluate",
    **dict.fromkeys(("Explanation", "explain"), "inspection.explain"),
    "inspect": "inspection.look",
    **dict.fromkeys(("train", "finetune"), "training.run"),
    "compare": "comparison.compare",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"vitcli.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vitcli' has no attribute '{name}'")
