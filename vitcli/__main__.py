"""`python -m vitcli`, and the function behind the console scripts `vit` and `vitcli`."""

import sys


def main() -> None:
    if sys.platform == "win32":
        print("error: vit runs on Linux and macOS; on Windows, use it in WSL", file=sys.stderr)
        raise SystemExit(1)
    # A file name that is not UTF-8 must not end the run when it is printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from vitcli.cli.app import app

    app()


if __name__ == "__main__":
    main()
