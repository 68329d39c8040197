"""Writes docs/cli.md, the reference of every command, from the commands themselves.

    python docs/make_cli.py

A test compares the file with what this would write.
"""

from pathlib import Path

from typer.testing import CliRunner

from vitcli.cli.app import app

INTRODUCTION = """# Command line

Written by `python docs/make_cli.py` from the commands themselves. Data goes to standard output, everything else to
standard error. Exit codes: 0 done · 1 failed · 2 wrong usage · 3 finished, but some inputs failed · 75 stopped by a
signal after saving · 130 Ctrl-C. `VIT_DEBUG=1` shows the traceback behind a one-line error.
"""


def command_names() -> list[str]:
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    return [name.replace("_", "-") for name in names]


def reference() -> str:
    """The whole page."""
    runner = CliRunner()
    parts = [INTRODUCTION]
    for name in ["", *command_names()]:
        arguments = [name, "--help"] if name else ["--help"]
        text = runner.invoke(app, arguments, env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}, prog_name="vit").stdout
        lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
        parts.append(f"## `vit{' ' + name if name else ''}`\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference(), "utf-8")
