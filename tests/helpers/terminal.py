"""Command lines in this process, without a terminal."""

import shlex

from typer.testing import CliRunner, Result

from vitcli.cli.app import app


def vit(line: str, **options: object) -> Result:
    """`vit LINE`; a bug shows its traceback."""
    result = CliRunner().invoke(app, shlex.split(line), **options)  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def invoke(*arguments: object) -> Result:
    """`vit ARGUMENTS…`; a bug is an exit code of 1 and the result's `exception`."""
    return CliRunner().invoke(app, list(map(str, arguments)))
