"""The states of rows, pages and Slurm jobs, and what each means.

Slurm's own words are mapped in one function, :func:`slurm_state`; an unknown word raises.
"""

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class Outcome(IntEnum):
    """How one row of a plan ended: one byte per row, stored with its page."""

    PENDING = 0  # not ended yet
    RESULT = 1  # a stored result
    FAILURE = 2  # a recorded failure
    NO_RESULT = 3  # the task yielded nothing for it


#: The columns of pages and attempts that count the rows that ended so.
COUNTED = {
    "n_done": Outcome.RESULT,
    "n_failed": Outcome.FAILURE,
    "n_no_result": Outcome.NO_RESULT,
}


class AttemptState(StrEnum):
    """How one execution of one page stands, in the words of the element itself."""

    RUNNING = "running"  # claimed, and has not ended as far as is known
    DONE = "done"  # every row of the page has ended
    INTERRUPTED = "interrupted"  # asked to stop; its yielded results are stored
    BROKEN = "broken"  # the task failed outside of any row
    DIED = "died"  # its process crashed; the element went on with another attempt
    SUPERSEDED = "superseded"  # another attempt took the page


class PageState(StrEnum):
    """Where a page stands, from the database and Slurm together."""

    DONE = "done"  # every row has ended
    RUNNING = "running"  # its element lives
    WAITING = "waiting"  # its element is queued
    UNSUBMITTED = "unsubmitted"  # no element was asked for
    INTERRUPTED = "interrupted"  # its element was asked to stop and said so
    BROKEN = "broken"  # its task failed outside of any row
    LOST = "lost"  # its element ended without a word, rows are missing
    INCOMPLETE = "incomplete"  # Slurm calls its element COMPLETED, rows are missing
    UNKNOWN = "unknown"  # Slurm gave no answer
    CANCELLED = "cancelled"  # the plan was cancelled before it ran


#: Pages whose element lives or may live: never submitted again.
ALIVE = frozenset({PageState.RUNNING, PageState.WAITING, PageState.UNKNOWN})


#: What a status counts rows by that have ended.
ENDED = ("done", "failed", "no result")


class PlanState(StrEnum):
    """A plan as a whole, with the exit status of ``astra status``.

    Examples
    --------
    >>> from astra.api import PlanState
    >>> PlanState("failed rows").exit_status
    8
    """

    WHOLE = "whole"  #: every row has a result, or rightly none: 0
    FAILED_ROWS = "failed rows"  #: every row has ended, some as failures: 8
    RUNNING = "running"  #: something lives that will go on by itself: 3
    ATTENTION = "attention"  #: somebody has to do something: 4
    CANCELLED = "cancelled"  #: given up on purpose: 0

    @property
    def exit_status(self) -> int:
        statuses = {"whole": 0, "failed rows": 8, "running": 3, "attention": 4, "cancelled": 0}
        return statuses[self.value]


#: Plans together are in the first of these states that one of them is in.
_WORST_FIRST = (
    PlanState.ATTENTION, PlanState.RUNNING, PlanState.FAILED_ROWS, PlanState.CANCELLED,
)  # fmt: skip


def worst(states: Iterable[PlanState]) -> PlanState:
    """The state of several plans together: that of the one that most needs somebody."""
    found = set(states)
    return next((state for state in _WORST_FIRST if state in found), PlanState.WHOLE)


class SlurmState(StrEnum):
    """What Slurm says of one element."""

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


#: The exception under which a row is recorded that is given up, by what it did to its process.
KILLED, OUT_OF_MEMORY, TIMED_OUT = "KilledProcess", "OutOfMemory", "RowTimeout"

QUARANTINED = (KILLED, OUT_OF_MEMORY, TIMED_OUT)
