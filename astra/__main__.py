"""``python -m astra`` is the ``astra`` command."""

import errno
import os
import sys

from astra.processes import collect_seldom

#: What a full disk, or one that is gone, says of what is written to it.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def run() -> None:
    """Do what the command line says, and exit."""
    collect_seldom()  # before the imports
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, "r+"))
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            # Whatever the locale: a λ in a message or printed by a task is no error.
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
        if error.errno == errno.EPIPE:  # whoever read has read enough, as head has
            os._exit(1)
        if error.errno not in _FULL:
            raise
        sys.stderr.write(
            f"astra: its output could not be written: {error.strerror}; its work is done: "
            "astra status shows it\n"
        )
        sys.stderr.flush()
        os._exit(1)  # the rest of the output would be tried once more, and fail again


def _do() -> None:
    if sys.argv[1:2] == ["run-page"]:  # an element does not wait for the command line
        from astra.run_page import main as run_page

        sys.exit(run_page(sys.argv[2:]))
    from astra.cli import main

    main()


if __name__ == "__main__":
    run()
