"""``python -m astra`` is the ``astra`` command."""

import errno
import os
import sys

from astra.processes import collect_garbage_rarely, open_streams

#: Errors of writing to a disk that is full or not available.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)

#: How long a command waits for what its task has left running.
_LINGER_S = 60.0


def run() -> None:
    """Run the command of the command line, and exit."""
    collect_garbage_rarely()  # before the other imports
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            # A λ in a message or in the output of a task is not an error in any locale.
            reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        os.getcwd()
    except OSError:
        sys.stderr.write("astra: the current folder was removed: go to another one, cd FOLDER\n")
        sys.exit(1)
    try:
        try:
            _do()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader, such as head, has closed the pipe
            os._exit(1)
        if error.errno not in _FULL:
            raise
        sys.stderr.write(
            f"astra: the output could not be written: {error.strerror}; the command itself is "
            "complete: astra status shows what it did\n"
        )
        sys.stderr.flush()
        os._exit(1)  # exiting normally would write the rest of the output, and fail again


def _do() -> None:
    if sys.argv[1:2] == ["run-page"]:  # an element does not load the command line
        from astra.run_page import main as run_page

        sys.exit(run_page(sys.argv[2:]))
    from astra.cli import main

    try:
        main()
    except SystemExit as end:
        from astra.config.startup import end_within

        end_within(_LINGER_S, end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


if __name__ == "__main__":
    run()
