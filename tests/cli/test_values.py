"""What plainly is a value is taken as Typer takes it, and anything else goes Typer's own way, its messages included."""

from typing import Any

import pytest
import typer
from typer.core import TyperCommand
from typer.main import get_command

from vitcli.cli import values
from vitcli.cli.app import app

NUMBERS = ("3", "-3", "0", "+3", "1_0", "٣", "3.5", "-.5", "1e-3", "nan", "inf", "9" * 30)
WORDS = ("", " ", "auto", "AUTO", "fp32", "cpu", "a,b", "é", "=x", *NUMBERS)
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def kind_of(param: Any) -> tuple[str, bool, float | None]:
    descriptor = param.type_descriptor
    return str(descriptor.annotation), param.multiple or param.nargs == -1, descriptor.parameter_info.min


PARAMS = {kind_of(param): param for command in COMMANDS.values() for param in command.params}


def outcome(coerce: Any, param: Any, value: Any) -> tuple[str, Any]:
    ctx = typer.Context(TyperCommand("x"))
    try:
        found = coerce(value, param=param, ctx=ctx)
        return type(found).__name__, str(found)
    except typer.BadParameter as error:
        return "refused", error.format_message()


@pytest.mark.parametrize("kind", PARAMS, ids=str)
def test_as_typer_takes_it(kind: tuple[str, bool, float | None]) -> None:
    param = PARAMS[kind]
    for word in (*WORDS, None, 5, 0.25):
        value = (word, "x") if kind[1] and word is not None else word
        param._runtime_param = None
        how, theirs = outcome(param.get_runtime_param().coerce, param, value)
        # Pydantic's "Value error, " says nothing, and goes.
        expected = how, theirs.replace("Value error, ", "")
        assert outcome(values._Plain(param).coerce, param, value) == expected, word


def test_every_command_takes_them_so() -> None:
    assert {type(command) for command in COMMANDS.values()} == {values.Command}
