"""Signals that ask a run to stop: the first lets the step finish and the state be saved, the second ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vitcli.errors import EXIT_CTRL_C, EXIT_STOPPED

SIGNALS = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])


class StopFlag:
    """`exit_code` is 0 until a signal has come: then 130 for Ctrl-C, 75 for SIGTERM and SIGUSR1."""

    exit_code = 0

    def _received(self, number: int, _: FrameType | None) -> None:
        if self.exit_code:
            os._exit(self.exit_code)
        self.exit_code = EXIT_CTRL_C if number == signal.SIGINT else EXIT_STOPPED


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Signals set the flag inside the block; the former handlers come back after it."""
    flag = StopFlag()
    former = {number: signal.signal(number, flag._received) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
