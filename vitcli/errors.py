"""The errors a user may see, and the exit code of each. Knows nothing of terminals.

    VitError                 1   something could not be done
    ├── UsageError           2   the command line asks for something that makes no sense
    ├── CheckpointError      1   a checkpoint is missing, damaged or not what its config says
    │   └── HubError         1   the Hub could not give a file
    ├── ImageError           1   one image cannot be read (a batch goes on without it)
    │   └── StoreError       1   nor can others perhaps: where it lies does not answer
    ├── DataError            1   a data set is not usable
    │   ├── AmbiguousData    1   its folders can be read in two ways
    │   └── ArchiveError     1   an archive cannot be read, or not to its end
    └── Stopped             75   stopped by a signal after saving; 130 for Ctrl-C

A message is one line: what is wrong, in which file, what to do next. Anything that is not a VitError is a bug
and keeps its traceback.
"""

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_SOME_FAILED, EXIT_STOPPED, EXIT_CTRL_C = 0, 1, 2, 3, 75, 130


class VitError(Exception):
    """Something the user can act upon. `str(error)` is the line that is shown."""

    exit_code = EXIT_FAILED


class UsageError(VitError):
    exit_code = EXIT_USAGE


class CheckpointError(VitError):
    pass


class HubError(CheckpointError):
    pass


class ImageError(VitError):
    pass


class StoreError(ImageError):
    """The store that an image lies in did not give it, in several tries; later it may."""


class DataError(VitError):
    pass


class AmbiguousData(DataError):
    """Folders that can be read in two ways: `what` is there, and `advice` on how to say which way is meant."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}{' ' if what.endswith('?') else ': '}{advice}")
        self.what, self.advice = what, advice


class ArchiveError(DataError):
    """An archive that cannot be read to its end, and `why`; what was read before is whole."""

    def __init__(self, archive: str, why: str) -> None:
        super().__init__(f"{archive}: {why}")
        self.why = why


class Stopped(VitError):
    """A run stopped by a signal: its state is saved, and the message says how to go on."""

    def __init__(self, message: str, exit_code: int = EXIT_STOPPED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
