"""`python -m vitcli`, and the function behind the console scripts `vit` and `vitcli`."""

import io
import os
import sys
import warnings
from contextlib import suppress


def main() -> None:
    """Run `vit` on this process's arguments, streams and environment."""
    if sys.platform == "win32":
        print("error: vit runs on Linux and macOS; on Windows, use it in WSL", file=sys.stderr)
        raise SystemExit(1)
    _ready_streams()
    # Libraries warn of damage that our own lines tell of: Pillow of a file's tags, NumPy of infinities.
    if not sys.warnoptions and not os.environ.get("VIT_DEBUG"):
        warnings.simplefilter("ignore")
    from vitcli.privacy import caches_into_ours

    caches_into_ours()
    from vitcli.cli.app import app

    app()


class _Notes(io.TextIOWrapper):
    """Standard error. Nobody reads it when its pipe is closed or its disk full; the work goes on all the same."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _ready_streams() -> None:
    """Make the three standard streams usable, whatever the caller left of them.

    The number of a closed stream would be given to the next file that is opened, and notes would be written into that
    file. So each is opened again: standard input to read nothing, standard error to lose its notes, standard output so
    that writing data to it fails instead of losing them.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free: this one
        else:
            if hasattr(os, "set_blocking"):
                os.set_blocking(number, True)  # through a pipe that a caller polls, data would come half
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")
    if isinstance(stderr, io.TextIOWrapper):
        sys.stderr = _Notes(stderr.detach(), stderr.encoding, line_buffering=True)
    # A file name that is not UTF-8 must not end the run when it is printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
