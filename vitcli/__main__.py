"""`python -m vitcli`, and the function behind the console scripts `vit` and `vitcli`."""

import sys


def main() -> None:
    # A file name that is not UTF-8 must not end the run when it is printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from vitcli.privacy import caches_into_ours

    caches_into_ours()
    from vitcli.cli.app import app

    app()


if __name__ == "__main__":
    main()
