"""Words of a command line → the values that a command takes.

Typer coerces every word through Pydantic, whose import takes longer than `vit --help`. A word that plainly is what it
should be (any text, a whole number within its bounds, one of the choices) needs no such help; anything else goes
Typer's own way, and so does every message about it.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from typer import BadParameter
from typer.core import TyperCommand

_NUMBERS = {int: re.compile(r"-?[0-9]{1,15}"), float: re.compile(r"-?[0-9]{1,15}(\.[0-9]{0,15})?")}


class Command(TyperCommand):
    """A command whose values are plain where they can be."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        read_plainly(self.get_params(ctx))
        return super().parse_args(ctx, shard_alone(args))


_SHARD = re.compile(r"[-0-9/]+|auto")


def shard_alone(args: list[str]) -> list[str]:
    """`args` with the value that `--shard` has where none follows it: whatever follows is then something else."""
    if "--shard" not in args:
        return args
    place = args.index("--shard") + 1
    if "--" in args[: place - 1] or (place < len(args) and _SHARD.fullmatch(args[place])):
        return args
    return [*args[:place], "auto", *args[place:]]


def read_plainly(params: Iterable[Any]) -> None:
    """Let the values of Typer's `params` be what they plainly are."""
    for param in params:
        param._runtime_param = _Plain(param)  # where this is None, Typer makes its own when it is first needed


class _Plain:
    """Stands where Typer keeps its coercion of a parameter, and asks for that only when it is needed."""

    def __init__(self, param: Any) -> None:
        self._param = param

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        found = _several(self._param, value) if several else _plain(self._param, value)
        if found is not None:
            return found
        self._param._runtime_param = None
        try:
            return self._param.get_runtime_param().coerce(value, param=param, ctx=ctx)
        except BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # Pydantic's, which says nothing
            raise


def _several(param: Any, values: Any) -> list[str] | None:
    plain = param.type_descriptor.annotation == list[str] and isinstance(values, list | tuple)
    return list(values) if plain and all(type(value) is str for value in values) else None


def _plain(param: Any, value: Any) -> Any:
    """`value` as `param` wants it, None where that is not plain to see."""
    descriptor = param.type_descriptor
    kind, info = descriptor.annotation, descriptor.parameter_info
    if info.parser is not None:
        return None
    if kind is str or get_origin(kind) is Literal:
        known = kind is str or value in get_args(kind)
        return value if type(value) is str and known else None
    if kind not in _NUMBERS:
        return None
    if type(value) is str and _NUMBERS[kind].fullmatch(value):
        value = kind(value)
    low, high = info.min, info.max
    fits = type(value) is kind and (low is None or value >= low) and (high is None or value <= high)
    return value if fits else None
