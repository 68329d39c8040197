"""A dictionary from a file → a frozen dataclass, each value checked against the field's annotation.

Knows types only; which values make sense is for the dataclass, whose `__post_init__` may raise ValueError.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vitcli.errors import VitError
from vitcli.text import safe

T = TypeVar("T")


def read_typed(kind: type[T], values: Any, where: str = "") -> T:
    """`values`, a dictionary that JSON or TOML gave, as the dataclass `kind`; keys that it does not know are passed by.

    Raises ValueError, naming the value from `where` on down, for one that is missing or of the wrong type; integers
    beyond 64 bits, NaN and infinities are of the wrong type everywhere.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'it'} must be an object, not {shown(values)}")
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        name = f"{where}.{field.name}" if where else field.name
        if field.name in values:
            given[field.name] = typed_value(hints[field.name], values[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    try:
        return kind(**given)
    except VitError as error:  # a dataclass whose values a user may also type
        raise ValueError(str(error)) from None


def typed_value(hint: Any, value: Any, name: str) -> Any:
    """`value` as `hint` wants it: whole numbers for real ones, lists for tuples. Raises ValueError naming it `name`."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inside:
            return None
        (hint,) = (one for one in inside if one is not type(None))
        return typed_value(hint, value, name)
    if is_dataclass(hint):
        return read_typed(hint, value, name)  # type: ignore[arg-type]
    if origin is Literal:
        if not (isinstance(value, str) and value in inside):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, inside))}, not {shown(value)}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inside[0]] * len(value) if inside[-1] is Ellipsis else inside
        if len(value) == len(kinds):
            return tuple(
                typed_value(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: typed_value(inside[1], item, f"{name}.{safe(key, 40)}") for key, item in value.items()}
    elif hint is Any:
        return value
    elif hint is float and type(value) in (int, float) and _finite(value):
        return float(value)
    elif (hint is int and type(value) is int and _finite(value)) or (hint in (str, bool) and type(value) is hint):
        return value
    raise ValueError(f"{name} must be {_words(hint)}, not {shown(value)}")


def shown(value: Any) -> str:
    """`value` for a message, short and printable, whatever it is."""
    if isinstance(value, int) and not _finite(value):
        return "a number of more than 64 bits"
    try:
        return safe(repr(value), 60)
    except (ValueError, RecursionError):  # a number too long to be written, or lists too deep, inside it
        return f"a {type(value).__name__}"


def _finite(value: float) -> bool:
    return -(1 << 63) <= value < 1 << 63 if isinstance(value, int) else math.isfinite(value)


def _words(hint: Any) -> str:
    if get_origin(hint) is tuple:
        _, *more = get_args(hint)
        return "a list" if more == [Ellipsis] else f"a list of {1 + len(more)}"
    return {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "an object")
