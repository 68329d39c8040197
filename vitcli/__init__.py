"""Vision Transformers from the command line and from Python. Importing this package imports nothing heavy."""

from typing import TYPE_CHECKING, Any

from vitcli.privacy import telemetry_off

if TYPE_CHECKING:
    from vitcli.inference.predict import Model, Prediction, Score, load, predict

telemetry_off()

__version__ = "0.1.0"
__all__ = ["Model", "Prediction", "Score", "__version__", "load", "predict"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vitcli.inference import predict

        return getattr(predict, name)
    raise AttributeError(f"module 'vitcli' has no attribute '{name}'")
