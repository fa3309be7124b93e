"""Find the row that is to blame for an exception, by trying the rows in progress again."""

import errno
import logging
from collections.abc import Callable, Iterable

from astra.errors import BrokenElement, DatabaseError, MissingExtra, OutOfMemory, error_text
from astra.models.importing import cut_long_tracebacks
from astra.models.keys import RowKey
from astra.results.rows import HandedRow, described, place_of

log = logging.getLogger(__name__)


#: Errors of the operating system that no row causes: of disks, memory, network and mounts.
_SYSTEM_ERRORS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE,
        errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ECONNREFUSED,
        errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EREMOTEIO,
    }
)  # fmt: skip


class Blame:
    """Finds the row that is to blame, in groups of rows that are tried again by themselves.

    Parameters
    ----------
    task : the name of the task.
    suspects : groups of keys: the rows in progress when a process died.
    outer_exceptions : exceptions that no row is to blame for.
    fail : records that a row has failed.
    """

    def __init__(
        self,
        task: str,
        suspects: Iterable[list[RowKey]],
        outer_exceptions: tuple[type[BaseException], ...],
        fail: Callable[[HandedRow, BaseException], None],
    ) -> None:
        self.task, self.outer_exceptions, self.fail = task, outer_exceptions, fail
        self.groups = [([HandedRow(key, None) for key in group], True) for group in suspects][::-1]
        self.is_deadly = bool(self.groups)  # a process died before, and may die again
        #: About an exception that was raised when no row was in progress.
        self.note: str | None = None

    def next_group(self) -> tuple[list[HandedRow], bool] | None:
        """Return the rows that are tried next, and whether they are halved if that fails."""
        return self.groups.pop() if self.groups else None

    def find(self, error: BaseException, rows: list[HandedRow], began: bool, halve: bool) -> None:
        """Find the row that an exception belongs to, and record it; the others are tried again.

        Parameters
        ----------
        rows : the rows in progress.
        began : whether the task was given a row, or rightly none.
        halve : whether the rows are suspects already.

        Raises
        ------
        BrokenElement
            If it was not.
        """
        cut_long_tracebacks(error)
        text = described(error)
        which = f" at row {rows[0].key}" if len(rows) == 1 and rows[0].key is not None else ""
        line = place_of(error)
        place = f" ({line})" if line else ""
        log.error("%s raised%s: %s%s", self.task, which, text, place, exc_info=error)
        if not began:
            if "'generator'" in text:
                place += ". Its rows come as an iterable: annotate it as Iterable[...], and loop"
            message = f"{self.task} raised before it took a row: {text}{place}"
            raise BrokenElement(message) from error
        if not rows:
            # Every row has its result already: nothing is lost.
            self.note = f"{type(error).__name__} after a result: {error_text(error)}"
        elif len(rows) == 1:
            self.fail(rows[0], error)
        elif halve:
            middle = len(rows) // 2
            self.groups += [(rows[middle:], True), (rows[:middle], True)]
        else:
            # The last row is the likeliest; the others may have no result, or were collected.
            self.groups += [(rows[:-1], True), (rows[-1:], True)]

    def is_outer_exception(self, error: BaseException) -> bool:
        """Return whether an exception comes from outside, such as a full disk, not from a row."""
        return isinstance(error, (MissingExtra, DatabaseError, *self.outer_exceptions)) or (
            isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS
        )

    def refuse_outer_exception(self, error: BaseException) -> None:
        """Raise `BrokenElement` for an exception that no row is to blame for."""
        if not self.is_outer_exception(error):
            return
        if isinstance(error, MissingExtra):
            raise BrokenElement(f"{error}; the rows stay pending") from error
        text = described(error)
        if isinstance(error, MemoryError):
            raise OutOfMemory(f"{self.task} ran out of memory ({text})") from error
        raise BrokenElement(
            f"{text}: this is not attributed to a row ([element] outer_exceptions), and the "
            "rows stay pending"
        ) from error
