"""`python -m vitcli`, and the function behind the console scripts `vit` and `vitcli`."""

import os
import sys
import warnings


def main() -> None:
    # A file name that is not UTF-8 must not end the run when it is printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Libraries warn of damage that our own lines tell of: Pillow of a file's tags, NumPy of infinities.
    if not sys.warnoptions and not os.environ.get("VIT_DEBUG"):
        warnings.simplefilter("ignore")
    from vitcli.cli.app import app

    app()


if __name__ == "__main__":
    main()
