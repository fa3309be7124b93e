"""The states of rows, pages, plans and Slurm jobs, and what each means."""

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class Outcome(IntEnum):
    """How one row of a plan ended: one byte per row, stored with its page."""

    PENDING = 0  # not ended yet
    RESULT = 1  # a stored result
    FAILURE = 2  # a recorded failure
    NO_RESULT = 3  # the task yielded nothing for it


#: The columns of pages and attempts that count rows by how they ended.
COUNTED = {
    "n_done": Outcome.RESULT,
    "n_failed": Outcome.FAILURE,
    "n_no_result": Outcome.NO_RESULT,
}


class AttemptState(StrEnum):
    """The state of one execution of a page, as its element recorded it."""

    RUNNING = "running"  # it has claimed the page and recorded no end
    DONE = "done"  # every row of the page has ended
    INTERRUPTED = "interrupted"  # asked to stop; its yielded results are stored
    BROKEN = "broken"  # the task failed outside of any row
    DIED = "died"  # its process crashed; the element went on with another attempt
    SUPERSEDED = "superseded"  # another attempt took the page


#: States in which a page belongs to its attempt's element while that lives: after a crash, the
#: element's parent restarts its child, which continues the page.
HELD = (AttemptState.RUNNING.value, AttemptState.DIED.value)


class PageState(StrEnum):
    """The state of a page, from the database and Slurm together."""

    DONE = "done"  # every row has ended
    RUNNING = "running"  # its element is running
    WAITING = "waiting"  # its element is queued
    UNSUBMITTED = "unsubmitted"  # it has no element
    INTERRUPTED = "interrupted"  # its element was asked to stop, and recorded it
    BROKEN = "broken"  # its task failed outside of any row
    LOST = "lost"  # its element ended without a record; rows are missing
    INCOMPLETE = "incomplete"  # its element is COMPLETED in Slurm; rows are missing
    UNKNOWN = "unknown"  # Slurm gave no answer
    CANCELLED = "cancelled"  # the plan was cancelled before it ran


#: Pages whose element is or may be alive, which are never submitted again.
ALIVE = frozenset({PageState.RUNNING, PageState.WAITING, PageState.UNKNOWN})


#: The names by which a status counts rows that have ended.
ENDED = ("done", "failed", "no result")


class PlanState(StrEnum):
    """The state of a plan, with the exit status of ``astra status``.

    Examples
    --------
    >>> from astra.api import PlanState
    >>> PlanState("failed rows").exit_status
    8
    """

    WHOLE = "whole"  #: every row has a result, or correctly none: 0
    FAILED_ROWS = "failed rows"  #: every row has ended, some as failures: 8
    RUNNING = "running"  #: elements are running or waiting: 3
    ATTENTION = "attention"  #: rows are left and an action is needed: 4
    CANCELLED = "cancelled"  #: cancelled by a user: 0

    @property
    def exit_status(self) -> int:
        statuses = {"whole": 0, "failed rows": 8, "running": 3, "attention": 4, "cancelled": 0}
        return statuses[self.value]


#: Several plans together are in the first of these states that one of them has.
_WORST_FIRST = (
    PlanState.ATTENTION, PlanState.RUNNING, PlanState.FAILED_ROWS, PlanState.CANCELLED,
)  # fmt: skip


def worst(states: Iterable[PlanState]) -> PlanState:
    """Return the state of several plans together: that of the plan that most needs an action."""
    present = set(states)
    return next((state for state in _WORST_FIRST if state in present), PlanState.WHOLE)


class SlurmState(StrEnum):
    """The state of one element in Slurm."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    ABSENT = "ABSENT"  # both squeue and sacct answered, and neither knows it

    @property
    def alive(self) -> bool:
        return self in (SlurmState.PENDING, SlurmState.RUNNING)


#: The exceptions of rows that are given up because they ended their process.
KILLED, OUT_OF_MEMORY, TIMED_OUT = "KilledProcess", "OutOfMemory", "RowTimeout"

QUARANTINED = (KILLED, OUT_OF_MEMORY, TIMED_OUT)

#: The exception of rows that were not in their table when they were to be read.
INPUT_GONE = "InputGone"
